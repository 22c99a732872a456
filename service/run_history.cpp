#include "service/run_history.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/strings.h"

namespace quern {

namespace {

using Json = nlohmann::json;

constexpr size_t kMostEvents = 5000;
constexpr float kNone = std::numeric_limits<float>::quiet_NaN();

double Number(const Json& json, const char* key, double otherwise = 0) {
  const auto it = json.find(key);
  return it != json.end() && it->is_number() ? it->get<double>() : otherwise;
}
// A count or a number of something; 0 for what can't be one.
uint64_t Count(const Json& json, const char* key) {
  const double number = Number(json, key);
  return number >= 0 && number <= 9007199254740992.0 ? static_cast<uint64_t>(number) : 0;
}
std::string Text(const Json& json, const char* key) {
  const auto it = json.find(key);
  return it != json.end() && it->is_string() ? it->get<std::string>() : std::string();
}

}  // namespace

std::vector<std::string> LineTail::Next() {
  struct stat info {};
  if (stat(path_.c_str(), &info) != 0) return {};
  const auto size = static_cast<uint64_t>(info.st_size);
  if (size < offset_) offset_ = 0;
  if (size == offset_) return {};
  std::ifstream file(path_, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset_));
  std::string bytes(size - offset_, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  bytes.resize(static_cast<size_t>(file.gcount()));
  const size_t whole = bytes.rfind('\n');
  if (whole == std::string::npos) return {};
  bytes.resize(whole);
  offset_ += whole + 1;
  return StrSplit(bytes, '\n');
}

RunHistory::RunHistory(const Run& run)
    : result_path_(run.Path("result.json")),
      journal_(run.Path("journal.jsonl")),
      metrics_(run.Path("metrics.jsonl")),
      problems_(run.Path("events.jsonl")) {}

void RunHistory::Refresh() {
  const size_t known = events_.size();
  for (const std::string& line : journal_.Next()) ApplyJournal(line);
  for (const std::string& line : metrics_.Next()) ApplyMetrics(line);
  for (const std::string& line : problems_.Next()) ApplyEvent(line);
  if (events_.size() != known) {
    std::stable_sort(events_.begin(), events_.end(), [](const Event& a, const Event& b) { return a.time < b.time; });
    if (events_.size() > kMostEvents)
      events_.erase(events_.begin(), events_.end() - static_cast<std::ptrdiff_t>(kMostEvents));
  }
  const Result<std::string> result = ReadFile(result_path_);
  result_json_ = result.ok() ? *result : std::string();
}

void RunHistory::ApplyJournal(const std::string& line) {
  const Json event = Json::parse(line, nullptr, false);
  if (!event.is_object()) return;
  const std::string what = Text(event, "event");
  const double time = Number(event, "time");
  if (begin_ == 0) begin_ = time;
  last_ = std::max(last_, time);
  const auto add = [&](const char* kind, const std::string& text) { events_.push_back({time, kind, text}); };
  if (what == "attempt") {
    ended_.clear();
    error_.clear();
    add("job", ++attempts_ == 1 ? "the job began" : StrCat("the coordinator started again (attempt ", attempts_, ")"));
    return;
  }
  if (what == "ended") {
    ended_ = Text(event, "state");
    error_ = Text(event, "error");
    add(ended_ == "failed" ? "problem" : "job",
        StrCat(ended_ == "stopping" ? "the job was stopped" : StrCat("the job ", ended_),
               error_.empty() ? "" : StrCat(": ", error_)));
    return;
  }
  const std::string name = Text(event, "stage");
  if (name.empty()) return;
  Stage& stage = stages_[name];
  if (what == "stage_started") {
    stage.started = true;
    stage.begin = time;
    add("stage", StrCat("stage ", name, " began"));
  } else if (what == "stage_given") {
    stage.given = true;
    stage.begin = time;
  } else if (what == "task_given") {
    stage.tasks[Count(event, "first_episode")] = Count(event, "episodes");
  } else if (what == "task_done") {
    const auto task = stage.tasks.find(Count(event, "first_episode"));
    if (task == stage.tasks.end()) return;
    stage.episodes_done += task->second;
    stage.tasks.erase(task);
  } else if (what == "published") {
    const auto weights = event.find("weights");
    if (weights == event.end()) return;
    add("weights", StrFormat("weights %s version %.0f were published (%s)", Text(*weights, "name").c_str(),
                             Number(*weights, "version"), Text(*weights, "content_hash").c_str()));
  } else if (what == "stage_done") {
    stage.done = true;
    stage.end = time;
    stage.detail = Text(event, "detail");
    if (const auto metrics = event.find("metrics"); metrics != event.end())
      for (const auto& [key, value] : metrics->items())
        if (value.is_number()) stage.metrics[key] = value.get<double>();
    add("stage", StrCat("stage ", name, " is done (", stage.detail, ")"));
  }
}

RunHistory::Curve& RunHistory::CurveOf(const std::string& stage) {
  for (auto& [name, curve] : curves_)
    if (name == stage) return curve;
  return curves_.emplace_back(stage, Curve()).second;
}

void RunHistory::ApplyMetrics(const std::string& line) {
  const Json row = Json::parse(line, nullptr, false);
  if (!row.is_object() || !row.contains("step") || row.contains("role")) return;
  const std::string stage = Text(row, "stage");
  const auto step = static_cast<int64_t>(Count(row, "step"));
  Curve& curve = CurveOf(stage);
  // A stage that went on from a checkpoint logs some steps once more.
  while (!curve.steps.empty() && curve.steps.back() >= step) {
    curve.steps.pop_back();
    curve.times.pop_back();
    for (auto& [name, values] : curve.numbers) values.pop_back();
  }
  curve.steps.push_back(step);
  curve.times.push_back(Number(row, "time", std::nan("")));
  for (const auto& [name, value] : row.items()) {
    if (!value.is_number() || name == "step" || name == "time") continue;
    std::vector<float>& values = curve.numbers[name];
    values.resize(curve.steps.size(), kNone);
    values.back() = value.get<float>();
  }
  for (auto& [name, values] : curve.numbers) values.resize(curve.steps.size(), kNone);
  stages_[stage].last_step = static_cast<uint64_t>(step);
}

void RunHistory::ApplyEvent(const std::string& line) {
  const Json event = Json::parse(line, nullptr, false);
  if (!event.is_object()) return;
  events_.push_back({Number(event, "time"), "problem", Text(event, "role") + ": " + Text(event, "text")});
}

}  // namespace quern
