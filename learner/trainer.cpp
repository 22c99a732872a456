#include "learner/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
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

namespace {

// First parameter of each of `count` slices of about as many elements, and the end. Whole parameters: with FP8 moments
// one scale may be a whole matrix's.
std::vector<size_t> SliceParameters(const ParameterLayout& layout, int count) {
  std::vector<size_t> first = {0};
  const size_t end = layout.parameters().size();
  for (int r = 1; r < count; ++r) {
    const int64_t goal = layout.size() * r / count;
    size_t i = first.back();
    // Up to the parameter whose beginning is nearest to the goal.
    while (i < end &&
           layout.parameters()[i].offset + layout.parameters()[i].rows * layout.parameters()[i].cols / 2 < goal)
      ++i;
    first.push_back(i);
  }
  first.push_back(end);
  return first;
}

std::vector<int64_t> ElementBounds(const ParameterLayout& layout, const std::vector<size_t>& first) {
  std::vector<int64_t> bounds;
  for (const size_t i : first)
    bounds.push_back(i < layout.parameters().size() ? layout.parameters()[i].offset : layout.size());
  return bounds;
}

}  // namespace

void StepReport::Add(const StepReport& other) {
  loss += other.loss;
  mean_log_prob += other.mean_log_prob;
  entropy += other.entropy;
  tokens += other.tokens;
  live_share += other.live_share;
  for (const auto& [name, value] : other.method) method[name] += value;
  if (fp8.size() < other.fp8.size()) fp8.resize(other.fp8.size());
  for (size_t i = 0; i < other.fp8.size(); ++i) {
    fp8[i].saturated += other.fp8[i].saturated;
    fp8[i].flushed += other.fp8[i].flushed;
    fp8[i].gradient_saturated += other.fp8[i].gradient_saturated;
    fp8[i].gradient_flushed += other.fp8[i].gradient_flushed;
    fp8[i].linear_amax = std::max(fp8[i].linear_amax, other.fp8[i].linear_amax);
  }
}

Trainer::Trainer(Ops& ops, const ModelConfig& config, const Recipe& recipe, int64_t max_positions,
                 const TrainerOptions& options)
    : ops_(ops),
      options_(options),
      transformer_(ops, config, recipe.act, max_positions),
      loss_head_(ops, transformer_),
      parameters_(config, options.memory.bf16_masters ? DType::kBf16 : transformer_.acc_dtype(), &ops),
      gradients_(config, transformer_.acc_dtype(), &ops),
      slices_(SliceParameters(parameters_.layout(), options.ranks == nullptr ? 1 : options.ranks->ranks())),
      slice_bounds_(ElementBounds(parameters_.layout(), slices_)),
      moments_(ops, parameters_.layout(), transformer_.acc_dtype(), options.memory,
               slices_[static_cast<size_t>(rank())], slices_[static_cast<size_t>(rank()) + 1]),
      weights_(ops, config, recipe, true),
      arena_(ops.memory()) {
  const int64_t ranks = options.ranks == nullptr ? 1 : options.ranks->ranks();
  if (options_.shards == 0) options_.shards = ranks;
  QUERN_CHECK(options_.shards % ranks == 0, "shards must be a multiple of the ranks");
  QUERN_CHECK(options_.ranks == nullptr || (ops_.memory() != nullptr) == (options_.device_ranks != nullptr),
              "ranks on a device need a communicator of its memory, others none");
  if (recipe.delayed()) {
    fp8_amax_ = Tensor(DType::kF32, config.layers, 12);
    fp8_seen_ = Tensor(DType::kF32, config.layers, 12);
  }
  if (!recipe.smooth_channels()) return;
  smooth_scales_ = Tensor(DType::kF32, config.layers, config.intermediate_size, ops.memory());
  linear_amax_ = Tensor(DType::kF32, config.layers, config.intermediate_size, ops.memory());
  ops_.Fill(smooth_scales_, 1);
}

TrainerMemory Trainer::Memory() const {
  TrainerMemory memory;
  memory.parameters = parameters_.flat().cols * DTypeSize(parameters_.flat().dtype);
  memory.gradients = gradients_.flat().cols * DTypeSize(gradients_.flat().dtype);
  for (const auto& spare : spare_gradients_)
    if (spare != nullptr) memory.gradients += spare->flat().cols * DTypeSize(spare->flat().dtype);
  memory.moments = moments_.bytes();
  memory.packed = weights_.bytes();
  if (target_parameters_ != nullptr)
    memory.target =
        target_parameters_->flat().cols * DTypeSize(target_parameters_->flat().dtype) + target_weights_->bytes();
  memory.activations = arena_.peak_bytes();
  return memory;
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
  ReleaseState();
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
  if (slices_.size() == 2) {
    for (Moments::Run& run : moments_.State()) state.emplace_back(run.array, run.values);
  } else {
    if (whole_moments_.empty())
      for (const Moments::Array& array : moments_.Arrays()) whole_moments_.emplace_back(array.dtype, 1, array.size);
    for (size_t i = 0; i < whole_moments_.size(); ++i) state.emplace_back(moments_.Arrays()[i].name, whole_moments_[i]);
  }
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

namespace {

size_t IndexOf(const std::vector<Moments::Array>& arrays, const std::string& name) {
  for (size_t i = 0; i < arrays.size(); ++i)
    if (arrays[i].name == name) return i;
  QUERN_CHECK(false, name);
  return 0;
}

}  // namespace

Status Trainer::CollectState() {
  if (slices_.size() == 2) return {};
  const std::vector<Moments::Array> arrays = moments_.Arrays();
  if (rank() == 0 && whole_moments_.empty()) (void)State();
  for (const Moments::Run& run : moments_.State()) {
    // Where each rank's run begins and ends.
    std::string mine = StrCat(run.begin);
    QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> begins, options_.ranks->AllGatherTexts(mine));
    std::vector<int64_t> bounds;
    for (const std::string& begin : begins) bounds.push_back(std::strtoll(begin.c_str(), nullptr, 10));
    QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> ends,
                           options_.ranks->AllGatherTexts(StrCat(run.begin + run.values.cols)));
    bounds.push_back(std::strtoll(ends.back().c_str(), nullptr, 10));
    const TensorView whole = rank() == 0 ? whole_moments_[IndexOf(arrays, run.array)].view() : TensorView();
    const Tensor copy = ops_.memory() != nullptr ? OnHost(ops_, run.values) : Tensor();
    QUERN_RETURN_IF_ERROR(
        options_.ranks->Gather(ops_.memory() != nullptr ? copy.view() : run.values, whole, bounds, 0));
  }
  return {};
}

Status Trainer::Resume(int64_t step) {
  step_ = step;
  if (!whole_moments_.empty()) {
    const std::vector<Moments::Array> arrays = moments_.Arrays();
    for (const Moments::Run& run : moments_.State()) {
      if (run.values.cols == 0) continue;
      const TensorView whole = whole_moments_[IndexOf(arrays, run.array)];
      ops_.Upload(whole.Cols(run.begin, run.values.cols), run.values);
    }
    ReleaseState();
  }
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

Result<StepReport> Trainer::AccumulateShard(const TrainingBatch& shard, uint64_t number, const WholeBatch& whole,
                                            const Objective& objective, const Bootstrap* bootstrap,
                                            Parameters& gradients, const GradientsDone& done) {
  StepReport report;
  report.tokens = shard.tokens.rows();
  std::vector<TrainingBatch> parts = SplitBatch(shard, options_.max_micro_batch_tokens);
  std::erase_if(parts, [](const TrainingBatch& part) { return part.rows.empty(); });
  if (parts.empty() && done) CallForAll(gradients.layout(), done);
  uint64_t micro_batch = 0;
  for (TrainingBatch& part : parts) {
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
    objective.Coefficients(part.rows, max_ratio, whole.loss_rows, coefficients, report.method);
    Saved saved;
    saved.seed = MixSeed(options_.optimizer.seed, static_cast<uint64_t>(step_) << 20 | number << 12 | ++micro_batch);
    const TensorView hidden = ForwardHidden(weights_, part.tokens, kv, &saved);
    report.seconds.forward += SecondsSince(forward_begin);
    const auto backward_begin = Clock::now();
    const TensorView dhidden = arena_.New(transformer_.acc_dtype(), hidden.rows, hidden.cols);
    const LossHead::Result head = loss_head_.ForwardBackward(weights_, hidden, part.rows, coefficients,
                                                             objective.reserved_token(), dhidden, gradients, arena_);
    const double live_scale =
        1 / static_cast<double>(transformer_.config().layers * whole.tokens);  // of the whole batch, as `loss`
    const double memory_weight = static_cast<double>(options_.optimizer.memory_loss) * live_scale;
    transformer_.Backward(weights_, part.tokens, saved, dhidden, gradients, arena_, static_cast<float>(memory_weight),
                          &part == &parts.back() ? done : GradientsDone());
    if (transformer_.config().selective_attention)
      report.live_share += LivePositions(ops_, part.tokens, saved) * live_scale;
    ObserveFp8(saved, report);
    report.seconds.backward += SecondsSince(backward_begin);
    report.log_probs.insert(report.log_probs.end(), head.log_probs.begin(), head.log_probs.end());
    report.loss += head.loss;
    report.mean_log_prob += head.log_prob_sum / whole.loss_rows;
    report.entropy += head.entropy_sum / whole.loss_rows;
  }
  return report;
}

// Shards [lo, hi), numbered as in the whole batch, of which `shards` are this rank's.
Result<StepReport> Trainer::AccumulateTree(std::span<const TrainingBatch> shards, int64_t lo, int64_t hi,
                                           const WholeBatch& whole, const Objective& objective,
                                           const Bootstrap* bootstrap, Parameters& gradients, size_t depth,
                                           const GradientsDone& done) {
  if (hi - lo == 1)
    return AccumulateShard(shards[static_cast<size_t>(lo)], static_cast<uint64_t>(lo), whole, objective, bootstrap,
                           gradients, done);
  const int64_t split = TreeSplit(lo, hi);
  QUERN_ASSIGN_OR_RETURN(StepReport report,
                         AccumulateTree(shards, lo, split, whole, objective, bootstrap, gradients, depth + 1, {}));
  if (spare_gradients_.size() <= depth) spare_gradients_.resize(depth + 1);
  std::unique_ptr<Parameters>& spare = spare_gradients_[depth];
  if (spare == nullptr) spare = std::make_unique<Parameters>(transformer_.config(), transformer_.acc_dtype(), &ops_);
  ops_.Fill(spare->flat(), 0);
  const auto add = [&, &right = *spare](int64_t begin, int64_t end) {
    ops_.Add(right.flat().Cols(begin, end - begin), gradients.flat().Cols(begin, end - begin));
    if (done) done(begin, end);
  };
  QUERN_ASSIGN_OR_RETURN(const StepReport right,
                         AccumulateTree(shards, split, hi, whole, objective, bootstrap, *spare, depth + 1, add));
  report.Add(right);
  return report;
}

Result<StepReport> Trainer::AccumulateGradients(const TrainingBatch& batch, const Objective& objective,
                                                const Bootstrap* bootstrap) {
  if (batch.rows.empty()) return InvalidArgument("a training batch without a single agent token");
  const WholeBatch whole{static_cast<double>(batch.rows.size()), batch.tokens.rows()};
  if (!linear_amax_.view().empty()) ops_.Fill(linear_amax_, 0);
  if (!fp8_seen_.view().empty()) ops_.Fill(fp8_seen_, 0);
  // Each rank comes to have the sum of its slice, of what is complete while the rest is computed.
  Status reduced;
  const auto reduce = [&](int64_t begin, int64_t end) {
    std::vector<int64_t> bounds;
    for (const int64_t bound : slice_bounds_) bounds.push_back(std::clamp(bound, begin, end) - begin);
    if (reduced.ok()) reduced = tensor_ranks().BeginReduceScatter(gradients_.flat().Cols(begin, end - begin), bounds);
  };
  const GradientsDone done = options_.ranks == nullptr ? GradientsDone() : GradientsDone(reduce);
  StepReport report;
  if (options_.shards == 1) {
    QUERN_ASSIGN_OR_RETURN(report, AccumulateShard(batch, 0, whole, objective, bootstrap, gradients_, done));
  } else {
    const std::vector<TrainingBatch> shards = CutBatch(batch, options_.shards);
    const int64_t own = options_.shards / static_cast<int64_t>(slices_.size() - 1);
    QUERN_ASSIGN_OR_RETURN(report, AccumulateTree(shards, rank() * own, (rank() + 1) * own, whole, objective, bootstrap,
                                                  gradients_, 0, done));
  }
  QUERN_RETURN_IF_ERROR(reduced);
  if (options_.ranks != nullptr) QUERN_RETURN_IF_ERROR(ReduceOverRanks(report));
  report.loss_tokens = static_cast<int64_t>(batch.rows.size());
  for (auto& [name, value] : report.method) value /= whole.loss_rows;
  FinishFp8(report);
  return report;
}

namespace {

// A report's numbers as text without loss, for the other ranks.
std::string WriteReport(const StepReport& r) {
  std::string out = StrFormat("%a %a %a %a %lld %zu %zu", r.loss, r.mean_log_prob, r.entropy, r.live_share,
                              static_cast<long long>(r.tokens), r.fp8.size(), r.method.size());
  for (const StepReport::Fp8Layer& layer : r.fp8)
    out += StrFormat(" %a %a %a %a %a", layer.saturated, layer.flushed, layer.gradient_saturated,
                     layer.gradient_flushed, layer.linear_amax);
  for (const auto& [name, value] : r.method) out += StrFormat(" %s %a", name.c_str(), value);
  return out;
}

StepReport ReadReport(const std::string& text) {
  const std::vector<std::string> words = StrSplit(text, ' ');
  size_t at = 0;
  const auto number = [&] { return std::strtod(words.at(at++).c_str(), nullptr); };
  StepReport r;
  r.loss = number();
  r.mean_log_prob = number();
  r.entropy = number();
  r.live_share = number();
  r.tokens = static_cast<int64_t>(number());
  r.fp8.resize(static_cast<size_t>(number()));
  const auto methods = static_cast<size_t>(number());
  for (StepReport::Fp8Layer& layer : r.fp8) {
    layer.saturated = number();
    layer.flushed = number();
    layer.gradient_saturated = number();
    layer.gradient_flushed = number();
    layer.linear_amax = number();
  }
  for (size_t i = 0; i < methods; ++i) {
    const std::string& name = words.at(at++);
    r.method[name] = number();
  }
  return r;
}

StepReport SumTree(const std::vector<StepReport>& reports, int64_t lo, int64_t hi) {
  if (hi - lo == 1) return reports[static_cast<size_t>(lo)];
  const int64_t split = TreeSplit(lo, hi);
  StepReport left = SumTree(reports, lo, split);
  left.Add(SumTree(reports, split, hi));
  return left;
}

TensorView AsOneRow(TensorView x) {
  x.cols = x.stride = x.rows * x.cols;
  x.rows = 1;
  return x;
}

}  // namespace

Status Trainer::ReduceOverRanks(StepReport& report) {
  HostCommunicator& ranks = *options_.ranks;
  QUERN_RETURN_IF_ERROR(tensor_ranks().Finish());
  constexpr auto kMax = Communicator::Reduction::kMax;
  if (linear_amax_.cols() > 0) QUERN_RETURN_IF_ERROR(tensor_ranks().AllReduce(AsOneRow(linear_amax_), kMax));
  if (fp8_seen_.cols() > 0) QUERN_RETURN_IF_ERROR(ranks.AllReduce(AsOneRow(fp8_seen_), kMax));  // the host's
  QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> texts, ranks.AllGatherTexts(WriteReport(report)));
  std::vector<StepReport> reports;
  for (const std::string& text : texts) reports.push_back(ReadReport(text));
  report = SumTree(reports, 0, static_cast<int64_t>(reports.size()));
  return {};
}

// With shards: parameter by parameter, so that it is the same sum wherever slices begin.
Result<double> Trainer::GradientNorm() {
  if (options_.shards == 1) return std::sqrt(ops_.SquaredNorm(gradients_.flat()));
  const std::vector<ParameterInfo>& parameters = gradients_.layout().parameters();
  Tensor sums(DType::kF64, 1, static_cast<int64_t>(parameters.size()));
  std::vector<int64_t> bounds(slices_.begin(), slices_.end());
  const auto own = static_cast<size_t>(rank());
  for (size_t i = slices_[own]; i < slices_[own + 1]; ++i) {
    const ParameterInfo& info = parameters[i];
    sums.Row<double>(0)[i] = ops_.SquaredNorm(gradients_.flat().Cols(info.offset, info.rows * info.cols));
  }
  if (options_.ranks != nullptr) QUERN_RETURN_IF_ERROR(options_.ranks->AllGather(sums, bounds));
  double total = 0;
  for (int64_t i = 0; i < sums.cols(); ++i) total += sums.Row<double>(0)[i];
  return std::sqrt(total);
}

Result<StepReport> Trainer::Step(const TrainingBatch& batch, const Objective& objective, const Bootstrap* bootstrap) {
  ops_.Fill(gradients_.flat(), 0);
  QUERN_ASSIGN_OR_RETURN(StepReport report, AccumulateGradients(batch, objective, bootstrap));
  const OptimizerOptions& o = options_.optimizer;
  const auto optimizer_begin = Clock::now();
  QUERN_ASSIGN_OR_RETURN(report.grad_norm, GradientNorm());
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
  if (options_.ranks != nullptr) QUERN_RETURN_IF_ERROR(tensor_ranks().AllGather(parameters_.flat(), slice_bounds_));
  ClampSelectionGains(transformer_.config(), parameters_);
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
  const TensorSource source = parameters.Source();
  const TensorSource host = parameters.device() != nullptr ? OnHost(*parameters.device(), source) : source;
  const TensorView gate = *host(LayerPrefix(layer) + "mlp.gate_proj.weight");
  const TensorView up = *host(LayerPrefix(layer) + "mlp.up_proj.weight");
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
