#include "learner/trainer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/deadline.h"
#include "base/random.h"
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

Trainer::Trainer(Ops& ops, const ModelConfig& config, const Recipe& recipe, int64_t max_positions,
                 const TrainerOptions& options)
    : ops_(ops),
      options_(options),
      transformer_(ops, config, recipe.act, max_positions),
      loss_head_(ops, transformer_),
      parameters_(config, options.memory.bf16_masters ? DType::kBf16 : transformer_.acc_dtype(), &ops),
      gradients_(config, transformer_.acc_dtype(), &ops),
      moments_(ops, parameters_.layout(), transformer_.acc_dtype(), options.memory),
      weights_(ops, config, recipe, true),
      arena_(ops.memory()) {
  if (recipe.delayed()) {
    fp8_amax_ = Tensor(DType::kF32, config.layers, 12);
    fp8_seen_ = Tensor(DType::kF32, config.layers, 12);
  }
  if (!recipe.smooth_channels()) return;
  smooth_scales_ = Tensor(DType::kF32, config.layers, config.intermediate_size, ops.memory());
  linear_amax_ = Tensor(DType::kF32, config.layers, config.intermediate_size, ops.memory());
  ops_.Fill(smooth_scales_, 1);
}

TensorSource Trainer::Source() const {
  return [this, weights = parameters_.Source()](const std::string& name) -> Result<TensorView> {
    for (int64_t layer = 0; layer < smooth_scales_.rows(); ++layer)
      if (name == SmoothScaleName(layer)) return smooth_scales_.view().Rows(layer, 1);
    for (int64_t layer = 0; layer < fp8_amax_.rows(); ++layer)
      if (name == Fp8AmaxName(layer)) return fp8_amax_.view().Rows(layer, 1);
    return weights(name);
  };
}

Status Trainer::CopyFrom(const TensorSource& source) {
  QUERN_RETURN_IF_ERROR(parameters_.CopyFrom(source));
  const auto copy = [&](const std::string& name, const TensorView& to, float otherwise) -> Status {
    const Result<TensorView> from = source(name);
    if (from.ok() && from->cols == to.cols) {
      ops_.Cast(*from, to);
    } else if (from.ok() || from.status().code() == StatusCode::kNotFound) {
      ops_.Fill(to, otherwise);
    } else {
      return from.status();
    }
    return {};
  };
  for (int64_t layer = 0; layer < smooth_scales_.rows(); ++layer)
    QUERN_RETURN_IF_ERROR(copy(SmoothScaleName(layer), smooth_scales_.view().Rows(layer, 1), 1));
  for (int64_t layer = 0; layer < fp8_amax_.rows(); ++layer)
    QUERN_RETURN_IF_ERROR(copy(Fp8AmaxName(layer), fp8_amax_.view().Rows(layer, 1), 0));
  return {};
}

Status Trainer::Begin(const OptimizerOptions& optimizer, std::optional<float> polyak) {
  options_.optimizer = optimizer;
  step_ = 0;
  moments_.Clear();
  ops_.Fill(gradients_.flat(), 0);
  QUERN_RETURN_IF_ERROR(weights_.Load(Source()));
  polyak_ = polyak;
  if (!polyak) {
    target_parameters_.reset();
    target_weights_.reset();
    return {};
  }
  target_parameters_ = std::make_unique<Parameters>(transformer_.config(), transformer_.acc_dtype(), &ops_);
  ops_.Cast(parameters_.flat(), target_parameters_->flat());
  target_weights_ = std::make_unique<Weights>(ops_, transformer_.config(), weights_.recipe(), false);
  return LoadTarget();
}

// The target copy smooths as the weights do.
Status Trainer::LoadTarget() {
  const TensorSource own = Source();
  return target_weights_->Load([&](const std::string& name) -> Result<TensorView> {
    return target_parameters_->layout().Has(name) ? Result<TensorView>(target_parameters_->View(name)) : own(name);
  });
}

std::vector<std::pair<std::string, TensorView>> Trainer::State() {
  std::vector<std::pair<std::string, TensorView>> state = {{"parameters", parameters_.flat()}};
  for (auto& array : moments_.State()) state.push_back(std::move(array));
  const auto add = [&](const char* name, TensorView x) {
    if (x.empty()) return;
    x.cols = x.stride = x.rows * x.cols;
    x.rows = 1;
    state.emplace_back(name, x);
  };
  add("smooth_scales", smooth_scales_);
  add("fp8_amax", fp8_amax_);
  if (target_parameters_ != nullptr) state.emplace_back("target_parameters", target_parameters_->flat());
  return state;
}

Status Trainer::Resume(int64_t step) {
  step_ = step;
  QUERN_RETURN_IF_ERROR(weights_.Load(Source()));
  return target_weights_ == nullptr ? Status() : LoadTarget();
}

void Trainer::ObserveFp8(const Saved& saved, StepReport& report) {
  if (!weights_.recipe().fp8()) return;
  const auto layers = static_cast<size_t>(transformer_.config().layers);
  report.fp8.resize(layers);
  for (size_t i = 0; i < layers; ++i) {
    const SavedBlock& block = saved.blocks[i];
    StepReport::Fp8Layer& out = report.fp8[i];
    const Tensor block_counts = OnHost(ops_, block.fp8_counts), block_amax = OnHost(ops_, block.fp8_amax);
    const Tensor block_linear = OnHost(ops_, block.linear_amax);
    const int32_t* counts = block_counts.Row<int32_t>(0);
    out.saturated += counts[0];
    out.flushed += counts[1];
    out.gradient_saturated += counts[2];
    out.gradient_flushed += counts[3];
    const float* amax = block_linear.Row<float>(0);
    for (int64_t c = 0; c < block.linear_amax.cols; ++c)
      out.linear_amax = std::max(out.linear_amax, static_cast<double>(amax[c]));
    const BlockWeights& w = weights_.blocks[i];
    const LinearWeight* linears[] = {&w.qkv, &w.attention_output, &w.gate_up, block.down ? block.down.get() : &w.down};
    for (size_t j = 0; j < 4 && fp8_seen_.rows() > 0; ++j) {
      float* seen = fp8_seen_.Row<float>(static_cast<int64_t>(i)) + 3 * j;
      const float* amax_seen = block_amax.Row<float>(0);
      seen[0] = std::max(seen[0], amax_seen[j]);
      seen[1] = std::max(seen[1], linears[j]->weight_amax);
      seen[2] = std::max(seen[2], amax_seen[4 + j]);
    }
    if (!linear_amax_.view().empty())
      ops_.ColumnAmax({.x = block.linear_amax, .amax = linear_amax_.view().Rows(static_cast<int64_t>(i), 1)});
  }
}

// From counts to shares.
void Trainer::FinishFp8(StepReport& report) const {
  const ModelConfig& c = transformer_.config();
  const auto rows = static_cast<double>(report.tokens);
  const double forward = rows * static_cast<double>(2 * c.hidden_size + c.q_size() + c.intermediate_size);
  const double backward = rows * static_cast<double>(2 * c.hidden_size + c.qkv_size() + 2 * c.intermediate_size);
  for (StepReport::Fp8Layer& layer : report.fp8) {
    layer.saturated /= forward;
    layer.flushed /= forward;
    layer.gradient_saturated /= backward;
    layer.gradient_flushed /= backward;
  }
}

void Trainer::UpdateFp8State() {
  if (fp8_amax_.rows() > 0) ops_.Cast(fp8_seen_, fp8_amax_);
  if (smooth_scales_.rows() == 0) return;
  const Tensor scales = OnHost(ops_, linear_amax_);
  for (int64_t layer = 0; layer < scales.rows(); ++layer) {
    float* scale = scales.Row<float>(layer);
    for (int64_t c = 0; c < scales.cols(); ++c) scale[c] = SmoothScale(scale[c]);
  }
  ops_.Upload(scales, smooth_scales_);
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
  if (!linear_amax_.view().empty()) ops_.Fill(linear_amax_, 0);
  if (!fp8_seen_.view().empty()) ops_.Fill(fp8_seen_, 0);
  uint64_t micro_batch = 0;
  for (TrainingBatch& part : SplitBatch(batch, options_.max_micro_batch_tokens)) {
    report.tokens += part.tokens.rows();
    if (part.rows.empty()) continue;
    const Arena::Scope scope(arena_);
    std::vector<void*> pages;
    const auto forward_begin = Clock::now();
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
    saved.seed = MixSeed(options_.optimizer.seed, static_cast<uint64_t>(step_) << 20 | ++micro_batch);
    const TensorView hidden = ForwardHidden(weights_, part.tokens, kv, &saved);
    report.seconds.forward += SecondsSince(forward_begin);
    const auto backward_begin = Clock::now();
    const TensorView dhidden = arena_.New(transformer_.acc_dtype(), hidden.rows, hidden.cols);
    const LossHead::Result head = loss_head_.ForwardBackward(weights_, hidden, part.rows, coefficients,
                                                             objective.reserved_token(), dhidden, gradients_, arena_);
    const double live_scale =
        1 / static_cast<double>(transformer_.config().layers * batch.tokens.rows());  // of the whole batch, as `loss`
    const double memory_weight = static_cast<double>(options_.optimizer.memory_loss) * live_scale;
    transformer_.Backward(weights_, part.tokens, saved, dhidden, gradients_, arena_, static_cast<float>(memory_weight));
    if (transformer_.config().selective_attention)
      report.live_share += LivePositions(ops_, part.tokens, saved) * live_scale;
    ObserveFp8(saved, report);
    report.seconds.backward += SecondsSince(backward_begin);
    report.log_probs.insert(report.log_probs.end(), head.log_probs.begin(), head.log_probs.end());
    report.loss += head.loss;
    report.mean_log_prob += head.log_prob_sum / normaliser;
    report.entropy += head.entropy_sum / normaliser;
  }
  for (auto& [name, value] : report.method) value /= normaliser;
  FinishFp8(report);
  return report;
}

Result<StepReport> Trainer::Step(const TrainingBatch& batch, const Objective& objective, const Bootstrap* bootstrap) {
  ops_.Fill(gradients_.flat(), 0);
  QUERN_ASSIGN_OR_RETURN(StepReport report, AccumulateGradients(batch, objective, bootstrap));
  const OptimizerOptions& o = options_.optimizer;
  const auto optimizer_begin = Clock::now();
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
  AdamWArgs adamw{.param = {}, .grad = {}, .m = {}, .v = {}};
  adamw.seed = MixSeed(o.seed, static_cast<uint64_t>(step_));
  adamw.learning_rate = static_cast<float>(report.learning_rate);
  adamw.beta1 = o.beta1;
  adamw.beta2 = o.beta2;
  adamw.eps = o.eps;
  adamw.weight_decay = o.weight_decay;
  adamw.grad_scale = grad_scale;
  adamw.step = step_;
  moments_.Step(adamw, parameters_, gradients_);
  UpdateFp8State();
  QUERN_RETURN_IF_ERROR(weights_.Load(Source()));
  if (polyak_) {
    ops_.Lerp(parameters_.flat(), *polyak_, target_parameters_->flat());
    QUERN_RETURN_IF_ERROR(LoadTarget());
  }
  report.seconds.optimizer = SecondsSince(optimizer_begin);
  return report;
}

GateLinearCorrelation CorrelateGateAndLinear(const Parameters& parameters, int64_t layer) {
  const TensorView gate = parameters.View(LayerPrefix(layer) + "mlp.gate_proj.weight");
  const TensorView up = parameters.View(LayerPrefix(layer) + "mlp.up_proj.weight");
  const auto at = [](const TensorView& x, int64_t r, int64_t c) {
    if (x.dtype == DType::kF64) return x.Row<double>(r)[c];
    return static_cast<double>(x.dtype == DType::kBf16 ? static_cast<float>(x.Row<Bf16>(r)[c]) : x.Row<float>(r)[c]);
  };
  GateLinearCorrelation out;
  for (int64_t r = 0; r < gate.rows; ++r) {
    double gg = 0, uu = 0, gu = 0;
    for (int64_t c = 0; c < gate.cols; ++c) {
      const double g = at(gate, r, c), u = at(up, r, c);
      gg += g * g;
      uu += u * u;
      gu += g * u;
    }
    const double cosine = gg > 0 && uu > 0 ? std::abs(gu) / std::sqrt(gg * uu) : 0;
    out.largest = std::max(out.largest, cosine);
    out.mean += cosine / static_cast<double>(gate.rows);
  }
  return out;
}

std::vector<float> Trainer::Score(const TrainingBatch& batch, int32_t reserved) {
  std::vector<float> out;
  out.reserve(batch.rows.size());
  for (TrainingBatch& part : SplitBatch(batch, options_.max_micro_batch_tokens)) {
    const Arena::Scope scope(arena_);
    std::vector<void*> pages;
    const KvView kv = MakeTrainingKv(transformer_.kv_layout(), part.tokens, arena_, pages);
    const TensorView hidden = ForwardHidden(weights_, part.tokens, kv, nullptr);
    const LossHead::Result head = loss_head_.Score(weights_, hidden, part.rows, arena_, reserved);
    out.insert(out.end(), head.log_probs.begin(), head.log_probs.end());
  }
  return out;
}

}  // namespace quern
