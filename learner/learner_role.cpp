#include "learner/learner_role.h"

#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "compute/device.h"
#include "learner/batch_source.h"
#include "learner/batch_statistics.h"
#include "learner/event_file.h"
#include "learner/heldout.h"
#include "learner/nccl_communicator.h"
#include "learner/probes.h"
#include "learner/rollout_check.h"
#include "learner/train_stage.h"
#include "learner/trainer_state.h"
#include "methods/sft.h"
#include "model/hf/content_hash.h"
#include "model/hf/model_directory.h"
#include "transport/metric_list.h"

namespace quern {

namespace {

constexpr int64_t kMostHeldoutRecords = 4096;

class Learner {
 public:
  explicit Learner(const LearnerRoleOptions& options)
      : options_(options),
        metrics_(options.metrics, kRoleLearner),
        pool_(options.threads),
        batch_options_(options.batch) {}

  Status Run() {
    QUERN_ASSIGN_OR_RETURN(ops_,
                           NewOps(options_.device, &pool_, options_.ranks == nullptr ? 0 : options_.ranks->rank()));
    if (const std::string lacks = RecipeLacksOnGpu(options_.precision); ops_->memory() != nullptr && !lacks.empty())
      return Unimplemented(StrCat(lacks, " is not there on a GPU; give device: cpu"));
    QUERN_ASSIGN_OR_RETURN(config_, LoadModelConfig(options_.model_directory));
    if (batch_options_.max_positions <= 0 || batch_options_.max_positions > config_.max_positions) {
      batch_options_.max_positions = config_.max_positions;
    }
    if (options_.ranks != nullptr && ops_->memory() != nullptr) {
      QUERN_ASSIGN_OR_RETURN(device_ranks_, NewNcclCommunicator(*options_.ranks, *ops_, {}));
    }
    trainer_ = std::make_unique<Trainer>(*ops_, config_, options_.precision, batch_options_.max_positions,
                                         TrainerOptions{.optimizer = {},
                                                        .memory = options_.optimizer,
                                                        .ranks = options_.ranks,
                                                        .device_ranks = device_ranks_.get(),
                                                        .shards = options_.shards});
    // Nothing was compared yet.
    for (const char* stat : {"max", "mean"}) metrics_->Set(kLearnerRolloutDiff, std::nan(""), {{"stat", stat}});
    while (!options_.stop->load()) {
      QUERN_ASSIGN_OR_RETURN(const v1::NextStageReply next, NextStage());
      if (next.stop()) {
        // So that what was said is heard before this process ends.
        if (options_.ranks != nullptr) (void)options_.ranks->Barrier().ok();
        return {};
      }
      if (!next.has_stage()) {
        if (leads()) std::this_thread::sleep_for(std::chrono::milliseconds(std::max(5u, next.retry_ms())));
        continue;
      }
      v1::StageDoneRequest done;
      done.set_name(next.stage().name());
      metrics_->Set(kLearnerTraining, 1);
      const Status trained = RunStage(next.stage(), *done.mutable_metrics());
      metrics_->Set(kLearnerTraining, 0);
      events_.reset();
      if (trained.code() == StatusCode::kCancelled) return {};
      if (!trained.ok()) {
        LogError(next.stage().name() + ": " + trained.ToString());
        done.set_error(trained.ToString());
        metrics_->Add(kLearnerFailures);
      }
      if (!leads()) continue;
      QUERN_RETURN_IF_ERROR(Call<v1::StageDoneReply>("StageDone", done).status());
      if (trained.ok()) QUERN_RETURN_IF_ERROR(Checkpoints(next.stage()).Remove());
    }
    return {};
  }

 private:
  bool leads() const { return options_.ranks == nullptr || options_.ranks->rank() == 0; }

  // Rank 0's words become everyone's.
  Status Share(std::string& words) {
    return options_.ranks == nullptr ? Status() : options_.ranks->BroadcastText(words, 0);
  }

  Result<v1::NextStageReply> NextStage() {
    v1::NextStageReply next;
    if (leads()) {
      QUERN_ASSIGN_OR_RETURN(const bool go_on, Heartbeat("waiting for a stage", {}));
      if (go_on) {
        QUERN_ASSIGN_OR_RETURN(next, Call<v1::NextStageReply>("NextStage", v1::NextStageRequest()));
      } else {
        next.set_stop(true);
      }
    }
    std::string bytes = next.SerializeAsString();
    QUERN_RETURN_IF_ERROR(Share(bytes));
    if (!next.ParseFromString(bytes)) return DataLoss("rank 0 said what is no stage");
    return next;
  }

  template <typename Reply, typename Request>
  Result<Reply> Call(const std::string& method, const Request& request) {
    return options_.coordinator->Call<Reply>("coordinator." + method, request, Deadline::After(options_.call_timeout));
  }

  Result<bool> Heartbeat(const std::string& activity, const std::map<std::string, double>& gauges) {
    v1::HeartbeatRequest request;
    request.set_role("learner");
    request.set_activity(activity);
    request.mutable_gauges()->insert(gauges.begin(), gauges.end());
    QUERN_ASSIGN_OR_RETURN(const v1::HeartbeatReply reply, Call<v1::HeartbeatReply>("Heartbeat", request));
    last_heartbeat_ = Clock::now();
    return !reply.stop();
  }

  Result<std::shared_ptr<const Checkpoint>> OpenVersion(const v1::WeightVersion& version) {
    const std::string& dir = version.version() == 0 ? options_.model_directory : version.path();
    QUERN_RETURN_IF_ERROR(CheckContentHash(dir, version.content_hash()));
    QUERN_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::Open(dir));
    if (Status matches = checkpoint->CheckMatches(config_); !matches.ok()) return matches.Annotate(dir);
    return checkpoint;
  }

  Status LoadIntoTrainer(const v1::WeightVersion& version) {
    QUERN_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, OpenVersion(version));
    return trainer_->CopyFrom(checkpoint->Source());
  }

  using Metrics = google::protobuf::Map<std::string, double>;

  DrawOptions Draw(const TrainStageOptions& o) const {
    DrawOptions draw;
    draw.replay = options_.replay;
    draw.tokenizer = options_.tokenizer.get();
    draw.batch = batch_options_;
    draw.batch.rewards.kind = o.reward_scale;
    draw.batch.rewards.temperature = o.reward_temperature;
    draw.without_tags = o.without_tags;
    draw.watermark = o.watermark;
    draw.seed = o.seed;
    draw.top_fraction = o.top_fraction;
    draw.selector = o.selector;
    draw.priority_exponent = o.priority_exponent;
    draw.window = o.window;
    draw.limits[kRealData] = static_cast<uint64_t>(o.mixture.real_records);
    draw.timeout = options_.call_timeout;
    return draw;
  }

  Result<HeldoutSet> Heldout(const TrainStageOptions& o) const {
    DrawOptions draw = Draw(o);
    draw.tags = {kHeldoutTag};
    draw.without_tags.clear();
    draw.top_fraction = 0;
    draw.selector = v1::SELECTOR_UNIFORM;
    draw.window = 0;
    draw.limits = {};
    return HeldoutSet::Load(draw, kMostHeldoutRecords);
  }

  Status RunHeldoutStage(const v1::TrainStage& stage, const TrainStageOptions& o, Metrics& metrics) {
    if (stage.initial_size() != 1) {
      return InvalidArgument(StrCat(stage.name(), ": ", stage.initial_size(), " weight versions to score"));
    }
    QUERN_ASSIGN_OR_RETURN(const HeldoutSet heldout, Heldout(o));
    if (heldout.empty()) return FailedPrecondition(StrCat("no record is tagged ", kHeldoutTag));
    QUERN_RETURN_IF_ERROR(LoadIntoTrainer(stage.initial(0)));
    trainer_->set_max_micro_batch_tokens(o.micro_batch_tokens);
    QUERN_RETURN_IF_ERROR(trainer_->Begin(o.optimizer, std::nullopt));
    const HeldoutLoss measured = heldout.Measure(*trainer_);
    metrics["heldout_loss"] = measured.loss;
    metrics["heldout_std_error"] = measured.std_error;
    metrics["heldout_records"] = static_cast<double>(measured.records);
    return {};
  }

  // Counts what there is, measures what the controller lacks, and says so in `metrics`.
  Result<Mixture> PrepareMixture(const v1::TrainStage& stage, const TrainStageOptions& o, const HeldoutSet& heldout,
                                 Metrics& metrics) {
    using Policy = MixtureOptions::Policy;
    const DrawOptions draw = Draw(o);
    QUERN_ASSIGN_OR_RETURN(const DataSummary data, DescribeData(draw));
    MixtureState state;
    int64_t classes = 0;
    std::map<uint32_t, uint64_t> depths;
    for (size_t q = 0; q < kDataClasses; ++q) {
      const v1::PartSummary& part = data[q];
      if (part.records() == 0) continue;
      ++classes;
      state.n[q] = static_cast<double>(part.unique());
      metrics[StrCat("unique_", kDataClassNames[q])] = state.n[q];
      metrics[StrCat("duplicates_", kDataClassNames[q])] = 1 - state.n[q] / static_cast<double>(part.records());
      for (const auto& [depth, records] : part.depths()) depths[depth] += records;
    }
    for (const auto& [depth, records] : depths) metrics[StrCat("depth_", depth)] = static_cast<double>(records);
    if (classes == 0) return FailedPrecondition(StrCat("no record to train on up to number ", o.watermark));
    if (o.mixture.policy == Policy::kRealOnly && state.n[kRealData] == 0) {
      return FailedPrecondition("mixture.policy is real_only and there are no real records");
    }
    if (o.batch_size < classes) {
      return InvalidArgument(StrCat("batch_size ", o.batch_size, " is less than the ", classes,
                                    " classes of data (real, verified, hinted, unverified) that a batch is to mix"));
    }
    if (o.mixture.policy == Policy::kController && state.n[kRealData] > 0 && classes > 1) {
      ProbeContext context;
      context.trainer = trainer_.get();
      context.optimizer = o.optimizer;
      context.draw = draw;
      context.draw.selector = v1::SELECTOR_UNIFORM;  // probes pass over their records many times
      context.batch_size = o.batch_size;
      context.heldout = &heldout;
      // The untrained model (version 0): a stage's own first weights may have seen the real data already.
      context.reset = [&] { return LoadIntoTrainer(v1::WeightVersion()); };
      double steps = 0;
      context.alive = [&](const std::string& activity) -> Status {
        ++steps;
        if (!leads()) return {};
        if (options_.stop->load()) return Cancelled("stopped");
        if (Clock::now() - last_heartbeat_ < std::chrono::milliseconds(500)) return {};
        // "turns" counts as progress for the job's deadline and not as the stage's steps.
        QUERN_ASSIGN_OR_RETURN(const bool go_on, Heartbeat(StrCat(stage.name(), ", ", activity), {{"turns", steps}}));
        return go_on ? Status() : Cancelled("the coordinator asked to stop");
      };
      std::map<std::string, double> measured;
      QUERN_RETURN_IF_ERROR(MeasureMixture(context, o.mixture, data, state, measured));
      metrics.insert(measured.begin(), measured.end());
    }
    return Mixture(o.mixture, state);
  }

  Status WaitForRecords(const v1::TrainStage& stage, SampleLimiter& limiter, int64_t step, int64_t steps) {
    const auto alive = [&](const std::string& activity) -> Status {
      if (options_.stop->load()) return Cancelled("stopped");
      if (Clock::now() - last_heartbeat_ < std::chrono::milliseconds(500)) return {};
      QUERN_ASSIGN_OR_RETURN(const bool go_on, Heartbeat(StrCat(stage.name(), ", ", activity),
                                                         {{"step", static_cast<double>(step)},
                                                          {"max_steps", static_cast<double>(steps)}}));
      return go_on ? Status() : Cancelled("the coordinator asked to stop");
    };
    const Status status = limiter.Wait(step, alive, [&](const std::string& text) {
      LogWarning(StrCat(stage.name(), ": ", text));
      if (options_.on_event) options_.on_event(StrCat(stage.name(), ": ", text));
    });
    return status.code() == StatusCode::kCancelled ? status : status.Annotate(stage.name());
  }

  Status RunStage(const v1::TrainStage& stage, Metrics& metrics) {
    QUERN_ASSIGN_OR_RETURN(TrainStageOptions o, ParseTrainStage(stage));
    if (o.method == kHeldoutMethod) return RunHeldoutStage(stage, o, metrics);
    if (o.method == kRolloutMethod) return RunRolloutStage(stage, o, metrics);
    const bool q_sft = o.method == "q_sft";
    if (stage.initial_size() != (q_sft ? 2 : 1)) {
      return InvalidArgument(StrCat(stage.name(), ": ", stage.initial_size(), " initial weight versions"));
    }
    o.q_sft.reserved_token = options_.reserved_token;
    trainer_->set_max_micro_batch_tokens(o.micro_batch_tokens);
    const auto begin = Clock::now();
    const bool controlled = o.mixture.policy == MixtureOptions::Policy::kController;
    HeldoutSet heldout;
    if (controlled) {
      QUERN_ASSIGN_OR_RETURN(heldout, Heldout(o));
    }
    const auto start = [&]() -> Status {
      QUERN_RETURN_IF_ERROR(LoadIntoTrainer(stage.initial(stage.initial_size() - 1)));
      return trainer_->Begin(o.optimizer, q_sft ? std::optional<float>(o.q_sft.polyak) : std::nullopt);
    };
    StageCheckpoints checkpoints = Checkpoints(stage);
    std::optional<StageState> before;
    std::string any = checkpoints.any() ? "any" : "none";
    QUERN_RETURN_IF_ERROR(Share(any));
    if (any == "any") {
      QUERN_RETURN_IF_ERROR(start());
      if (leads()) {
        QUERN_ASSIGN_OR_RETURN(before, LoadState(checkpoints));
      }
      std::string step = before ? StrCat(before->step) : "";
      QUERN_RETURN_IF_ERROR(Share(step));
      if (!leads() && !step.empty()) {
        QUERN_ASSIGN_OR_RETURN(before, LoadState(checkpoints));
        if (!before || StrCat(before->step) != step)
          return Internal(
              StrCat(checkpoints.directory(), ": rank 0 goes on after step ", step, ", which is not there"));
      }
    }
    if (before) {
      LogInfo(StrCat(stage.name(), ": going on after step ", before->step));
      for (const auto& [name, value] : before->metrics) metrics[name] = value;
    }
    Result<Mixture> prepared =
        before ? Mixture(o.mixture, before->mixture) : PrepareMixture(stage, o, heldout, metrics);
    QUERN_RETURN_IF_ERROR(prepared.status());
    Mixture& mixture = *prepared;
    mixture.set_progress({.halvings = o.halvings, .checked = false, .best_check = 0});
    if (!before) {
      QUERN_RETURN_IF_ERROR(start());
      QUERN_ASSIGN_OR_RETURN(const RolloutDifference difference,
                             CompareRolloutsOf(stage.initial(stage.initial_size() - 1), stage, o));
      ReportRollouts(stage.name(), difference, metrics);
    }
    const std::map<std::string, double> prepared_metrics(metrics.begin(), metrics.end());

    std::unique_ptr<Objective> objective = std::make_unique<SftObjective>();
    std::unique_ptr<Weights> behaviour;
    Trainer::Bootstrap bootstrap{nullptr, o.q_sft.support_epsilon, o.q_sft.support_top_p, o.q_sft.reserved_token};
    if (q_sft) {
      objective = std::make_unique<QSftObjective>(o.q_sft, config_.vocab_size);
      QUERN_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> phi, OpenVersion(stage.initial(0)));
      behaviour = std::make_unique<Weights>(*ops_, config_, options_.precision, false);
      QUERN_RETURN_IF_ERROR(behaviour->Load(phi->Source()));
      bootstrap.behaviour = behaviour.get();
    }

    const int64_t steps = o.optimizer.max_steps;
    SampleLimiter limiter(o.limits, o.batch_size, [this, draw = Draw(o)] { return CountRecords(draw); });
    BatchSource source(Draw(o), DrawPlan(mixture, o.batch_size, steps), steps);
    const double omega = GeneratedShare(mixture.Current(0, steps));
    const int64_t check_every =
        controlled && !heldout.empty() && o.mixture_checks > 0 ? std::max<int64_t>(1, steps / o.mixture_checks) : steps;
    BatchStatistics statistics;
    int64_t tokens = 0;
    double seconds_before = 0;
    int64_t first_step = 0;
    if (before) {
      first_step = before->step;
      tokens = before->tokens;
      seconds_before = before->seconds;
      mixture.set_progress(before->progress);
    }
    const auto save = [&](int64_t step) -> Status {
      // Training is worth more than the checkpoint: without room for it the stage goes on.
      const auto save_begin = Clock::now();
      QUERN_RETURN_IF_ERROR(trainer_->CollectState());
      if (!leads()) return Status();
      const Status saved = SaveState(checkpoints, {.step = step,
                                                   .tokens = tokens,
                                                   .seconds = seconds_before + SecondsSince(begin),
                                                   .metrics = prepared_metrics,
                                                   .mixture = mixture.state(),
                                                   .progress = mixture.progress()});
      if (!saved.ok()) {
        LogWarning(StrCat(stage.name(), ": no checkpoint of step ", step, ": ", saved.message()));
        return Status();
      }
      metrics_->Observe(kLearnerCheckpoint, SecondsSince(save_begin));
      metrics_->Set(kLearnerCheckpointTime, UnixSeconds());
      return Status();
    };
    StepReport last;
    for (int64_t step = first_step; step < steps; ++step) {
      if (options_.ranks == nullptr && options_.stop->load()) {
        if (step > first_step && checkpoints.enabled()) QUERN_RETURN_IF_ERROR(save(step));
        return Cancelled("stopped");
      }
      const auto wait_begin = Clock::now();
      QUERN_RETURN_IF_ERROR(WaitForRecords(stage, limiter, step, steps));
      QUERN_ASSIGN_OR_RETURN(TrainingBatch batch, source.Next(step));
      const double wait = SecondsSince(wait_begin);
      const auto step_begin = Clock::now();
      const Shares shares = mixture.Current(step, steps);
      statistics.Add(batch, WeightRows(shares, batch));
      objective->SetProgress(static_cast<double>(step) / static_cast<double>(steps));
      QUERN_ASSIGN_OR_RETURN(last, trainer_->Step(batch, *objective, q_sft ? &bootstrap : nullptr));
      tokens += last.tokens;
      CountStep(last, wait, GeneratedShare(shares));
      const bool final_step = step + 1 == steps;
      std::map<std::string, double> numbers = {{"omega", GeneratedShare(shares)}};
      CountAges(last, batch, stage.version(), numbers);
      const bool check = !final_step && (step + 1) % check_every == 0;
      if (check) {
        numbers["heldout_loss"] = heldout.Measure(*trainer_).loss;
        metrics_->Set(kLearnerHeldout, numbers["heldout_loss"]);
        if (mixture.ObserveCheck(numbers["heldout_loss"], numbers["omega"])) {
          LogWarning(StrCat(stage.name(), ": the held-out loss rose; the generated share is halved"));
        }
      }
      if (check || final_step || step % options_.log_every_steps == 0) {
        numbers.merge(statistics.Report());
        LogStep(stage.name(), step + 1, last, numbers, wait, SecondsSince(step_begin));
      }
      bool leave = options_.ranks != nullptr && options_.stop->load();
      if (leads() && Clock::now() - last_heartbeat_ > std::chrono::milliseconds(500)) {
        QUERN_ASSIGN_OR_RETURN(
            const bool go_on,
            Heartbeat(stage.name(), {{"step", static_cast<double>(step + 1)},
                                     {"max_steps", static_cast<double>(steps)},
                                     {"loss", last.loss},
                                     {"tokens_per_second", static_cast<double>(tokens) / SecondsSince(begin)}}));
        leave = leave || !go_on;
      }
      const bool due = !final_step && ((leave && checkpoints.enabled()) || checkpoints.Due(step + 1));
      std::string then = StrCat(due ? "save " : "", leave ? "leave" : "");
      QUERN_RETURN_IF_ERROR(Share(then));
      if (then.starts_with("save")) QUERN_RETURN_IF_ERROR(save(step + 1));
      if (then.ends_with("leave")) return Cancelled("asked to stop");
    }
    const TrainerMemory memory = trainer_->Memory();
    const auto text = [](int64_t bytes) { return HumanBytes(static_cast<double>(bytes)); };
    LogInfo(StrCat(stage.name(), ": memory: weights ", text(memory.parameters), ", gradients ", text(memory.gradients),
                   ", moments ", text(memory.moments), ", packed weights ", text(memory.packed), ", target ",
                   text(memory.target), ", activations ", text(memory.activations)));
    metrics["omega"] = omega;
    if (controlled) {
      if (!heldout.empty() && mixture.state().n[kRealData] > 0) {
        const double loss = heldout.Measure(*trainer_).loss;
        metrics["heldout_loss"] = loss;
        mixture.ObservePhase(o.phases, loss, omega);
      }
      metrics["halvings"] = mixture.halvings();
    }
    if (leads()) QUERN_RETURN_IF_ERROR(Publish(stage, o));
    const double seconds = seconds_before + SecondsSince(begin);
    metrics["loss"] = last.loss;
    metrics["steps"] = static_cast<double>(steps);
    metrics["tokens"] = static_cast<double>(tokens);
    metrics["seconds"] = seconds;
    metrics["tokens_per_second"] = static_cast<double>(tokens) / seconds;
    if (config_.selective_attention) metrics["live_share"] = last.live_share;
    for (const auto& [name, value] : last.method) metrics[name] = value;
    return {};
  }

  // The key holds what the stage's numbers are a function of.
  StageCheckpoints Checkpoints(const v1::TrainStage& stage) const {
    const OptimizerMemory& memory = options_.optimizer;
    std::string key = StrCat(stage.method(), " ", RecipeName(options_.precision), " ", stage.options_json());
    if (memory.fp8_moments) key += StrCat(" fp8-moments ", memory.block);
    if (memory.bf16_masters) key += " bf16-masters";
    if (options_.shards > 1) key += StrCat(" shards ", options_.shards);
    if (ops_->memory() != nullptr) key += StrCat(" ", ops_->name());
    for (const v1::WeightVersion& initial : stage.initial()) key += " " + initial.content_hash();
    return StageCheckpoints(options_.checkpoints, stage.name(), key);
  }

  // A train stage between two steps, beside what the trainer holds.
  struct StageState {
    int64_t step = 0;
    int64_t tokens = 0;
    double seconds = 0;
    std::map<std::string, double> metrics;  // of what came before the first step
    MixtureState mixture;
    Mixture::Progress progress;
  };

  Status SaveState(StageCheckpoints& checkpoints, const StageState& state) {
    const nlohmann::json json = {{"tokens", state.tokens},
                                 {"seconds", state.seconds},
                                 {"metrics", state.metrics},
                                 {"sigma2d", state.mixture.sigma2d},
                                 {"n", state.mixture.n},
                                 {"c2", state.mixture.c2},
                                 {"halvings", state.progress.halvings},
                                 {"checked", state.progress.checked},
                                 {"best_check", state.progress.best_check}};
    TrainerState arrays(*ops_, *trainer_);
    arrays.Read();
    const Status saved = checkpoints.Save({.step = state.step, .state = json.dump()}, arrays.arrays());
    trainer_->ReleaseState();
    return saved;
  }

  // Also makes the trainer what it was.
  Result<std::optional<StageState>> LoadState(StageCheckpoints& checkpoints) {
    TrainerState arrays(*ops_, *trainer_);
    QUERN_ASSIGN_OR_RETURN(const std::optional<CheckpointMark> mark, checkpoints.Load(arrays.arrays()));
    if (!mark) return std::optional<StageState>();
    arrays.Write();
    const nlohmann::json json = nlohmann::json::parse(mark->state);
    StageState state;
    state.step = mark->step;
    state.tokens = json.at("tokens");
    state.seconds = json.at("seconds");
    for (const auto& [name, value] : json.at("metrics").items())
      if (value.is_number()) state.metrics[name] = value;
    state.mixture.sigma2d = json.at("sigma2d");
    state.mixture.n = json.at("n");
    state.mixture.c2 = json.at("c2");
    state.progress = {json.at("halvings"), json.at("checked"), json.at("best_check")};
    QUERN_RETURN_IF_ERROR(trainer_->Resume(state.step));
    return std::optional<StageState>(state);
  }

  // How far the policy has gone from those that wrote the batch.
  void CountAges(const StepReport& report, const TrainingBatch& batch, uint64_t version,
                 std::map<std::string, double>& numbers) {
    for (const uint64_t wrote : batch.versions)
      if (wrote > 0 && wrote < version) metrics_->Observe(kLearnerStaleness, static_cast<double>(version - wrote));
    double difference = 0, ratio = 0, sampled = 0;
    for (size_t i = 0; i < report.log_probs.size() && i < batch.behaviour_log_probs.size(); ++i) {
      const auto stored = static_cast<double>(batch.behaviour_log_probs[i]);
      if (!std::isfinite(stored)) continue;
      const double now = static_cast<double>(report.log_probs[i]);
      difference += stored - now;
      ratio += std::exp(std::min(now - stored, 30.0));
      sampled += 1;
    }
    if (sampled == 0) return;
    numbers["policy_kl"] = difference / sampled;
    numbers["importance_ratio"] = ratio / sampled;
    metrics_->Set(kLearnerKl, difference / sampled);
    metrics_->Set(kLearnerRatio, ratio / sampled);
  }

  // NUM-1, live: what actors stored is what is computed here with the same weights, to the bit. Compares records of the
  // `last` of the stage's weights, which the trainer holds. Evaluated episodes count as well; nothing is learnt here.
  Result<RolloutDifference> CompareRolloutsOf(const v1::WeightVersion& last, const v1::TrainStage& stage,
                                              const TrainStageOptions& o) {
    QUERN_ASSIGN_OR_RETURN(const auto written,
                           FindRollouts(*options_.replay, last, {stage.initial().begin(), stage.initial().end()},
                                        o.without_tags, Deadline::After(options_.call_timeout)));
    RolloutDifference difference;
    for (const auto& [first, records] : written) {
      std::unique_ptr<Weights> behaviour;
      for (const v1::WeightVersion& version : stage.initial()) {
        if (first.empty() || behaviour != nullptr || version.content_hash() != first) continue;
        QUERN_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, OpenVersion(version));
        behaviour = std::make_unique<Weights>(*ops_, config_, options_.precision, false);
        QUERN_RETURN_IF_ERROR(behaviour->Load(checkpoint->Source()));
      }
      difference.Add(CompareRollouts(*ops_, *trainer_, behaviour.get(), o.q_sft, options_.reserved_token, records));
    }
    return difference;
  }

  void ReportRollouts(const std::string& stage, const RolloutDifference& difference, Metrics& metrics) {
    if (difference.tokens == 0) return;
    metrics_->Add(kLearnerRolloutChecked, difference.tokens);
    metrics_->Set(kLearnerRolloutDiff, difference.largest, {{"stat", "max"}});
    metrics_->Set(kLearnerRolloutDiff, difference.mean(), {{"stat", "mean"}});
    metrics["rollout_logprob_diff"] = difference.largest;
    metrics["rollout_logprobs_checked"] = difference.tokens;
    if (!(difference.largest <= 0))
      LogWarning(StrFormat("%s: actors' log-probabilities differ from the trainer's by up to %g (%.0f tokens; %s)",
                           stage.c_str(), difference.largest, difference.tokens, difference.worst.c_str()));
  }

  // A job's last look at its rollouts: those of every version that played.
  Status RunRolloutStage(const v1::TrainStage& stage, const TrainStageOptions& o, Metrics& metrics) {
    RolloutDifference all;
    double policies = 0;
    for (const v1::WeightVersion& version : stage.initial()) {
      QUERN_RETURN_IF_ERROR(LoadIntoTrainer(version));
      QUERN_RETURN_IF_ERROR(trainer_->Begin(o.optimizer, std::nullopt));
      QUERN_ASSIGN_OR_RETURN(const RolloutDifference difference, CompareRolloutsOf(version, stage, o));
      all.Add(difference);
      policies += difference.tokens > 0 ? 1 : 0;
    }
    metrics["versions_checked"] = policies;
    ReportRollouts(stage.name(), all, metrics);
    return {};
  }

  void CountStep(const StepReport& report, double wait, double generated_share) {
    metrics_->Add(kLearnerSteps);
    metrics_->Add(kLearnerTokens, static_cast<double>(report.tokens));
    metrics_->Observe(kLearnerPhase, wait, {{"phase", "wait"}});
    metrics_->Observe(kLearnerPhase, report.seconds.forward, {{"phase", "forward"}});
    metrics_->Observe(kLearnerPhase, report.seconds.backward, {{"phase", "backward"}});
    metrics_->Observe(kLearnerPhase, report.seconds.optimizer, {{"phase", "optim"}});
    metrics_->Set(kLearnerLoss, report.loss, {{"term", "total"}});
    for (const auto& [name, value] : report.method) metrics_->Set(kLearnerLoss, value, {{"term", name}});
    metrics_->Set(kLearnerEntropy, report.entropy);
    metrics_->Set(kLearnerGradient, report.grad_norm);
    metrics_->Set(kLearnerRate, report.learning_rate);
    metrics_->Set(kLearnerShare, generated_share);
  }

  // The numbers of `line` as an event of the stage's file. Who looks at them can do without: a failure is a warning.
  void WriteEvent(const std::string& stage, int64_t step, const nlohmann::ordered_json& line) {
    if (options_.tensorboard_directory.empty()) return;
    if (events_ == nullptr) {
      Result<std::unique_ptr<EventFile>> made = EventFile::Create(JoinPath(options_.tensorboard_directory, stage));
      if (!made.ok()) return LogWarning(made.status().message());
      events_ = std::move(*made);
    }
    std::vector<std::pair<std::string, double>> values;
    for (const auto& [name, value] : line.items())
      if (value.is_number() && name != "step" && name != "time") values.emplace_back(name, value.get<double>());
    if (const Status status = events_->Write(step, values); !status.ok()) LogWarning(status.message());
  }

  // Of every layer, "NAME.LAYER".
  void LogFp8(const StepReport& report, nlohmann::ordered_json& line) {
    for (size_t i = 0; i < report.fp8.size(); ++i) {
      const StepReport::Fp8Layer& layer = report.fp8[i];
      const GateLinearCorrelation gate = CorrelateGateAndLinear(trainer_->parameters(), static_cast<int64_t>(i));
      line[StrCat("fp8_saturated.", i)] = layer.saturated;
      line[StrCat("fp8_flushed.", i)] = layer.flushed;
      line[StrCat("fp8_gradient_saturated.", i)] = layer.gradient_saturated;
      line[StrCat("fp8_gradient_flushed.", i)] = layer.gradient_flushed;
      line[StrCat("linear_amax.", i)] = layer.linear_amax;
      line[StrCat("gate_linear_correlation.", i)] = gate.largest;
      const std::string number = std::to_string(i);
      metrics_->Set(kLearnerSaturated, layer.saturated, {{"layer", number}, {"of", "activations"}});
      metrics_->Set(kLearnerSaturated, layer.gradient_saturated, {{"layer", number}, {"of", "gradients"}});
      metrics_->Set(kLearnerFlushed, layer.flushed, {{"layer", number}, {"of", "activations"}});
      metrics_->Set(kLearnerFlushed, layer.gradient_flushed, {{"layer", number}, {"of", "gradients"}});
      metrics_->Set(kLearnerCorrelation, gate.largest, {{"layer", number}});
      metrics_->Set(kLearnerLinearAmax, layer.linear_amax, {{"layer", number}});
    }
  }

  void LogStep(const std::string& stage, int64_t step, const StepReport& report,
               const std::map<std::string, double>& mixture, double wait, double seconds) {
    if (!leads()) return;
    nlohmann::ordered_json line = {{"stage", stage},
                                   {"step", step},
                                   {"loss", report.loss},
                                   {"log_prob", report.mean_log_prob},
                                   {"entropy", report.entropy},
                                   {"grad_norm", report.grad_norm},
                                   {"learning_rate", report.learning_rate},
                                   {"tokens", report.tokens},
                                   {"loss_tokens", report.loss_tokens},
                                   {"wait_seconds", wait},
                                   {"step_seconds", seconds},
                                   {"time", UnixSeconds()}};
    if (config_.selective_attention) line["live_share"] = report.live_share;
    for (const auto& [name, value] : report.method) line[name] = value;
    LogFp8(report, line);
    for (const auto& [name, value] : mixture) line[name] = value;
    WriteEvent(stage, step, line);
    if (options_.metrics_path.empty()) return;
    std::FILE* file = std::fopen(options_.metrics_path.c_str(), "a");
    if (file == nullptr) return;
    std::fputs((line.dump() + "\n").c_str(), file);
    std::fclose(file);
  }

  Status Publish(const v1::TrainStage& stage, const TrainStageOptions& o) {
    const auto begin = Clock::now();
    v1::PublishRequest request;
    request.set_stage(stage.name());
    v1::WeightVersion& weights = *request.mutable_weights();
    weights.set_name(o.weights_name);
    weights.set_version(stage.version());
    weights.set_step(static_cast<uint64_t>(trainer_->step()));
    weights.set_generation_depth(o.generation_depth);
    const std::string dir = JoinPath(options_.weights_directory, StrCat(o.weights_name, "-", weights.version()));
    weights.set_path(dir);
    // Seen whole or not at all. fp32: what the learner goes on from is what it had.
    const std::string unfinished = dir + ".unfinished";
    QUERN_RETURN_IF_ERROR(RemoveTree(unfinished));
    QUERN_RETURN_IF_ERROR(
        SaveModelDirectory(unfinished, config_, OnHost(*ops_, trainer_->Source()),
                           {.dtype = DType::kF32, .source_dir = options_.model_directory, .generation = std::nullopt}));
    QUERN_ASSIGN_OR_RETURN(const std::string hash, DirectoryContentHash(unfinished));
    // A learner that died after it had published comes here again, and has the same to say.
    const Result<std::string> there = DirectoryContentHash(dir);
    if (!there.ok() || *there != hash) {
      QUERN_RETURN_IF_ERROR(RemoveTree(dir));
      QUERN_RETURN_IF_ERROR(RenamePath(unfinished, dir));
    } else {
      QUERN_RETURN_IF_ERROR(RemoveTree(unfinished));
    }
    weights.set_content_hash(hash);
    if (hash == last_hash_) LogWarning(stage.name() + ": published weights equal the previous version's, " + hash);
    last_hash_ = hash;
    QUERN_RETURN_IF_ERROR(Call<v1::PublishReply>("Publish", request).status());
    metrics_->Observe(kLearnerPhase, SecondsSince(begin), {{"phase", "publish"}});
    metrics_->Set(kLearnerVersion, static_cast<double>(weights.version()));
    return {};
  }

  const LearnerRoleOptions& options_;
  MetricsOrOwn metrics_;
  std::unique_ptr<EventFile> events_;  // of the stage under way
  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Communicator> device_ranks_;
  BatchOptions batch_options_;
  ModelConfig config_;
  std::unique_ptr<Trainer> trainer_;
  Clock::time_point last_heartbeat_{};
  std::string last_hash_;
};

}  // namespace

Status RunLearner(const LearnerRoleOptions& options) { return Learner(options).Run(); }

}  // namespace quern
