#include "service/coordinator.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "base/strings.h"
#include "learner/train_stage.h"
#include "replay/import.h"
#include "service/chains.h"
#include "service/policies.h"
#include "service/result.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr uint32_t kRetryMs = 100;
constexpr auto kStoreDeadline = std::chrono::seconds(60);

// Gauges that only move when work gets done.
bool IsProgress(const std::string& gauge) {
  return gauge == "step" || gauge == "episodes" || gauge == "tokens" || gauge == "generated_tokens" || gauge == "turns";
}

// What NextStage hands out.
bool ForLearner(const PlannedStage& stage) {
  return stage.kind == PlannedStage::Kind::kTrain || stage.kind == PlannedStage::Kind::kScore;
}

double Seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

const char* StateName(Coordinator::State state) {
  switch (state) {
    case Coordinator::State::kRunning: return "running";
    case Coordinator::State::kSucceeded: return "succeeded";
    case Coordinator::State::kFailed: return "failed";
    case Coordinator::State::kStopping: return "stopping";
  }
  return "unknown";
}

Coordinator::Coordinator(CoordinatorOptions options, Replay* store, Clock::time_point now)
    : options_(std::move(options)),
      store_(store),
      job_json_(JobToJson(options_.job)),
      tasks_(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(options_.job.rollout.lease_s)),
             static_cast<uint32_t>(options_.job.rollout.max_failures)),
      begin_(now),
      last_progress_(now) {
  uint64_t version = 0;
  for (const PlannedStage& planned : options_.plan.stages) {
    Stage& stage = stages_.emplace_back();
    stage.plan = planned;
    if (planned.kind == PlannedStage::Kind::kTrain) stage.version = ++version;
    stage.total = planned.kind == PlannedStage::Kind::kTrain     ? planned.steps
                  : planned.kind == PlannedStage::Kind::kRollout ? planned.episodes
                  : planned.kind == PlannedStage::Kind::kScore   ? 1
                                                                 : planned.files.size();
  }
  if (options_.journal != nullptr) Restore(options_.journal->state(), now);
}

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

bool Coordinator::JournalWritten() {
  if (options_.journal == nullptr || options_.journal->status().ok()) return true;
  Fail(options_.journal->status().message());
  return false;
}

v1::HelloReply Coordinator::Hello(const v1::HelloRequest& request, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  MemberState& member = members_[{request.role(), request.index()}];
  const bool again = member.member.pid() != 0 && member.member.pid() != request.pid();
  member.member.set_role(request.role());
  member.member.set_index(request.index());
  member.member.set_pid(request.pid());
  member.heard = now;
  member.gone = false;
  if (again && request.role() == "actor") {
    for (const auto& failure : tasks_.FailAll(request.index(), "its actor died and was started again", now))
      HandleTaskFailure(failure);
  }
  v1::HelloReply reply;
  reply.set_job_json(job_json_);
  reply.set_replay_address(options_.replay_address);
  reply.set_run_directory(options_.run_directory);
  return reply;
}

v1::HeartbeatReply Coordinator::Heartbeat(const v1::HeartbeatRequest& request, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  MemberState& member = members_[{request.role(), request.index()}];
  member.member.set_role(request.role());
  member.member.set_index(request.index());
  member.member.set_activity(request.activity());
  member.heard = now;
  member.gone = false;
  for (const auto& [name, value] : request.gauges()) {
    const auto& before = member.member.gauges();
    const auto it = before.find(name);
    if (!IsProgress(name) || (it != before.end() && it->second == value)) continue;
    RecordProgress(now);
    // Long chains of a large model: whoever still writes tokens keeps what it holds.
    if (request.role() == "actor" && name == "generated_tokens") tasks_.Renew(request.index(), now);
  }
  *member.member.mutable_gauges() = request.gauges();
  if (request.role() == "learner") {
    for (Stage& stage : stages_) {
      if (stage.plan.kind != PlannedStage::Kind::kTrain || stage.state != StageState::kRunning ||
          stage.plan.name != request.activity())
        continue;
      const auto step = request.gauges().find("step");
      if (step != request.gauges().end() && step->second >= 0)
        stage.done = std::min(stage.total, static_cast<uint64_t>(step->second));
      break;
    }
  }
  v1::HeartbeatReply reply;
  reply.set_stop(state_ != State::kRunning);
  return reply;
}

v1::LeaseTaskReply Coordinator::LeaseTask(const v1::LeaseTaskRequest& request, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  v1::LeaseTaskReply reply;
  reply.set_retry_ms(kRetryMs);
  reply.set_stop(state_ != State::kRunning);
  if (state_ != State::kRunning) return reply;
  const std::optional<TaskTable::Task> task = tasks_.Lease(request.actor(), now);
  if (!task) return reply;
  Stage& stage = stages_[task->stage];
  // A task that is given out again is played with the policy it was first given with.
  const auto [playing, first_time] = stage.task_weights.try_emplace(task->first_episode);
  if (first_time) playing->second = WeightsToPlay(stage);
  if (options_.journal != nullptr) {
    options_.journal->TaskGiven(
        stage.plan.name, task->first_episode,
        {.episodes = task->episodes, .actor = request.actor(), .weights = playing->second, .done = false});
    if (!JournalWritten()) return reply;
  }
  v1::RolloutTask& out = *reply.mutable_task();
  out.set_id(task->id);
  out.set_stage(stage.plan.name);
  *out.mutable_policy() = PolicyOf(stage, playing->second);
  out.set_first_episode(task->first_episode);
  out.set_episodes(task->episodes);
  out.set_seed(stage.plan.seed);
  for (const std::string& tag : stage.plan.tags) out.add_tags(tag);
  const bool scripted = !stage.plan.player.empty();
  out.set_source(scripted ? v1::SOURCE_REAL : v1::SOURCE_GENERATED);
  // Weights that learned from data of depth d carry d + 1, which is what they write; untrained ones, 0, write 1.
  uint32_t depth = 1;
  for (const v1::WeightVersion& weights : out.policy().weights()) depth = std::max(depth, weights.generation_depth());
  out.set_generation_depth(scripted ? 0 : depth);
  if (!stage.plan.arm.empty()) {
    *out.mutable_program() = options_.programs.at(stage.plan.arm);
    out.mutable_program()->set_first_question(stage.plan.first_question);
    *out.mutable_environment() = EnvironmentWith(options_.job, options_.job.regenesis.environment);
  }
  for (const EvaluationSet& set : options_.job.evaluate.sets)
    if (set.name == stage.plan.set) *out.mutable_environment() = EnvironmentWith(options_.job, set.from);
  return reply;
}

v1::CompleteTaskReply Coordinator::CompleteTask(const v1::CompleteTaskRequest& request, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  const TaskTable::Task* task = tasks_.Find(request.id());
  if (task == nullptr) return {};
  if (!request.error().empty()) {
    if (const auto failure = tasks_.Fail(request.id(), request.actor(), request.error(), now))
      HandleTaskFailure(*failure);
    return {};
  }
  if (!tasks_.Complete(request.id())) return {};
  RecordProgress(now);
  Stage& stage = stages_[task->stage];
  if (options_.journal != nullptr) {
    options_.journal->TaskDone(stage.plan.name, task->first_episode, request.generated_tokens(), request.seconds());
    if (!JournalWritten()) return {};
  }
  stage.done += task->episodes;
  stage.seconds += request.seconds();
  stage.metrics["generated_tokens"] += static_cast<double>(request.generated_tokens());
  // Chains are measured first, by Tick.
  if (stage.done >= stage.total && stage.state == StageState::kRunning && stage.plan.arm.empty())
    FinishStage(stage, now);
  return {};
}

v1::NextStageReply Coordinator::NextStage(const v1::NextStageRequest&, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  v1::NextStageReply reply;
  reply.set_retry_ms(kRetryMs);
  reply.set_stop(state_ != State::kRunning);
  if (state_ != State::kRunning) return reply;
  // What was begun goes first, so that a learner that was started again ends it.
  Stage* next = nullptr;
  for (Stage& stage : stages_) {
    if (!ForLearner(stage.plan) || stage.state != StageState::kRunning) continue;
    if (next == nullptr || (stage.asked_for && !next->asked_for)) next = &stage;
  }
  if (next == nullptr) return reply;
  if (!next->asked_for) {
    next->begin = now;
    next->asked_for = true;
    if (options_.journal != nullptr) options_.journal->StageGiven(next->plan.name, next->version);
    if (!JournalWritten()) return reply;
  }
  v1::TrainStage& out = *reply.mutable_stage();
  out.set_name(next->plan.name);
  out.set_method(next->plan.method);
  out.set_version(next->version);
  Json options = Json::parse(next->plan.options_json);
  options["watermark"] = next->watermark;
  for (const Stage* earlier : DoneBefore(*next)) {
    const auto& metrics = earlier->metrics;
    const auto loss = metrics.find("heldout_loss");
    const auto records = metrics.find("unique_real");
    const auto halvings = metrics.find("halvings");
    if (halvings == metrics.end()) continue;
    options["halvings"] = static_cast<int>(halvings->second);
    if (loss != metrics.end() && records != metrics.end()) options["phases"].push_back({records->second, loss->second});
  }
  out.set_options_json(options.dump());
  for (const std::string& initial : next->plan.initial) *out.add_initial() = *WeightsOf(initial);
  return reply;
}

std::vector<const Coordinator::Stage*> Coordinator::DoneBefore(const Stage& stage) const {
  std::vector<const Stage*> done;
  for (const Stage& other : stages_) {
    if (other.plan.kind == PlannedStage::Kind::kTrain && other.state == StageState::kDone &&
        other.plan.weights_name == stage.plan.weights_name && other.version < stage.version)
      done.push_back(&other);
  }
  std::sort(done.begin(), done.end(), [](const Stage* a, const Stage* b) { return a->version < b->version; });
  return done;
}

v1::StageDoneReply Coordinator::StageDone(const v1::StageDoneRequest& request, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  Stage* stage = FindStage(request.name());
  if (stage == nullptr || stage->state != StageState::kRunning) return {};
  for (const auto& [name, value] : request.metrics()) stage->metrics[name] = value;
  if (options_.metrics != nullptr) options_.metrics->Append("stage", request.name(), stage->metrics);
  if (!request.error().empty()) {
    stage->state = StageState::kFailed;
    Fail("stage " + request.name() + ": " + request.error());
    return {};
  }
  if (stage->plan.kind == PlannedStage::Kind::kTrain && stage->published.path().empty()) {
    stage->state = StageState::kFailed;
    Fail("stage " + request.name() + ": the learner finished without publishing weights");
    return {};
  }
  stage->done = stage->total;
  stage->seconds = Seconds(now - stage->begin);
  FinishStage(*stage, now);
  SavePublished();
  return {};
}

Result<v1::PublishReply> Coordinator::Publish(const v1::PublishRequest& request, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  const v1::WeightVersion& weights = request.weights();
  if (weights.path().empty() || weights.content_hash().empty())
    return InvalidArgument("published weights need a path and a content hash");
  Stage* stage = FindStage(request.stage());
  if (stage == nullptr || stage->plan.kind != PlannedStage::Kind::kTrain || stage->plan.weights_name != weights.name())
    return FailedPrecondition("no stage '" + request.stage() + "' publishes weights named '" + weights.name() + "'");
  if (stage->published.version() == weights.version() && stage->published.content_hash() == weights.content_hash())
    return v1::PublishReply();  // a request that was sent again, or a stage that was trained to its end again
  if (stage->state != StageState::kRunning)
    return FailedPrecondition("stage " + stage->plan.name + " is not running: it publishes nothing");
  v1::WeightVersion& newest = newest_[weights.name()];
  if (!newest.path().empty() && newest.content_hash() == weights.content_hash())
    LogWarning(StrCat("weights ", weights.name(), " version ", weights.version(), " are equal to version ",
                      newest.version(), " (hash ", weights.content_hash(), "): training changed nothing"));
  newest = weights;
  RecordProgress(now);
  if (options_.journal != nullptr) options_.journal->Published(stage->plan.name, weights);
  if (!JournalWritten()) return options_.journal->status();
  stage->published = weights;
  LogInfo(StrCat("stage ", stage->plan.name, ": weights ", weights.name(), " version ", weights.version(), ", hash ",
                 weights.content_hash()));
  return v1::PublishReply();
}

v1::StatusReply Coordinator::GetStatus(const v1::StatusRequest&, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  static const char* const names[] = {"pending", "running", "done", "failed"};
  v1::StatusReply reply;
  reply.set_job(options_.job.name);
  reply.set_state(StateName(state_));
  reply.set_error(error_);
  reply.set_result_json(result_json_);
  for (const auto& [key, member] : members_) {
    if (member.gone) continue;
    v1::Member& out = *reply.add_members();
    out = member.member;
    out.set_heartbeat_age_seconds(Seconds(now - member.heard));
  }
  for (const Stage& stage : stages_) {
    v1::StageStatus& out = *reply.add_stages();
    out.set_name(stage.plan.name);
    // A train stage that the learner has not come to yet waits.
    const bool waits = ForLearner(stage.plan) && !stage.asked_for;
    out.set_state(waits && stage.state == StageState::kRunning ? "pending" : names[static_cast<int>(stage.state)]);
    out.set_done(stage.done);
    out.set_total(stage.total);
    out.set_detail(stage.detail);
  }
  return reply;
}

void Coordinator::Stop(const std::string& reason) {
  std::lock_guard lock(mutex_);
  if (state_ != State::kRunning) return;
  LogInfo("stopping: " + reason);
  state_ = State::kStopping;
  error_ = reason;
  if (options_.journal != nullptr) options_.journal->Ended("stopping", reason);
}

void Coordinator::Tick(Clock::time_point now) {
  std::unique_lock lock(mutex_);
  if (state_ != State::kRunning) return;
  ExpireLeases(now);
  CheckMembers(now);
  bool all_done = true;
  for (size_t i = 0; i < stages_.size() && state_ == State::kRunning; ++i) {
    Stage& stage = stages_[i];
    all_done = all_done && stage.state == StageState::kDone;
    if (stage.state == StageState::kRunning && !stage.plan.arm.empty() && stage.done >= stage.total) EndChains(i, lock);
    if (stage.state != StageState::kPending || !DependenciesDone(stage)) continue;
    stage.begin = now;
    RecordProgress(now);
    switch (stage.plan.kind) {
      case PlannedStage::Kind::kImport: RunImport(i, lock, now); break;
      case PlannedStage::Kind::kRollout: StartRollout(stage, now); break;
      case PlannedStage::Kind::kTrain:
      case PlannedStage::Kind::kScore: StartTrain(i, lock, now); break;
    }
  }
  if (state_ != State::kRunning) return;
  if (all_done) return Finish(lock, now);
  CheckProgress(now);
  if (options_.metrics != nullptr && !options_.metrics->status().ok()) Fail(options_.metrics->status().message());
}

bool Coordinator::DependenciesDone(const Stage& stage) const {
  return std::all_of(stage.plan.after.begin(), stage.plan.after.end(), [&](const std::string& name) {
    return std::any_of(stages_.begin(), stages_.end(),
                       [&](const Stage& other) { return other.plan.name == name && other.state == StageState::kDone; });
  });
}

void Coordinator::FinishStage(Stage& stage, Clock::time_point now) {
  stage.state = StageState::kDone;
  const double elapsed = Seconds(now - stage.begin);
  stage.metrics["elapsed_seconds"] = elapsed;
  if (stage.detail.empty()) stage.detail = StrFormat("%.1f s", elapsed);
  if (options_.journal != nullptr) options_.journal->StageDone(stage.plan.name, stage.metrics, stage.detail);
  (void)JournalWritten();
  LogInfo(StrFormat("stage %s done in %.1f s", stage.plan.name.c_str(), elapsed));
}

void Coordinator::Fail(const std::string& message) {
  if (state_ != State::kRunning) return;
  state_ = State::kFailed;
  error_ = message;
  LogError(message);
  if (options_.journal != nullptr) options_.journal->Ended("failed", message);
}

// Small enough that every actor gets a share, large enough to fill a batch.
uint32_t Coordinator::ChunkOf(const Stage& stage) const {
  const uint64_t actors = static_cast<uint64_t>(options_.job.actors);
  const uint64_t share = std::max<uint64_t>(1, (stage.total + actors - 1) / actors);
  const uint64_t chunk = std::min(share, static_cast<uint64_t>(options_.job.rollout.task_episodes));
  if (stage.plan.arm.empty()) return static_cast<uint32_t>(chunk);
  // A question is many chains; a task should still keep an actor's batch full for a while.
  const uint64_t chains = options_.programs.at(stage.plan.arm).chains();
  const uint64_t most = 16 * static_cast<uint64_t>(options_.job.rollout.concurrent_episodes) / chains;
  return static_cast<uint32_t>(std::min(chunk, std::max<uint64_t>(1, most)));
}

void Coordinator::StartRollout(Stage& stage, Clock::time_point now) {
  LogInfo(StrCat("stage ", stage.plan.name, ": ", stage.total, " episodes"));
  if (options_.journal != nullptr) options_.journal->StageStarted(stage.plan.name, 0);
  if (!JournalWritten()) return;
  stage.state = StageState::kRunning;
  tasks_.Add(static_cast<size_t>(&stage - stages_.data()), 0, stage.total, ChunkOf(stage));
  if (stage.total == 0) FinishStage(stage, now);
}

void Coordinator::StartTrain(size_t index, std::unique_lock<std::mutex>& lock, Clock::time_point now) {
  lock.unlock();
  v1::StatsRequest request;
  request.mutable_filter()->add_without_tags(kEvaluationTag);
  request.mutable_filter()->add_without_tags(kHeldoutTag);
  const Result<v1::StatsReply> stats = store_->Stats(request, Deadline::After(kStoreDeadline));
  lock.lock();
  Stage& stage = stages_[index];
  if (!stats.ok()) return Fail("stage " + stage.plan.name + ": " + stats.status().message());
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

void Coordinator::ExpireLeases(Clock::time_point now) {
  for (const auto& failure : tasks_.Expire(now)) HandleTaskFailure(failure);
}

void Coordinator::HandleTaskFailure(const TaskTable::Failure& failure) {
  const Stage& stage = stages_[failure.task.stage];
  const std::string what = StrCat("stage ", stage.plan.name, ": episodes ", failure.task.first_episode, " to ",
                                  failure.task.first_episode + failure.task.episodes - 1, " failed on actor ",
                                  failure.actor, ": ", failure.reason);
  if (!failure.final) {
    LogWarning(what + "; given out again");
    return;
  }
  Fail(StrCat(what, " (failed ", failure.failures, " times, given up)"));
}

void Coordinator::CheckMembers(Clock::time_point now) {
  for (auto& [key, member] : members_) {
    // A learner is silent during a long step; only no progress at all is held against it.
    const double timeout = key.first == "actor"
                               ? options_.heartbeat_timeout_s
                               : std::max(options_.heartbeat_timeout_s, options_.job.progress_timeout_s);
    if (member.gone || Seconds(now - member.heard) < timeout) continue;
    member.gone = true;
    const std::string what =
        StrFormat("%s %u has not been heard of for %.0f s", key.first.c_str(), key.second, timeout);
    if (key.first == "actor") {
      LogWarning(what);
      for (const auto& failure : tasks_.FailAll(key.second, "its actor is not heard of", now))
        HandleTaskFailure(failure);
    } else {
      Fail(what);
    }
  }
}

void Coordinator::CheckProgress(Clock::time_point now) {
  if (Seconds(now - last_progress_) < options_.job.progress_timeout_s) return;
  std::vector<std::string> waiting;
  for (const Stage& stage : stages_)
    if (stage.state == StageState::kRunning)
      waiting.push_back(StrCat(stage.plan.name, " (", stage.done, " of ", stage.total,
                               stage.plan.kind == PlannedStage::Kind::kTrain ? " steps)" : " episodes)"));
  Fail(StrFormat("no progress for %.0f s (progress_timeout_s) in stage ", options_.job.progress_timeout_s) +
       StrJoin(waiting, ", "));
}

const v1::WeightVersion* Coordinator::WeightsOf(const std::string& name) const {
  for (const Stage& stage : stages_)
    if (stage.plan.name == name && stage.plan.kind == PlannedStage::Kind::kTrain) return &stage.published;
  const auto it = options_.weights.find(name);
  QUERN_CHECK(it != options_.weights.end(), name);
  return &it->second;
}

Coordinator::Stage* Coordinator::FindStage(const std::string& name) {
  for (Stage& stage : stages_)
    if (stage.plan.name == name) return &stage;
  return nullptr;
}

std::vector<std::string> Coordinator::WeightsToPlay(const Stage& stage) const {
  std::vector<std::string> weights = stage.plan.weights;
  if (!stage.plan.newest) return weights;
  const auto finished = [&](const std::string& name) {
    return std::none_of(stages_.begin(), stages_.end(), [&](const Stage& other) {
      return other.plan.name == name && other.state != StageState::kDone;
    });
  };
  for (const std::vector<std::string>& candidate : options_.plan.policy_line)
    if (std::all_of(candidate.begin(), candidate.end(), finished)) weights = candidate;
  return weights;
}

v1::PolicySpec Coordinator::PolicyOf(const Stage& stage, const std::vector<std::string>& weights) const {
  v1::PolicySpec policy;
  policy.set_name(stage.plan.policy);
  if (!stage.plan.player.empty()) {
    policy.set_player(stage.plan.player);
    for (const auto& [key, value] : stage.plan.player_options) (*policy.mutable_player_options())[key] = value;
    return policy;
  }
  for (const std::string& name : weights) *policy.add_weights() = *WeightsOf(name);
  SetSampling(options_.job, options_.reserved_token, stage.plan.evaluation, policy);
  return policy;
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
  json["seconds"] = Seconds(now - begin_);
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

Coordinator::State Coordinator::state() const {
  std::lock_guard lock(mutex_);
  return state_;
}

std::string Coordinator::error() const {
  std::lock_guard lock(mutex_);
  return error_;
}

std::string Coordinator::result_json() const {
  std::lock_guard lock(mutex_);
  return result_json_;
}

}  // namespace quern
