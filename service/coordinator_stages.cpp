#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "learner/train_stage.h"
#include "replay/import.h"
#include "service/chains.h"
#include "service/coordinator.h"
#include "service/limiter_check.h"
#include "service/policies.h"
#include "service/result.h"

// The coordinator's stages: how they start, what is done at their ends, what a journal says of them, the job's result.

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr auto kStoreDeadline = std::chrono::seconds(60);

}  // namespace

void Coordinator::Restore(const JournalState& state, Clock::time_point now) {
  const auto before_now = [&](double seconds) {
    return now - std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
  };
  begin_ = before_now(state.elapsed_seconds);
  bool any_trained = false;
  for (Stage& stage : stages_) {
    const auto found = state.stages.find(stage.plan.name);
    if (found == state.stages.end()) continue;
    const JournalState::Stage& before = found->second;
    if (!before.started) continue;
    stage.begin = before_now(before.elapsed_seconds);
    stage.watermark = before.watermark;
    stage.asked_for = before.version > 0;
    stage.published = before.published;
    stage.metrics = before.metrics;
    stage.seconds = before.task_seconds;
    stage.detail = before.detail;
    stage.quarantined = before.quarantined;
    if (!before.published.path().empty() && newest_[before.published.name()].version() < before.published.version())
      newest_[before.published.name()] = before.published;
    if (before.done) {
      stage.state = StageState::kDone;
      stage.done = stage.total;
      any_trained = any_trained || stage.plan.kind == PlannedStage::Kind::kTrain;
    } else if (stage.plan.kind == PlannedStage::Kind::kRollout) {
      stage.state = StageState::kRunning;
      RestoreTasks(stage, before, now);
    } else if (stage.plan.kind != PlannedStage::Kind::kImport) {  // rows that were imported are known by their uids
      stage.state = StageState::kRunning;
    }
  }
  if (any_trained) SavePublished();
  if (state.attempts > 0)
    LogInfo(StrFormat("going on after attempt %llu, %.1f s into the job",
                      static_cast<unsigned long long>(state.attempts), state.elapsed_seconds));
}

void Coordinator::RestoreTasks(Stage& stage, const JournalState::Stage& before, Clock::time_point now) {
  const auto index = static_cast<size_t>(&stage - stages_.data());
  uint64_t next = 0;
  for (const auto& [first, task] : before.tasks) {
    tasks_.Add(index, next, first, ChunkOf(stage));
    next = first + task.episodes;
    stage.task_weights[first] = task.weights;
    if (task.done) {
      stage.done += task.episodes;
    } else if (task.actor < static_cast<uint64_t>(options_.job.actors)) {
      // Its actor may be at it still.
      tasks_.AddLeased(index, first, task.episodes, task.actor, now);
    } else {
      tasks_.Add(index, first, next, task.episodes);
    }
  }
  tasks_.Add(index, next, stage.total, ChunkOf(stage));
  if (stage.done >= stage.total && stage.plan.arm.empty()) FinishStage(stage, now);
}

bool Coordinator::DependenciesDone(const Stage& stage) const {
  return std::all_of(stage.plan.after.begin(), stage.plan.after.end(), [&](const std::string& name) {
    return std::any_of(stages_.begin(), stages_.end(),
                       [&](const Stage& other) { return other.plan.name == name && other.state == StageState::kDone; });
  });
}

void Coordinator::StartRollout(Stage& stage, Clock::time_point now) {
  LogInfo(StrCat("stage ", stage.plan.name, ": ", stage.total, " episodes"));
  if (options_.journal != nullptr) options_.journal->StageStarted(stage.plan.name, 0);
  if (!JournalWritten()) return;
  stage.state = StageState::kRunning;
  tasks_.Add(static_cast<size_t>(&stage - stages_.data()), 0, stage.total, ChunkOf(stage));
  if (stage.total == 0) FinishStage(stage, now);
}

// Small enough that every actor gets a share, large enough to fill a batch.
uint32_t Coordinator::ChunkOf(const Stage& stage) const {
  const auto actors = static_cast<uint64_t>(std::max<int64_t>(1, options_.job.actors));  // 0: all are elsewhere
  const uint64_t share = std::max<uint64_t>(1, (stage.total + actors - 1) / actors);
  const uint64_t chunk = std::min(share, static_cast<uint64_t>(options_.job.rollout.task_episodes));
  if (stage.plan.arm.empty()) return static_cast<uint32_t>(chunk);
  // A question is many chains; a task should still keep an actor's batch full for a while.
  const uint64_t chains = options_.programs.at(stage.plan.arm).chains();
  const uint64_t most = 16 * static_cast<uint64_t>(options_.job.rollout.concurrent_episodes) / chains;
  return static_cast<uint32_t>(std::min(chunk, std::max<uint64_t>(1, most)));
}

void Coordinator::StartTrain(size_t index, std::unique_lock<std::mutex>& lock, Clock::time_point now) {
  const bool limited = RecordsNeeded(stages_[index].plan) > 0;
  lock.unlock();
  v1::StatsRequest request;
  request.mutable_filter()->add_without_tags(kEvaluationTag);
  request.mutable_filter()->add_without_tags(kHeldoutTag);
  const Result<v1::StatsReply> stats = store_->Stats(request, Deadline::After(kStoreDeadline));
  v1::QueryRequest ever;
  *ever.mutable_filter() = request.filter();
  ever.set_count_only(true);
  ever.set_pruned_too(true);
  Result<v1::QueryReply> stored = v1::QueryReply();
  if (limited) stored = store_->Query(ever, Deadline::After(kStoreDeadline));
  lock.lock();
  Stage& stage = stages_[index];
  if (!stats.ok()) return Fail("stage " + stage.plan.name + ": " + stats.status().message());
  if (!stored.ok()) return Fail("stage " + stage.plan.name + ": " + stored.status().message());
  if (const std::string starved = limited ? Starvation(stage, stored->count()) : ""; !starved.empty())
    return Fail("stage " + stage.plan.name + ": its rate limiter " + starved);
  if (stage.plan.kind == PlannedStage::Kind::kTrain) {
    if (stats->records() == 0) return Fail("stage " + stage.plan.name + ": the store has no record to learn from");
    LogInfo(StrCat("stage ", stage.plan.name, ": ", stage.total, " steps on ", stats->records(),
                   " records, mean return ", stats->mean_return(), ", watermark ", stats->watermark()));
  }
  if (options_.journal != nullptr) options_.journal->StageStarted(stage.plan.name, stats->watermark());
  if (!JournalWritten()) return;
  stage.watermark = stats->watermark();
  stage.state = StageState::kRunning;
  stage.begin = now;
}

// Empty, or why its rate limiter cannot be satisfied by what was stored and what may still come.
std::string Coordinator::Starvation(const Stage& train, uint64_t stored) const {
  const uint64_t needed = RecordsNeeded(train.plan);
  uint64_t most = stored;
  for (const PlannedStage* feeding : StagesThatFeed(options_.plan, train.plan)) {
    const auto stage =
        std::find_if(stages_.begin(), stages_.end(), [&](const Stage& one) { return one.plan.name == feeding->name; });
    if (stage == stages_.end() || stage->state == StageState::kDone) continue;
    if (feeding->kind != PlannedStage::Kind::kRollout || !feeding->arm.empty()) return "";
    most += stage->total - std::min(stage->total, stage->done);
  }
  return needed > most ? Starved(needed, most) : "";
}

void Coordinator::EndChains(size_t index, std::unique_lock<std::mutex>& lock) {
  const std::string name = stages_[index].plan.name;
  const auto guidelines = static_cast<uint32_t>(options_.programs.at(stages_[index].plan.arm).guidelines_size());
  const uint64_t questions = stages_[index].total;
  lock.unlock();
  const Deadline deadline = Deadline::After(kStoreDeadline);
  Result<std::map<std::string, double>> measured = MeasureChains(*store_, name, questions, guidelines, deadline);
  Result<std::string> reasons = std::string();
  if (measured.ok() && measured->at("kept") == 0) reasons = RejectionReasons(*store_, name, deadline);
  lock.lock();
  Stage& stage = stages_[index];
  const std::string where = "stage " + name + ": ";
  if (!measured.ok()) return Fail(where + measured.status().message());
  stage.metrics.merge(*measured);
  stage.detail = ChainsSummary(stage.metrics);
  if (stage.metrics.at("kept") == 0) {
    stage.state = StageState::kFailed;
    return Fail(StrCat(where, "no path was kept of ", stage.metrics.at("chains"), " chains (",
                       reasons.ok() ? *reasons : reasons.status().message(), "): nothing to learn from"));
  }
  LogInfo(where + stage.detail);
  FinishStage(stage, Clock::now());
  if (options_.metrics != nullptr) options_.metrics->Append("stage", name, stage.metrics);
}

void Coordinator::RunImport(size_t index, std::unique_lock<std::mutex>& lock, Clock::time_point now) {
  if (options_.journal != nullptr) options_.journal->StageStarted(stages_[index].plan.name, 0);
  if (!JournalWritten()) return;
  stages_[index].state = StageState::kRunning;
  const std::vector<std::string> files = stages_[index].plan.files;
  ImportOptions options;
  options.tags = stages_[index].plan.tags;
  options.run = options_.job.name;
  std::string problem;
  uint64_t rows = 0;
  for (const std::string& file : files) {
    lock.unlock();
    const Result<ImportReport> report = ImportFile(*store_, file, options);
    lock.lock();
    if (!report.ok()) {
      problem = report.status().message();
      break;
    }
    if (report->bad > 0) {
      const BadLine& first = report->bad_lines.front();
      problem = StrCat(file, ":", first.number, ": ", first.reason);
      if (report->bad > 1) problem += StrCat(" (and ", report->bad - 1, " more bad lines)");
      break;
    }
    rows += report->rows;
    ++stages_[index].done;
    RecordProgress(Clock::now());
  }
  Stage& stage = stages_[index];
  if (!problem.empty()) {
    stage.state = StageState::kFailed;
    return Fail(problem);
  }
  stage.detail = StrCat(rows, " rows");
  stage.metrics["rows"] = static_cast<double>(rows);
  FinishStage(stage, std::max(now, Clock::now()));
}

void Coordinator::FinishStage(Stage& stage, Clock::time_point now) {
  stage.state = StageState::kDone;
  const double elapsed = ToSeconds(now - stage.begin);
  stage.metrics["elapsed_seconds"] = elapsed;
  if (stage.detail.empty()) stage.detail = StrFormat("%.1f s", elapsed);
  if (!stage.quarantined.empty())
    stage.detail += StrCat("; quarantined, left out: ", stage.quarantined.size(), " of ", stage.total, " episodes");
  if (options_.journal != nullptr) options_.journal->StageDone(stage.plan.name, stage.metrics, stage.detail);
  (void)JournalWritten();
  LogInfo(StrFormat("stage %s done in %.1f s", stage.plan.name.c_str(), elapsed));
}

void Coordinator::SavePublished() const {
  if (options_.run_directory.empty()) return;
  std::map<std::string, v1::WeightVersion> weights;
  for (const Stage& stage : stages_)
    if (stage.plan.kind == PlannedStage::Kind::kTrain && stage.state == StageState::kDone)
      weights[stage.plan.name] = stage.published;
  const Status status = SaveWeights(options_.run_directory, weights);
  if (!status.ok()) LogError(status.message());
}

void Coordinator::Finish(std::unique_lock<std::mutex>& lock, Clock::time_point now) {
  StageMetrics metrics_of_stages;
  for (const Stage& stage : stages_) metrics_of_stages[stage.plan.name] = stage.metrics;
  lock.unlock();
  const Result<JobResult> result =
      MeasureJob(*store_, options_.job, options_.plan, metrics_of_stages, Deadline::After(kStoreDeadline));
  lock.lock();
  if (state_ != State::kRunning) return;
  if (!result.ok()) return Fail("result: " + result.status().message());
  Json json = {{"job", options_.job.name}, {"seed", options_.job.seed}, {"state", "succeeded"}};
  json["seconds"] = ToSeconds(now - begin_);
  json.update(Json::parse(ResultToJson(*result)));
  json["stages"] = Json::array();
  for (const Stage& stage : stages_) {
    Json metrics = Json::object();
    for (const auto& [name, value] : stage.metrics) metrics[name] = value;
    json["stages"].push_back({{"name", stage.plan.name}, {"total", stage.total}, {"metrics", metrics}});
  }
  if (!result->AllMet()) {
    for (const RequirementOutcome& outcome : result->requirements) {
      if (outcome.met) continue;
      Fail(
          StrFormat("not met: %s better than %s by more than %g standard errors (difference %.3f, standard error %.3f)",
                    outcome.wanted.better.c_str(), outcome.wanted.than.c_str(), outcome.wanted.by_standard_errors,
                    outcome.difference, outcome.std_error));
      break;
    }
    json["state"] = "failed";
    json["error"] = error_;
  }
  result_json_ = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  if (!options_.run_directory.empty()) {
    const Status written = WriteFileAtomic(JoinPath(options_.run_directory, "result.json"), result_json_);
    if (!written.ok()) return Fail(written.message());
  }
  if (state_ == State::kRunning) {
    state_ = State::kSucceeded;
    LogInfo("job succeeded");
    if (options_.journal != nullptr) options_.journal->Ended("succeeded", {});
  }
}

}  // namespace quern
