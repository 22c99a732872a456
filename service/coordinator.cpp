#include "service/coordinator.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/strings.h"
#include "service/chains.h"
#include "service/policies.h"
#include "transport/metric_list.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr uint32_t kRetryMs = 100;

// Gauges that only move when work gets done.
bool IsProgress(const std::string& gauge) {
  return gauge == "step" || gauge == "episodes" || gauge == "tokens" || gauge == "generated_tokens" || gauge == "turns";
}

// What NextStage hands out.
bool ForLearner(const PlannedStage& stage) {
  return stage.kind == PlannedStage::Kind::kTrain || stage.kind == PlannedStage::Kind::kScore;
}

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
  if (again) {
    Note(StrCat(request.role(), " ", request.index(), " has started again"));
    if (options_.counters != nullptr) options_.counters->Add(kRestarts, 1, {{"role", request.role()}});
  }
  if (again && request.role() == "actor") LoseActor(member, "its actor died and was started again", now);
  v1::HelloReply reply;
  flight_.Add(StrCat(request.role(), " ", request.index(), " says hello, pid ", request.pid()));
  reply.set_job_json(job_json_);
  reply.set_replay_address(options_.replay_address);
  reply.set_run_directory(options_.run_directory);
  if (const auto base = options_.weights.find(kBaseModel); base != options_.weights.end())
    *reply.mutable_base_model() = base->second;
  return reply;
}

v1::HeartbeatReply Coordinator::Heartbeat(const v1::HeartbeatRequest& request, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  MemberState& member = members_[{request.role(), request.index()}];
  member.member.set_role(request.role());
  member.member.set_index(request.index());
  member.member.set_activity(request.activity());
  member.episode = request.episode();
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
          stage.plan.name != request.activity().substr(0, request.activity().find(", ")))
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
  flight_.Add(StrCat("actor ", request.actor(), " is given episodes ", task->first_episode, " to ",
                     task->first_episode + task->episodes - 1, " of stage ", stage.plan.name));
  v1::RolloutTask& out = *reply.mutable_task();
  out.set_id(task->id);
  out.set_stage(stage.plan.name);
  *out.mutable_policy() = PolicyOf(stage, playing->second);
  out.set_first_episode(task->first_episode);
  out.set_episodes(task->episodes);
  out.set_seed(stage.plan.seed);
  out.set_one_at_a_time(task->killed);
  for (const uint64_t episode : stage.quarantined)
    if (episode >= task->first_episode && episode - task->first_episode < task->episodes) out.add_skip(episode);
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
  flight_.Add(StrCat("actor ", request.actor(), " has done episodes ", task->first_episode, " to ",
                     task->first_episode + task->episodes - 1, " of stage ", stages_[task->stage].plan.name));
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
  flight_.Add("the learner is given stage " + next->plan.name);
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
  flight_.Add(StrCat("the learner ends stage ", request.name(), request.error().empty() ? "" : ": ", request.error()));
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
  stage->seconds = ToSeconds(now - stage->begin);
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
  flight_.Add(StrCat("stage ", request.stage(), " publishes ", weights.name(), " version ", weights.version()));
  RecordProgress(now);
  if (options_.journal != nullptr) options_.journal->Published(stage->plan.name, weights);
  if (!JournalWritten()) return options_.journal->status();
  stage->published = weights;
  LogInfo(StrCat("stage ", stage->plan.name, ": weights ", weights.name(), " version ", weights.version(), ", hash ",
                 weights.content_hash()));
  return v1::PublishReply();
}

Result<v1::WeightVersion> Coordinator::FindWeights(const v1::OpenWeightsRequest& request) const {
  std::lock_guard lock(mutex_);
  const auto is_it = [&](const v1::WeightVersion& weights) {
    return !weights.path().empty() && weights.name() == request.name() && weights.version() == request.version() &&
           weights.content_hash() == request.content_hash();
  };
  for (const Stage& stage : stages_)
    if (is_it(stage.published)) return stage.published;
  for (const auto& [name, weights] : options_.weights)
    if (is_it(weights)) return weights;
  return NotFound(StrCat("no weights ", request.name(), " of version ", request.version(), " and hash ",
                         request.content_hash(), " were published"));
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
    out.set_heartbeat_age_seconds(ToSeconds(now - member.heard));
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

void Coordinator::UpdateGauges(Clock::time_point now) {
  if (options_.counters == nullptr) return;
  Metrics& metrics = *options_.counters;
  std::lock_guard lock(mutex_);
  std::map<std::string, std::pair<int, int>> alive_and_gone;
  std::map<std::string, double> silent;
  for (const auto& [key, member] : members_) {
    auto& [alive, gone] = alive_and_gone[key.first];
    ++(member.gone ? gone : alive);
    double& age = silent[key.first];
    if (!member.gone) age = std::max(age, ToSeconds(now - member.heard));
  }
  for (const auto& [role, counts] : alive_and_gone) {
    metrics.Set(kMembers, counts.first, {{"role", role}, {"state", "alive"}});
    metrics.Set(kMembers, counts.second, {{"role", role}, {"state", "gone"}});
    metrics.Set(kHeartbeatAge, silent[role], {{"role", role}});
  }
  for (const State state : {State::kRunning, State::kSucceeded, State::kFailed, State::kStopping})
    metrics.Set(kJobState, state_ == state ? 1 : 0, {{"state", StateName(state)}});
  for (const Stage& stage : stages_) {
    if (stage.state == StageState::kPending) continue;
    const double total = static_cast<double>(std::max<uint64_t>(1, stage.total));
    metrics.Set(kStageProgress, static_cast<double>(stage.done) / total, {{"stage", stage.plan.name}});
  }
  metrics.Set(kSinceProgress, state_ == State::kRunning ? ToSeconds(now - last_progress_) : 0);
}

void Coordinator::Note(const std::string& text) {
  LogWarning(text);
  flight_.Add(text);
  if (options_.on_event) options_.on_event(text);
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
