#include "service/journal.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/deadline.h"
#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr char kChecksum[] = "xxh3";

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string Checksum(const std::string& text) {
  return StrFormat("%016llx", static_cast<unsigned long long>(XXH3_64bits(text.data(), text.size())));
}

// The event of a line, without its checksum; nothing for a line that is not as it was written.
std::optional<Json> ParseLine(const std::string& line) {
  Json event = Json::parse(line, nullptr, false);
  if (!event.is_object() || !event.contains(kChecksum) || !event[kChecksum].is_string()) return std::nullopt;
  const std::string checksum = event[kChecksum];
  event.erase(kChecksum);
  if (Checksum(Dump(event)) != checksum) return std::nullopt;
  return event;
}

Json MetricsJson(const std::map<std::string, double>& metrics) {
  Json json = Json::object();
  for (const auto& [name, value] : metrics) {
    json[name] = nullptr;
    if (std::isfinite(value)) json[name] = value;
  }
  return json;
}

// Follows the events in order; throws what nlohmann throws.
class Replayer {
 public:
  explicit Replayer(JournalState& state) : state_(state) {}

  void Apply(const Json& event) {
    const std::string what = event.at("event");
    const double time = event.at("time");
    if (what == "attempt") {
      ++state_.attempts;
    } else {
      // Time in which no coordinator ran is nobody's.
      const double passed = std::max(0.0, time - last_time_);
      state_.elapsed_seconds += passed;
      for (auto& [name, stage] : state_.stages)
        if (stage.started && !stage.done) stage.elapsed_seconds += passed;
    }
    last_time_ = time;
    if (!event.contains("stage")) return;
    JournalState::Stage& stage = state_.stages[event.at("stage")];
    if (what == "stage_started") {
      stage.started = true;
      stage.watermark = event.at("watermark");
    } else if (what == "stage_given") {
      stage.version = event.at("version");
    } else if (what == "task_given") {
      JournalState::Task& task = stage.tasks[event.at("first_episode")];
      task.episodes = event.at("episodes");
      task.actor = event.at("actor");
      task.weights = event.at("weights").get<std::vector<std::string>>();
    } else if (what == "task_done") {
      stage.tasks[event.at("first_episode")].done = true;
      stage.metrics["generated_tokens"] += event.at("generated_tokens").get<double>();
      stage.task_seconds += event.at("seconds").get<double>();
    } else if (what == "quarantined") {
      stage.quarantined.insert(event.at("episode").get<uint64_t>());
      stage.metrics["quarantined"] = static_cast<double>(stage.quarantined.size());
    } else if (what == "published") {
      const Json& weights = event.at("weights");
      stage.published.set_name(weights.at("name"));
      stage.published.set_version(weights.at("version"));
      stage.published.set_content_hash(weights.at("content_hash"));
      stage.published.set_path(weights.at("path"));
      stage.published.set_step(weights.at("step"));
      stage.published.set_generation_depth(weights.at("generation_depth"));
    } else if (what == "stage_done") {
      stage.done = true;
      stage.detail = event.at("detail");
      for (const auto& [name, value] : event.at("metrics").items())
        stage.metrics[name] = value.is_number() ? value.get<double>() : std::nan("");
    }
  }

 private:
  JournalState& state_;
  double last_time_ = 0;
};

}  // namespace

Result<std::unique_ptr<Journal>> Journal::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return FromErrno(errno, path);
  std::unique_ptr<Journal> journal(new Journal(fd, path));
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  Replayer replayer(journal->state_);
  size_t begin = 0;
  for (size_t number = 1; begin < text.size(); ++number) {
    const size_t end = text.find('\n', begin);
    const bool whole = end != std::string::npos;
    const std::optional<Json> event = ParseLine(text.substr(begin, whole ? end - begin : std::string::npos));
    if (!event || !whole) {
      if (whole && end + 1 < text.size()) {
        return DataLoss(StrCat(path, ":", number,
                               ": the line is damaged; to continue from before it, delete it and all lines after it"));
      }
      LogWarning(StrCat(path, ":", number, ": the last line was not written to its end and is left out"));
      break;
    }
    try {
      replayer.Apply(*event);
    } catch (const Json::exception& error) {
      return DataLoss(StrCat(path, ":", number, ": ", error.what()));
    }
    begin = end + 1;
  }
  if (begin < text.size() && ftruncate(fd, static_cast<off_t>(begin)) != 0) return FromErrno(errno, path);
  journal->Append("attempt", "{}");
  QUERN_RETURN_IF_ERROR(journal->status());
  QUERN_RETURN_IF_ERROR(SyncFolderOf(path));
  return journal;
}

Journal::~Journal() { close(fd_); }

void Journal::Append(const std::string& event, const std::string& fields) {
  if (!status_.ok()) return;
  Json json = {{"time", UnixSeconds()}, {"event", event}};
  json.update(Json::parse(fields));
  json[kChecksum] = Checksum(Dump(json));
  const std::string text = Dump(json) + "\n";
  const ssize_t written = write(fd_, text.data(), text.size());
  if (written != static_cast<ssize_t>(text.size())) {
    status_ = FromErrno(written < 0 ? errno : ENOSPC, path_);
  } else if (fdatasync(fd_) != 0) {
    status_ = FromErrno(errno, path_);
  }
}

void Journal::StageStarted(const std::string& stage, uint64_t watermark) {
  Append("stage_started", Dump({{"stage", stage}, {"watermark", watermark}}));
}

void Journal::StageGiven(const std::string& stage, uint64_t version) {
  Append("stage_given", Dump({{"stage", stage}, {"version", version}}));
}

void Journal::TaskGiven(const std::string& stage, uint64_t first_episode, const JournalState::Task& task) {
  Append("task_given", Dump({{"stage", stage},
                             {"first_episode", first_episode},
                             {"episodes", task.episodes},
                             {"actor", task.actor},
                             {"weights", task.weights}}));
}

void Journal::TaskDone(const std::string& stage, uint64_t first_episode, uint64_t generated_tokens, double seconds) {
  Append("task_done", Dump({{"stage", stage},
                            {"first_episode", first_episode},
                            {"generated_tokens", generated_tokens},
                            {"seconds", seconds}}));
}

void Journal::Quarantined(const std::string& stage, uint64_t episode) {
  Append("quarantined", Dump({{"stage", stage}, {"episode", episode}}));
}

void Journal::Published(const std::string& stage, const v1::WeightVersion& weights) {
  Append("published", Dump({{"stage", stage},
                            {"weights",
                             {{"name", weights.name()},
                              {"version", weights.version()},
                              {"content_hash", weights.content_hash()},
                              {"path", weights.path()},
                              {"step", weights.step()},
                              {"generation_depth", weights.generation_depth()}}}}));
}

void Journal::StageDone(const std::string& stage, const std::map<std::string, double>& metrics,
                        const std::string& detail) {
  Append("stage_done", Dump({{"stage", stage}, {"detail", detail}, {"metrics", MetricsJson(metrics)}}));
}

void Journal::Ended(const std::string& state, const std::string& error) {
  Append("ended", Dump({{"state", state}, {"error", error}}));
}

}  // namespace quern
