#include "service/live_view.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "base/strings.h"

namespace quern {

namespace {

std::string Elapsed(double seconds) {
  const int whole = static_cast<int>(seconds);
  return StrFormat("%d:%02d", whole / 60, whole % 60);
}

size_t TerminalWidth() {
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 100;
  return size.ws_col;
}

double Gauge(const v1::Member& member, const std::string& name, double otherwise) {
  const auto it = member.gauges().find(name);
  return it == member.gauges().end() ? otherwise : it->second;
}

std::string Bar(uint64_t done, uint64_t total) {
  constexpr uint64_t kWidth = 20;
  const uint64_t filled = total == 0 ? kWidth : std::min(kWidth, done * kWidth / total);
  return std::string(filled, '#') + std::string(kWidth - filled, '.');
}

std::string LearnerText(const v1::Member& member) {
  if (!member.gauges().contains("loss")) return member.activity();
  return StrFormat("%s step %.0f, loss %.4f, %.0f tokens/s", member.activity().c_str(), Gauge(member, "step", 0),
                   Gauge(member, "loss", 0), Gauge(member, "tokens_per_second", 0));
}

}  // namespace

std::string LiveView::Table(const v1::StatusReply& status) const {
  std::string out =
      StrFormat("%s  %s  %s\n", title_.c_str(), status.state().c_str(), Elapsed(SecondsSince(begin_)).c_str());
  size_t width = 5;
  for (const v1::StageStatus& stage : status.stages()) width = std::max(width, stage.name().size());
  for (const v1::StageStatus& stage : status.stages()) {
    out += StrFormat("  %-*s  %-7s  %s %8llu / %-8llu %s\n", static_cast<int>(width), stage.name().c_str(),
                     stage.state().c_str(), Bar(stage.done(), stage.total()).c_str(),
                     static_cast<unsigned long long>(stage.done()), static_cast<unsigned long long>(stage.total()),
                     stage.detail().c_str());
  }
  for (const v1::Member& member : status.members()) {
    if (member.role() == "learner") {
      out += "  learner: " + LearnerText(member) + "\n";
    } else if (member.role() == "actor") {
      out += StrFormat("  actor %u: %s, %.0f episodes, %.0f tokens\n", member.index(), member.activity().c_str(),
                       Gauge(member, "episodes", 0), Gauge(member, "generated_tokens", 0));
    } else {
      out += StrFormat("  store: %.0f records, %s\n", Gauge(member, "records", 0), member.activity().c_str());
    }
  }
  return out;
}

std::string LiveView::Line(const v1::StatusReply& status) const {
  std::vector<std::string> parts;
  for (const v1::StageStatus& stage : status.stages())
    if (stage.state() == "running") parts.push_back(StrCat(stage.name(), " ", stage.done(), "/", stage.total()));
  for (const v1::Member& member : status.members()) {
    if (member.role() == "learner" && member.gauges().contains("loss"))
      parts.push_back(
          StrFormat("loss %.4f, %.0f tokens/s", Gauge(member, "loss", 0), Gauge(member, "tokens_per_second", 0)));
    else if (member.role() == "learner" && member.gauges().contains("step"))
      parts.push_back(member.activity());
    if (member.role() == "replay-server") parts.push_back(StrFormat("%.0f records", Gauge(member, "records", 0)));
  }
  return StrJoin(parts, "; ");
}

void LiveView::Erase() {
  if (drawn_lines_ > 0) std::fprintf(stderr, "\033[%dA\033[J", drawn_lines_);
  drawn_lines_ = 0;
}

void LiveView::Note(const std::string& line) {
  if (terminal_) Erase();
  std::fprintf(stderr, "[%s] %s\n", Elapsed(SecondsSince(begin_)).c_str(), line.c_str());
  std::fflush(stderr);
}

void LiveView::Update(const v1::StatusReply& status) {
  if (terminal_) {
    const std::string table = Table(status);
    if (table == last_table_ && drawn_lines_ > 0) return;
    last_table_ = table;
    Erase();
    const size_t width = TerminalWidth();
    std::string out;
    for (const std::string& line : StrSplit(table, '\n')) {
      if (line.empty()) continue;
      out += line.substr(0, width - 1) + "\n";
      ++drawn_lines_;
    }
    std::fputs(out.c_str(), stderr);
    std::fflush(stderr);
    return;
  }
  for (const v1::StageStatus& stage : status.stages()) {
    std::string& known = stage_states_[stage.name()];
    if (known == stage.state()) continue;
    known = stage.state();
    const std::string detail = stage.detail().empty() ? "" : " (" + stage.detail() + ")";
    if (known == "done" || known == "failed") Note(StrCat(stage.name(), " ", known, detail));
  }
  if (SecondsSince(last_line_) < 10) return;
  last_line_ = Clock::now();
  if (const std::string line = Line(status); !line.empty()) Note(line);
}

}  // namespace quern
