#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "service/coordinator.h"
#include "transport/metric_list.h"

// What the coordinator does when something goes wrong: silent members, dead actors, leases that run out, no progress.

namespace quern {

namespace {
using Json = nlohmann::ordered_json;
}  // namespace

void Coordinator::Fail(const std::string& message) {
  if (state_ != State::kRunning) return;
  state_ = State::kFailed;
  error_ = message;
  LogError(message);
  if (options_.journal != nullptr) options_.journal->Ended("failed", message);
  flight_.Add("failed: " + message);
  WriteFlightRecord();
}

void Coordinator::WriteFlightRecord() const {
  if (options_.run_directory.empty()) return;
  const Clock::time_point now = Clock::now();
  Json json = {{"error", error_}, {"members", Json::array()}, {"stages", Json::array()}};
  for (const auto& [key, member] : members_) {
    Json gauges = Json::object();
    for (const auto& [name, value] : member.member.gauges()) gauges[name] = value;
    json["members"].push_back({{"role", key.first},
                               {"index", key.second},
                               {"pid", member.member.pid()},
                               {"activity", member.member.activity()},
                               {"seconds_since_heard", ToSeconds(now - member.heard)},
                               {"gone", member.gone},
                               {"gauges", gauges}});
  }
  for (const Stage& stage : stages_) {
    if (stage.state == StageState::kPending) continue;
    json["stages"].push_back({{"name", stage.plan.name},
                              {"running", stage.state == StageState::kRunning},
                              {"done", stage.done},
                              {"total", stage.total},
                              {"watermark", stage.watermark}});
  }
  json["last"] = Json::parse(flight_.ToJson());
  const std::string path = JoinPath(options_.run_directory, "flight_record.json");
  const Status written = WriteFileAtomic(path, json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  if (written.ok())
    LogInfo("what happened before: " + path);
  else
    LogError(written.message());
}

void Coordinator::ExpireLeases(Clock::time_point now) {
  for (const auto& failure : tasks_.Expire(now)) HandleTaskFailure(failure);
}

void Coordinator::HandleTaskFailure(const TaskTable::Failure& failure) {
  const Stage& stage = stages_[failure.task.stage];
  const std::string what = StrCat("stage ", stage.plan.name, ": episodes ", failure.task.first_episode, " to ",
                                  failure.task.first_episode + failure.task.episodes - 1, " failed on actor ",
                                  failure.actor, ": ", failure.reason);
  if (options_.counters != nullptr) options_.counters->Add(kTaskFailures);
  if (!failure.final) return Note(what + "; given out again");
  Fail(StrCat(what, " (failed ", failure.failures, " times, given up)"));
}

void Coordinator::LoseActor(MemberState& actor, const std::string& reason, Clock::time_point now) {
  const uint64_t named = std::exchange(actor.episode, 0);
  for (const auto& failure : tasks_.FailAll(actor.member.index(), named > 0, reason, now)) {
    HandleTaskFailure(failure);
    const uint64_t episode = named - 1;
    if (named == 0 || episode < failure.task.first_episode ||
        episode - failure.task.first_episode >= failure.task.episodes)
      continue;
    Stage& stage = stages_[failure.task.stage];
    // Before it, an actor died that played many episodes side by side.
    if (++stage.kills[episode] >= std::max<int64_t>(1, options_.job.rollout.max_failures - 1))
      Quarantine(stage, episode);
  }
}

void Coordinator::Quarantine(Stage& stage, uint64_t episode) {
  if (!stage.quarantined.insert(episode).second) return;
  const std::string what = StrCat("stage ", stage.plan.name, ": episode ", episode);
  if (options_.journal != nullptr) options_.journal->Quarantined(stage.plan.name, episode);
  if (!JournalWritten()) return;
  if (options_.counters != nullptr) options_.counters->Add(kQuarantined);
  stage.metrics["quarantined"] = static_cast<double>(stage.quarantined.size());
  Note(StrCat(what, " killed ", stage.kills[episode] + 1, " actors: quarantined, it is left out"));
  const double most = std::ceil(options_.job.rollout.max_quarantined * static_cast<double>(stage.total));
  if (static_cast<double>(stage.quarantined.size()) > most)
    Fail(StrCat(what, " is the ", stage.quarantined.size(), ". that kills its actors; rollout.max_quarantined allows ",
                most));
}

void Coordinator::CheckMembers(Clock::time_point now) {
  for (auto& [key, member] : members_) {
    // A learner is silent during a long step; only no progress at all is held against it.
    const double timeout = key.first == "actor"
                               ? options_.heartbeat_timeout_s
                               : std::max(options_.heartbeat_timeout_s, options_.job.progress_timeout_s);
    if (member.gone || ToSeconds(now - member.heard) < timeout) continue;
    member.gone = true;
    const std::string what =
        StrFormat("%s %u has not been heard of for %.0f s", key.first.c_str(), key.second, timeout);
    if (key.first == "actor") {
      Note(what);
      LoseActor(member, "its actor is not heard of", now);
    } else {
      Fail(what);
    }
  }
}

void Coordinator::CheckProgress(Clock::time_point now) {
  if (ToSeconds(now - last_progress_) < options_.job.progress_timeout_s) return;
  std::vector<std::string> waiting;
  for (const Stage& stage : stages_)
    if (stage.state == StageState::kRunning)
      waiting.push_back(StrCat(stage.plan.name, " (", stage.done, " of ", stage.total,
                               stage.plan.kind == PlannedStage::Kind::kTrain ? " steps)" : " episodes)"));
  Fail(StrFormat("no progress for %.0f s (progress_timeout_s) in stage ", options_.job.progress_timeout_s) +
       StrJoin(waiting, ", "));
}

}  // namespace quern
