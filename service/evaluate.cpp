#include "service/evaluate.h"

#include <cmath>

#include "actors/records.h"
#include "actors/rollout.h"
#include "base/strings.h"
#include "base/thread_pool.h"
#include "compute/device.h"
#include "methods/q_sft.h"
#include "model/hf/content_hash.h"
#include "model/hf/model_directory.h"
#include "service/compression.h"
#include "service/memory_plan.h"
#include "service/prepare.h"

namespace quern {

Result<std::shared_ptr<const Policy>> LoadPolicy(Ops& ops, const v1::PolicySpec& spec, const Recipe& precision) {
  auto policy = std::make_shared<Policy>();
  policy->label = spec.name();
  policy->compression = CompressionOf(spec.sampling());
  for (const v1::WeightVersion& weights : spec.weights()) {
    QUERN_RETURN_IF_ERROR(CheckSupported(weights.path()));
    QUERN_RETURN_IF_ERROR(CheckContentHash(weights.path(), weights.content_hash()));
    QUERN_ASSIGN_OR_RETURN(std::shared_ptr<const ServedModel> model, LoadServedModel(ops, weights.path(), precision));
    QUERN_RETURN_IF_ERROR(CheckCompression(policy->compression, model->transformer.config()));
    policy->models.push_back(std::move(model));
  }
  if (policy->models.size() == 1) {
    policy->head = std::make_shared<SingleModelHead>(spec.reserved_token());
  } else {
    QSftOptions options;
    options.beta = spec.sampling().q_sft_beta();
    options.rule = spec.sampling().rule() == "paper" ? QSftOptions::Rule::kPaper : QSftOptions::Rule::kRatio;
    options.support_epsilon = spec.support_epsilon();
    options.support_top_p = spec.support_top_p();
    options.reserved_token = spec.reserved_token();
    options.remainder = spec.uniform_remainder() ? QSftOptions::Remainder::kUniform : QSftOptions::Remainder::kDummy;
    policy->head = std::make_shared<QSftHead>(options);
  }
  return std::shared_ptr<const Policy>(std::move(policy));
}

Result<Evaluation> EvaluatePolicy(const Run& run, const v1::PolicySpec& spec, uint64_t episodes, uint64_t seed,
                                  const std::function<void(uint64_t done)>& progress, const std::atomic<bool>& stop,
                                  const std::string& set, const std::string& device) {
  const Job& job = run.job;
  QUERN_ASSIGN_OR_RETURN(const auto environment, EnvironmentOf(job, set));
  const std::string model = spec.weights().empty() ? run.model.directory : spec.weights(0).path();
  QUERN_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(model));
  ThreadPool pool(static_cast<int>(job.threads));
  QUERN_ASSIGN_OR_RETURN(const std::unique_ptr<Ops> ops, NewOps(device.empty() ? job.device : device, &pool));
  QUERN_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(model));
  Engine engine(*ops, {.kv_bytes = ActorKvBytes(job, config)});
  if (!spec.weights().empty()) {
    QUERN_ASSIGN_OR_RETURN(auto policy, LoadPolicy(*ops, spec, RecipeOf(job.precision, job.smooth_swiglu)));
    engine.SetPolicy(std::move(policy));
  }
  v1::RolloutTask task;
  task.set_stage(StrCat("eval:", spec.name()));
  *task.mutable_policy() = spec;
  task.set_episodes(static_cast<uint32_t>(episodes));
  task.set_seed(seed);
  task.set_source(spec.player().empty() ? v1::SOURCE_GENERATED : v1::SOURCE_REAL);
  RolloutOptions options;
  options.run = run.name();
  options.concurrent_episodes = job.rollout.concurrent_episodes;
  options.max_completion_length = job.max_completion_length;
  if (const auto generation = LoadGenerationConfig(model); generation.ok()) options.end_ids = generation->eos_token_ids;
  QUERN_ASSIGN_OR_RETURN(options.chat_template, ChatTemplateOf(job, model));

  Evaluation out;
  double sum = 0, squares = 0;
  const auto sink = [&](v1::Trajectory trajectory) -> Status {
    ++out.episodes;
    sum += trajectory.episode_return();
    squares += trajectory.episode_return() * trajectory.episode_return();
    out.success_rate += trajectory.success() ? 1 : 0;
    out.mean_turns += trajectory.turns_size();
    for (const char agent : trajectory.loss_mask()) out.mean_tokens += agent;
    if (progress) progress(out.episodes);
    return {};
  };
  QUERN_RETURN_IF_ERROR(PlayTask(task, *environment, *tokenizer, options, &engine, sink, stop).status());
  if (out.episodes == 0) return out;
  const double n = static_cast<double>(out.episodes);
  out.mean_return = sum / n;
  out.success_rate /= n;
  out.mean_turns /= n;
  out.mean_tokens /= n;
  if (out.episodes > 1) out.std_error = std::sqrt(std::max(0.0, (squares - sum * sum / n) / (n - 1)) / n);
  return out;
}

}  // namespace quern
