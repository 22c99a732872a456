#include "learner/learner_role.h"

#include <cstdio>
#include <future>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/train_stage.h"
#include "methods/sft.h"
#include "model/hf/content_hash.h"
#include "model/hf/model_directory.h"

namespace quern {

namespace {

// Fetches the batch of step s + 1 while step s computes.
class BatchSource {
 public:
  BatchSource(const LearnerRoleOptions& options, const TrainStageOptions& stage, const BatchOptions& batch)
      : options_(options), stage_(stage), batch_(batch) {}

  Result<TrainingBatch> Next(int64_t step) {
    if (!pending_.valid()) pending_ = Start(step);
    Result<TrainingBatch> batch = pending_.get();
    if (step + 1 < stage_.optimizer.max_steps) pending_ = Start(step + 1);
    return batch;
  }

 private:
  std::future<Result<TrainingBatch>> Start(int64_t step) {
    return std::async(std::launch::async, [this, step] { return Fetch(step); });
  }

  Result<TrainingBatch> Fetch(int64_t step) {
    v1::SampleRequest request;
    for (const std::string& tag : stage_.without_tags) request.mutable_filter()->add_without_tags(tag);
    request.set_watermark(stage_.watermark);
    request.set_seed(stage_.seed);
    request.set_step(static_cast<uint64_t>(step));
    request.set_count(static_cast<uint32_t>(stage_.batch_size));
    request.set_top_fraction(static_cast<float>(stage_.top_fraction));
    request.set_mix(stage_.mix);
    request.set_generated_share(static_cast<float>(stage_.generated_share));
    QUERN_ASSIGN_OR_RETURN(const v1::SampleReply reply,
                           options_.replay->Sample(request, Deadline::After(options_.call_timeout)));
    if (reply.trajectories().empty()) {
      return FailedPrecondition(StrCat("the store has no record to train on up to number ", stage_.watermark));
    }
    std::vector<v1::Trajectory> trajectories(static_cast<size_t>(reply.trajectories_size()));
    for (int i = 0; i < reply.trajectories_size(); ++i) {
      v1::Trajectory& t = trajectories[static_cast<size_t>(i)];
      if (!t.ParseFromString(reply.trajectories(i))) {
        return DataLoss(StrCat("record ", reply.numbers(i), " does not parse"));
      }
      QUERN_RETURN_IF_ERROR(TokenizeTrajectory(*options_.tokenizer, batch_, t));
    }
    return BuildBatch(trajectories, batch_);
  }

  const LearnerRoleOptions& options_;
  const TrainStageOptions& stage_;
  const BatchOptions& batch_;
  std::future<Result<TrainingBatch>> pending_;  // its destructor waits
};

class Learner {
 public:
  explicit Learner(const LearnerRoleOptions& options)
      : options_(options), pool_(options.threads), ops_(NewCpuOps(&pool_)), batch_options_(options.batch) {}

  Status Run() {
    QUERN_ASSIGN_OR_RETURN(config_, LoadModelConfig(options_.model_directory));
    if (batch_options_.max_positions <= 0 || batch_options_.max_positions > config_.max_positions) {
      batch_options_.max_positions = config_.max_positions;
    }
    trainer_ =
        std::make_unique<Trainer>(*ops_, config_, options_.precision, batch_options_.max_positions, TrainerOptions{});
    while (!options_.stop->load()) {
      QUERN_ASSIGN_OR_RETURN(const bool go_on, Heartbeat("waiting for a stage", {}));
      if (!go_on) return {};
      QUERN_ASSIGN_OR_RETURN(const v1::NextStageReply next,
                             Call<v1::NextStageReply>("NextStage", v1::NextStageRequest()));
      if (next.stop()) return {};
      if (!next.has_stage()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(std::max(5u, next.retry_ms())));
        continue;
      }
      v1::StageDoneRequest done;
      done.set_name(next.stage().name());
      const Status trained = RunStage(next.stage(), *done.mutable_metrics());
      if (trained.code() == StatusCode::kCancelled) return {};
      if (!trained.ok()) {
        LogError(next.stage().name() + ": " + trained.ToString());
        done.set_error(trained.ToString());
      }
      QUERN_RETURN_IF_ERROR(Call<v1::StageDoneReply>("StageDone", done).status());
    }
    return {};
  }

 private:
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

  Status LoadInto(const v1::WeightVersion& version, Parameters& parameters) {
    const std::string& dir = version.version() == 0 ? options_.model_directory : version.path();
    QUERN_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::Open(dir));
    if (Status matches = checkpoint->CheckMatches(config_); !matches.ok()) return matches.Annotate(dir);
    return parameters.CopyFrom(checkpoint->Source()).Annotate(dir);
  }

  Status RunStage(const v1::TrainStage& stage, google::protobuf::Map<std::string, double>& metrics) {
    QUERN_ASSIGN_OR_RETURN(TrainStageOptions o, ParseTrainStage(stage));
    const bool q_sft = o.method == "q_sft";
    if (stage.initial_size() != (q_sft ? 2 : 1)) {
      return InvalidArgument(StrCat(stage.name(), ": ", stage.initial_size(), " initial weight versions"));
    }
    o.q_sft.reserved_token = options_.reserved_token;
    QUERN_RETURN_IF_ERROR(LoadInto(stage.initial(stage.initial_size() - 1), trainer_->parameters()));
    trainer_->set_max_micro_batch_tokens(o.micro_batch_tokens);
    QUERN_RETURN_IF_ERROR(trainer_->Begin(o.optimizer, q_sft ? std::optional<float>(o.q_sft.polyak) : std::nullopt));

    std::unique_ptr<Objective> objective = std::make_unique<SftObjective>();
    std::unique_ptr<Weights> behaviour;
    Trainer::Bootstrap bootstrap{nullptr, o.q_sft.support_epsilon, o.q_sft.support_top_p, o.q_sft.reserved_token};
    if (q_sft) {
      objective = std::make_unique<QSftObjective>(o.q_sft, config_.vocab_size);
      Parameters phi(config_);
      QUERN_RETURN_IF_ERROR(LoadInto(stage.initial(0), phi));
      behaviour = std::make_unique<Weights>(*ops_, config_, options_.precision, false);
      QUERN_RETURN_IF_ERROR(behaviour->Load(phi.Source()));
      bootstrap.behaviour = behaviour.get();
    }

    BatchOptions batch_options = batch_options_;
    batch_options.rewards.kind = o.reward_scale;
    batch_options.rewards.temperature = o.reward_temperature;
    BatchSource source(options_, o, batch_options);
    const auto begin = Clock::now();
    int64_t tokens = 0;
    StepReport last;
    for (int64_t step = 0; step < o.optimizer.max_steps; ++step) {
      if (options_.stop->load()) return Cancelled("stopped");
      const auto wait_begin = Clock::now();
      QUERN_ASSIGN_OR_RETURN(const TrainingBatch batch, source.Next(step));
      const double wait = SecondsSince(wait_begin);
      const auto step_begin = Clock::now();
      objective->SetProgress(static_cast<double>(step) / static_cast<double>(o.optimizer.max_steps));
      QUERN_ASSIGN_OR_RETURN(last, trainer_->Step(batch, *objective, q_sft ? &bootstrap : nullptr));
      tokens += last.tokens;
      const bool final_step = step + 1 == o.optimizer.max_steps;
      if (final_step || step % options_.log_every_steps == 0) {
        LogStep(stage.name(), step + 1, last, wait, SecondsSince(step_begin));
      }
      if (Clock::now() - last_heartbeat_ > std::chrono::milliseconds(500)) {
        QUERN_ASSIGN_OR_RETURN(
            const bool go_on,
            Heartbeat(stage.name(), {{"step", static_cast<double>(step + 1)},
                                     {"max_steps", static_cast<double>(o.optimizer.max_steps)},
                                     {"loss", last.loss},
                                     {"tokens_per_second", static_cast<double>(tokens) / SecondsSince(begin)}}));
        if (!go_on) return Cancelled("the coordinator asked to stop");
      }
    }
    QUERN_RETURN_IF_ERROR(Publish(stage, o));
    const double seconds = SecondsSince(begin);
    metrics["loss"] = last.loss;
    metrics["steps"] = static_cast<double>(o.optimizer.max_steps);
    metrics["tokens"] = static_cast<double>(tokens);
    metrics["seconds"] = seconds;
    metrics["tokens_per_second"] = static_cast<double>(tokens) / seconds;
    for (const auto& [name, value] : last.method) metrics[name] = value;
    return {};
  }

  void LogStep(const std::string& stage, int64_t step, const StepReport& report, double wait, double seconds) {
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
                                   {"step_seconds", seconds}};
    for (const auto& [name, value] : report.method) line[name] = value;
    if (options_.metrics_path.empty()) return;
    std::FILE* file = std::fopen(options_.metrics_path.c_str(), "a");
    if (file == nullptr) return;
    std::fputs((line.dump() + "\n").c_str(), file);
    std::fclose(file);
  }

  Status Publish(const v1::TrainStage& stage, const TrainStageOptions& o) {
    v1::PublishRequest request;
    v1::WeightVersion& weights = *request.mutable_weights();
    weights.set_name(o.weights_name);
    weights.set_version(++published_);
    weights.set_step(static_cast<uint64_t>(trainer_->step()));
    weights.set_generation_depth(o.generation_depth);
    const std::string dir = JoinPath(options_.weights_directory, StrCat(o.weights_name, "-", weights.version()));
    weights.set_path(dir);
    // fp32: what the learner goes on from is what it had.
    QUERN_RETURN_IF_ERROR(
        SaveModelDirectory(dir, config_, trainer_->parameters().Source(),
                           {.dtype = DType::kF32, .source_dir = options_.model_directory, .generation = std::nullopt}));
    QUERN_ASSIGN_OR_RETURN(const std::string hash, DirectoryContentHash(dir));
    weights.set_content_hash(hash);
    if (hash == last_hash_) LogWarning(stage.name() + ": published weights equal the previous version's, " + hash);
    last_hash_ = hash;
    return Call<v1::PublishReply>("Publish", request).status();
  }

  const LearnerRoleOptions& options_;
  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  BatchOptions batch_options_;
  ModelConfig config_;
  std::unique_ptr<Trainer> trainer_;
  Clock::time_point last_heartbeat_{};
  uint64_t published_ = 0;
  std::string last_hash_;
};

}  // namespace

Status RunLearner(const LearnerRoleOptions& options) { return Learner(options).Run(); }

}  // namespace quern
