#include "learner/trainer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/strings.h"

namespace quern {

float LearningRate(const OptimizerOptions& o, int64_t step) {
  if (step < o.warmup_steps) {
    return o.learning_rate * static_cast<float>(step + 1) / static_cast<float>(o.warmup_steps);
  }
  if (o.schedule == "constant") return o.learning_rate;
  const double span = static_cast<double>(std::max<int64_t>(1, o.max_steps - o.warmup_steps));
  const double progress = std::min(1.0, static_cast<double>(step - o.warmup_steps) / span);
  const double share = o.schedule == "linear" ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  const auto floor = static_cast<double>(o.min_learning_rate_ratio);
  return static_cast<float>(static_cast<double>(o.learning_rate) * (floor + (1.0 - floor) * share));
}

std::vector<TrainingBatch> SplitBatch(const TrainingBatch& batch, int64_t max_tokens) {
  std::vector<TrainingBatch> out;
  size_t row = 0;
  for (const SequenceRows& sequence : batch.tokens.sequences) {
    if (out.empty() || out.back().tokens.rows() + sequence.count > max_tokens) out.emplace_back();
    TrainingBatch& part = out.back();
    const int64_t row_shift = part.tokens.rows() - sequence.row;
    const int64_t index_shift = static_cast<int64_t>(part.rows.size()) - static_cast<int64_t>(row);
    part.tokens.Add(batch.tokens.ids.data() + sequence.row, sequence.count, 0, nullptr);
    ++part.episodes;
    for (; row < batch.rows.size() && batch.rows[row].row < sequence.row + sequence.count; ++row) {
      LossRow moved = batch.rows[row];
      moved.row += row_shift;
      if (moved.next >= 0) moved.next += index_shift;
      part.rows.push_back(moved);
    }
  }
  return out;
}

Trainer::Trainer(Ops& ops, const ModelConfig& config, DType dtype, int64_t max_positions, const TrainerOptions& options)
    : ops_(ops),
      options_(options),
      transformer_(ops, config, dtype, max_positions),
      loss_head_(ops, transformer_),
      parameters_(config, transformer_.acc_dtype()),
      gradients_(config, transformer_.acc_dtype()),
      first_moment_(config, transformer_.acc_dtype()),
      second_moment_(config, transformer_.acc_dtype()),
      weights_(ops, config, dtype, true) {}

Status Trainer::Begin(const OptimizerOptions& optimizer, std::optional<float> polyak) {
  options_.optimizer = optimizer;
  step_ = 0;
  ops_.Fill(first_moment_.flat(), 0);
  ops_.Fill(second_moment_.flat(), 0);
  ops_.Fill(gradients_.flat(), 0);
  QUERN_RETURN_IF_ERROR(weights_.Load(parameters_.Source()));
  polyak_ = polyak;
  if (!polyak) {
    target_parameters_.reset();
    target_weights_.reset();
    return {};
  }
  target_parameters_ = std::make_unique<Parameters>(transformer_.config(), transformer_.acc_dtype());
  ops_.Cast(parameters_.flat(), target_parameters_->flat());
  target_weights_ = std::make_unique<Weights>(ops_, transformer_.config(), transformer_.dtype(), false);
  return target_weights_->Load(target_parameters_->Source());
}

std::vector<std::pair<std::string, TensorView>> Trainer::State() {
  std::vector<std::pair<std::string, TensorView>> state = {{"parameters", parameters_.flat()},
                                                           {"first_moment", first_moment_.flat()},
                                                           {"second_moment", second_moment_.flat()}};
  if (target_parameters_ != nullptr) state.emplace_back("target_parameters", target_parameters_->flat());
  return state;
}

Status Trainer::Resume(int64_t step) {
  step_ = step;
  QUERN_RETURN_IF_ERROR(weights_.Load(parameters_.Source()));
  return target_weights_ == nullptr ? Status() : target_weights_->Load(target_parameters_->Source());
}

TensorView Trainer::ForwardHidden(const Weights& weights, const TokenBatch& batch, const KvView& kv, Saved* saved) {
  const TensorView hidden = arena_.New(transformer_.dtype(), batch.rows(), transformer_.config().hidden_size);
  transformer_.Forward(weights, batch, kv, arena_, hidden, saved);
  return hidden;
}

Result<StepReport> Trainer::AccumulateGradients(const TrainingBatch& batch, const Objective& objective,
                                                const Bootstrap* bootstrap) {
  StepReport report;
  report.loss_tokens = static_cast<int64_t>(batch.rows.size());
  if (batch.rows.empty()) return InvalidArgument("a training batch without a single agent token");
  const auto normaliser = static_cast<double>(batch.rows.size());
  for (TrainingBatch& part : SplitBatch(batch, options_.max_micro_batch_tokens)) {
    report.tokens += part.tokens.rows();
    if (part.rows.empty()) continue;
    const Arena::Scope scope(arena_);
    std::vector<void*> pages;
    const KvView kv = MakeTrainingKv(transformer_.kv_layout(), part.tokens, arena_, pages);
    std::vector<float> max_ratio;
    if (objective.needs_max_ratio()) {
      QUERN_CHECK(bootstrap != nullptr && bootstrap->behaviour != nullptr && target_weights_ != nullptr);
      const Arena::Scope bootstrap_scope(arena_);
      const TensorView value_hidden = ForwardHidden(*target_weights_, part.tokens, kv, nullptr);
      const TensorView behaviour_hidden = ForwardHidden(*bootstrap->behaviour, part.tokens, kv, nullptr);
      max_ratio = loss_head_.MaxRatios(*bootstrap->behaviour, behaviour_hidden, *target_weights_, value_hidden,
                                       part.rows, bootstrap->epsilon, bootstrap->top_p, bootstrap->reserved, arena_);
    }
    RowCoefficients coefficients;
    objective.Coefficients(part.rows, max_ratio, normaliser, coefficients, report.method);
    Saved saved;
    const TensorView hidden = ForwardHidden(weights_, part.tokens, kv, &saved);
    const TensorView dhidden = arena_.New(transformer_.acc_dtype(), hidden.rows, hidden.cols);
    const LossHead::Result head = loss_head_.ForwardBackward(weights_, hidden, part.rows, coefficients,
                                                             objective.reserved_token(), dhidden, gradients_, arena_);
    transformer_.Backward(weights_, part.tokens, saved, dhidden, gradients_, arena_);
    report.loss += head.loss;
    report.mean_log_prob += head.log_prob_sum / normaliser;
    report.entropy += head.entropy_sum / normaliser;
  }
  for (auto& [name, value] : report.method) value /= normaliser;
  return report;
}

Result<StepReport> Trainer::Step(const TrainingBatch& batch, const Objective& objective, const Bootstrap* bootstrap) {
  ops_.Fill(gradients_.flat(), 0);
  QUERN_ASSIGN_OR_RETURN(StepReport report, AccumulateGradients(batch, objective, bootstrap));
  const OptimizerOptions& o = options_.optimizer;
  report.grad_norm = std::sqrt(ops_.SquaredNorm(gradients_.flat()));
  if (!std::isfinite(report.loss) || !std::isfinite(report.grad_norm)) {
    return Internal(StrCat("step ", step_, ": loss ", report.loss, ", gradient norm ", report.grad_norm,
                           ": not finite; lower learning_rate or max_grad_norm"));
  }
  float grad_scale = 1.0f;
  if (o.max_grad_norm > 0 && report.grad_norm > static_cast<double>(o.max_grad_norm)) {
    grad_scale = static_cast<float>(static_cast<double>(o.max_grad_norm) / report.grad_norm);
  }
  report.learning_rate = static_cast<double>(LearningRate(o, step_));
  ++step_;
  const std::vector<ParameterInfo>& infos = parameters_.layout().parameters();
  for (size_t begin = 0; begin < infos.size();) {
    size_t end = begin;
    int64_t count = 0;
    while (end < infos.size() && infos[end].decay == infos[begin].decay)
      count += infos[end].rows * infos[end].cols, ++end;
    const auto part = [&](Parameters& p) { return p.flat().Cols(infos[begin].offset, count); };
    ops_.AdamW({.param = part(parameters_),
                .grad = part(gradients_),
                .m = part(first_moment_),
                .v = part(second_moment_),
                .learning_rate = static_cast<float>(report.learning_rate),
                .beta1 = o.beta1,
                .beta2 = o.beta2,
                .eps = o.eps,
                .weight_decay = infos[begin].decay ? o.weight_decay : 0.0f,
                .grad_scale = grad_scale,
                .step = step_});
    begin = end;
  }
  QUERN_RETURN_IF_ERROR(weights_.Load(parameters_.Source()));
  if (polyak_) {
    ops_.Lerp(parameters_.flat(), *polyak_, target_parameters_->flat());
    QUERN_RETURN_IF_ERROR(target_weights_->Load(target_parameters_->Source()));
  }
  return report;
}

std::vector<float> Trainer::Score(const TrainingBatch& batch) {
  std::vector<float> out;
  out.reserve(batch.rows.size());
  for (TrainingBatch& part : SplitBatch(batch, options_.max_micro_batch_tokens)) {
    const Arena::Scope scope(arena_);
    std::vector<void*> pages;
    const KvView kv = MakeTrainingKv(transformer_.kv_layout(), part.tokens, arena_, pages);
    const TensorView hidden = ForwardHidden(weights_, part.tokens, kv, nullptr);
    const LossHead::Result head = loss_head_.Score(weights_, hidden, part.rows, arena_);
    out.insert(out.end(), head.log_probs.begin(), head.log_probs.end());
  }
  return out;
}

}  // namespace quern
