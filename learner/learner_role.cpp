#include "learner/learner_role.h"

#include <cmath>
#include <map>
#include <optional>
#include <thread>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "compute/device.h"
#include "learner/batch_source.h"
#include "learner/batch_statistics.h"
#include "learner/heldout.h"
#include "learner/nccl_communicator.h"
#include "learner/probes.h"
#include "learner/rollout_check.h"
#include "learner/stage_state.h"
#include "learner/step_log.h"
#include "learner/train_stage.h"
#include "learner/weight_version.h"
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
        log_(*metrics_.get(), options.metrics_path, options.tensorboard_directory),
        pool_(options.threads),
        batch_options_(options.batch) {}

  Status Run() {
    QUERN_ASSIGN_OR_RETURN(ops_,
                           NewOps(options_.device, &pool_, options_.ranks == nullptr ? 0 : options_.ranks->rank()));
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
      log_.EndStage();
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

  // As products read them, for those that are only asked.
  Result<std::unique_ptr<Weights>> LoadWeights(const v1::WeightVersion& version) {
    QUERN_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, OpenVersion(version));
    auto weights = std::make_unique<Weights>(*ops_, config_, options_.precision, false);
    QUERN_RETURN_IF_ERROR(weights->Load(checkpoint->Source()));
    return weights;
  }

  using Numbers = google::protobuf::Map<std::string, double>;

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

  Status RunHeldoutStage(const v1::TrainStage& stage, const TrainStageOptions& o, Numbers& metrics) {
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
                                 Numbers& metrics) {
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

  Status RunStage(const v1::TrainStage& stage, Numbers& metrics) {
    QUERN_ASSIGN_OR_RETURN(TrainStageOptions o, ParseTrainStage(stage));
    if (o.method == kHeldoutMethod) return RunHeldoutStage(stage, o, metrics);
    if (o.method == kRolloutMethod) return RunRolloutStage(stage, o, metrics);
    if (stage.initial_size() != (o.method == "q_sft" ? 2 : 1))
      return InvalidArgument(StrCat(stage.name(), ": ", stage.initial_size(), " initial weight versions"));
    o.q_sft.reserved_token = options_.reserved_token;
    trainer_->set_max_micro_batch_tokens(o.micro_batch_tokens);
    TrainRun run(stage, o, Checkpoints(stage));
    if (run.controlled()) {
      QUERN_ASSIGN_OR_RETURN(run.heldout, Heldout(o));
    }
    QUERN_ASSIGN_OR_RETURN(run.restored, Restore(run));
    if (!run.restored) QUERN_RETURN_IF_ERROR(Begin(run));
    metrics.insert(run.state.metrics.begin(), run.state.metrics.end());
    QUERN_RETURN_IF_ERROR(PrepareObjective(run));
    QUERN_RETURN_IF_ERROR(TakeSteps(run));
    return Finish(run, metrics);
  }

  // A stage that trains.
  struct TrainRun {
    TrainRun(const v1::TrainStage& train_stage, const TrainStageOptions& options, StageCheckpoints stage_checkpoints)
        : stage(train_stage), o(options), checkpoints(std::move(stage_checkpoints)) {}

    const v1::TrainStage& stage;
    TrainStageOptions o;
    StageCheckpoints checkpoints;
    Clock::time_point begin = Clock::now();
    HeldoutSet heldout;  // for the mixture's controller
    bool restored = false;
    StageState state;  // after the steps so far; its seconds are those before this run
    Mixture mixture = Mixture({}, {});
    std::unique_ptr<Objective> objective;
    std::unique_ptr<Weights> behaviour;           // Q-SFT's phi
    std::optional<Trainer::Bootstrap> bootstrap;  // Q-SFT
    double omega = 0;                             // the generated share it began with
    StepReport last;

    bool q_sft() const { return o.method == "q_sft"; }
    bool controlled() const { return o.mixture.policy == MixtureOptions::Policy::kController; }
    int64_t steps() const { return o.optimizer.max_steps; }
    double seconds() const { return state.seconds + SecondsSince(begin); }
  };

  Status LoadInitial(const TrainRun& run) {
    QUERN_RETURN_IF_ERROR(LoadIntoTrainer(run.stage.initial(run.stage.initial_size() - 1)));
    return trainer_->Begin(run.o.optimizer, run.q_sft() ? std::optional<float>(run.o.q_sft.polyak) : std::nullopt);
  }

  // From the newest checkpoint, where there is one; every rank from the same.
  Result<bool> Restore(TrainRun& run) {
    std::string any = run.checkpoints.any() ? "any" : "none";
    QUERN_RETURN_IF_ERROR(Share(any));
    if (any != "any") return false;
    QUERN_RETURN_IF_ERROR(LoadInitial(run));
    std::optional<StageState> before;
    if (leads()) {
      QUERN_ASSIGN_OR_RETURN(before, LoadStage(run.checkpoints, *ops_, *trainer_));
    }
    std::string step = before ? StrCat(before->step) : "";
    QUERN_RETURN_IF_ERROR(Share(step));
    if (step.empty()) return false;
    if (!leads()) {
      QUERN_ASSIGN_OR_RETURN(before, LoadStage(run.checkpoints, *ops_, *trainer_));
      if (!before || StrCat(before->step) != step)
        return Internal(
            StrCat(run.checkpoints.directory(), ": rank 0 goes on after step ", step, ", which is not there"));
    }
    LogInfo(StrCat(run.stage.name(), ": going on after step ", step));
    run.state = *before;
    run.mixture = Mixture(run.o.mixture, before->mixture);
    return true;
  }

  Status Begin(TrainRun& run) {
    Numbers metrics;
    QUERN_ASSIGN_OR_RETURN(run.mixture, PrepareMixture(run.stage, run.o, run.heldout, metrics));
    QUERN_RETURN_IF_ERROR(LoadInitial(run));
    const v1::WeightVersion& initial = run.stage.initial(run.stage.initial_size() - 1);
    QUERN_ASSIGN_OR_RETURN(const RolloutDifference difference, CompareRolloutsOf(initial, run.stage, run.o));
    ReportRollouts(run.stage.name(), difference, metrics);
    run.state.metrics = {metrics.begin(), metrics.end()};
    return {};
  }

  Status PrepareObjective(TrainRun& run) {
    run.objective = std::make_unique<SftObjective>();
    if (!run.q_sft()) return {};
    const QSftOptions& q = run.o.q_sft;
    run.objective = std::make_unique<QSftObjective>(q, config_.vocab_size);
    QUERN_ASSIGN_OR_RETURN(run.behaviour, LoadWeights(run.stage.initial(0)));
    run.bootstrap = Trainer::Bootstrap{run.behaviour.get(), q.support_epsilon, q.support_top_p, q.reserved_token};
    return {};
  }

  // Training is worth more than a checkpoint: without room for it the stage goes on.
  Status Save(TrainRun& run) {
    const auto begin = Clock::now();
    QUERN_RETURN_IF_ERROR(trainer_->CollectState());
    if (!leads()) return {};
    StageState state = run.state;
    state.seconds = run.seconds();
    state.mixture = run.mixture.state();
    state.progress = run.mixture.progress();
    const Status saved = SaveStage(run.checkpoints, *ops_, *trainer_, state);
    if (!saved.ok()) {
      LogWarning(StrCat(run.stage.name(), ": no checkpoint of step ", state.step, ": ", saved.message()));
      return {};
    }
    metrics_->Observe(kLearnerCheckpoint, SecondsSince(begin));
    metrics_->Set(kLearnerCheckpointTime, UnixSeconds());
    return {};
  }

  Status TakeSteps(TrainRun& run) {
    const TrainStageOptions& o = run.o;
    const int64_t steps = run.steps();
    run.mixture.set_progress({.halvings = o.halvings, .checked = false, .best_check = 0});
    run.omega = GeneratedShare(run.mixture.Current(0, steps));
    SampleLimiter limiter(o.limits, o.batch_size, [this, draw = Draw(o)] { return CountRecords(draw); });
    const DrawPlan draws(run.mixture, o.batch_size, steps);
    BatchSource source(Draw(o), draws, steps);
    // Too many steps are an error now, not at the first one that finds no record left.
    if (o.selector == v1::SELECTOR_FIFO) QUERN_RETURN_IF_ERROR(FetchBatch(Draw(o), draws.At(steps - 1)).status());
    if (run.restored) run.mixture.set_progress(run.state.progress);
    BatchStatistics statistics;
    const int64_t first = run.state.step;
    while (run.state.step < steps) {
      const int64_t step = run.state.step;
      if (options_.ranks == nullptr && options_.stop->load()) {
        if (step > first && run.checkpoints.enabled()) QUERN_RETURN_IF_ERROR(Save(run));
        return Cancelled("stopped");
      }
      const auto limiter_begin = Clock::now();
      QUERN_RETURN_IF_ERROR(WaitForRecords(run.stage, limiter, step, steps));
      const auto wait_begin = Clock::now();
      if (limiter.Needed(step) > 0)
        metrics_->Observe(kLearnerPhase, ToSeconds(wait_begin - limiter_begin), {{"phase", "limiter"}});
      QUERN_ASSIGN_OR_RETURN(TrainingBatch batch, source.Next(step));
      QUERN_RETURN_IF_ERROR(TakeStep(run, batch, statistics, SecondsSince(wait_begin)));
      QUERN_ASSIGN_OR_RETURN(const bool go_on, ReportStep(run));
      const bool due =
          run.state.step < steps && ((!go_on && run.checkpoints.enabled()) || run.checkpoints.Due(run.state.step));
      std::string then = StrCat(due ? "save " : "", go_on ? "" : "leave");
      QUERN_RETURN_IF_ERROR(Share(then));
      if (then.starts_with("save")) QUERN_RETURN_IF_ERROR(Save(run));
      if (then.ends_with("leave")) return Cancelled("asked to stop");
    }
    return {};
  }

  // One step, what the mixture's controller makes of it, and a line of it now and then. `wait`: seconds for the batch.
  Status TakeStep(TrainRun& run, TrainingBatch& batch, BatchStatistics& statistics, double wait) {
    const auto begin = Clock::now();
    const int64_t step = run.state.step, steps = run.steps();
    const Shares shares = run.mixture.Current(step, steps);
    statistics.Add(batch, WeightRows(shares, batch));
    run.objective->SetProgress(static_cast<double>(step) / static_cast<double>(steps));
    QUERN_ASSIGN_OR_RETURN(run.last, trainer_->Step(batch, *run.objective, run.bootstrap ? &*run.bootstrap : nullptr));
    run.state.step = step + 1;
    run.state.tokens += run.last.tokens;
    const bool final_step = step + 1 == steps;
    StepLog::Numbers numbers = {{"omega", GeneratedShare(shares)}};
    log_.Count(run.last, wait, numbers["omega"]);
    log_.CountAges(run.last, batch, run.stage.version(), numbers);
    const bool checks = run.controlled() && !run.heldout.empty() && run.o.mixture_checks > 0;
    const int64_t check_every = checks ? std::max<int64_t>(1, steps / run.o.mixture_checks) : steps;
    const bool check = !final_step && (step + 1) % check_every == 0;
    if (check) {
      numbers["heldout_loss"] = run.heldout.Measure(*trainer_).loss;
      metrics_->Set(kLearnerHeldout, numbers["heldout_loss"]);
      if (run.mixture.ObserveCheck(numbers["heldout_loss"], numbers["omega"]))
        LogWarning(StrCat(run.stage.name(), ": the held-out loss rose; the generated share is halved"));
    }
    if (!leads() || !(check || final_step || step % options_.log_every_steps == 0)) return {};
    numbers.merge(statistics.Report());
    numbers["wait_seconds"] = wait;
    numbers["step_seconds"] = SecondsSince(begin);
    if (config_.selective_attention) numbers["live_share"] = run.last.live_share;
    log_.Write(run.stage.name(), step + 1, run.last, trainer_->parameters(), numbers);
    return {};
  }

  // Tells the coordinator now and then. False: it asks to stop.
  Result<bool> ReportStep(const TrainRun& run) {
    const bool stop = options_.ranks != nullptr && options_.stop->load();
    if (!leads() || Clock::now() - last_heartbeat_ <= std::chrono::milliseconds(500)) return !stop;
    const auto tokens = static_cast<double>(run.state.tokens);
    QUERN_ASSIGN_OR_RETURN(const bool go_on,
                           Heartbeat(run.stage.name(), {{"step", static_cast<double>(run.state.step)},
                                                        {"max_steps", static_cast<double>(run.steps())},
                                                        {"loss", run.last.loss},
                                                        {"tokens_per_second", tokens / SecondsSince(run.begin)}}));
    return go_on && !stop;
  }

  Status Finish(TrainRun& run, Numbers& metrics) {
    const TrainerMemory memory = trainer_->Memory();
    const auto text = [](int64_t bytes) { return HumanBytes(static_cast<double>(bytes)); };
    LogInfo(StrCat(run.stage.name(), ": memory: weights ", text(memory.parameters), ", gradients ",
                   text(memory.gradients), ", moments ", text(memory.moments), ", packed weights ", text(memory.packed),
                   ", target ", text(memory.target), ", activations ", text(memory.activations)));
    metrics["omega"] = run.omega;
    if (run.controlled()) {
      if (!run.heldout.empty() && run.mixture.state().n[kRealData] > 0) {
        const double loss = run.heldout.Measure(*trainer_).loss;
        metrics["heldout_loss"] = loss;
        run.mixture.ObservePhase(run.o.phases, loss, run.omega);
      }
      metrics["halvings"] = run.mixture.halvings();
    }
    if (leads()) QUERN_RETURN_IF_ERROR(Publish(run.stage, run.o));
    const auto tokens = static_cast<double>(run.state.tokens);
    metrics["loss"] = run.last.loss;
    metrics["steps"] = static_cast<double>(run.steps());
    metrics["tokens"] = tokens;
    metrics["seconds"] = run.seconds();
    metrics["tokens_per_second"] = tokens / run.seconds();
    if (config_.selective_attention) metrics["live_share"] = run.last.live_share;
    for (const auto& [name, value] : run.last.method) metrics[name] = value;
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
        QUERN_ASSIGN_OR_RETURN(behaviour, LoadWeights(version));
      }
      difference.Add(CompareRollouts(*ops_, *trainer_, behaviour.get(), o.q_sft, options_.reserved_token, records));
    }
    return difference;
  }

  void ReportRollouts(const std::string& stage, const RolloutDifference& difference, Numbers& metrics) {
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
  Status RunRolloutStage(const v1::TrainStage& stage, const TrainStageOptions& o, Numbers& metrics) {
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
    QUERN_ASSIGN_OR_RETURN(const std::string hash,
                           WriteVersion(dir, config_, OnHost(*ops_, trainer_->Source()), options_.model_directory));
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
  StepLog log_;
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
