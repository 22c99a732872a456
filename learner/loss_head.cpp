#include "learner/loss_head.h"

#include <algorithm>

namespace quern {

namespace {
// Logits of a chunk: at most 32M elements, 64 MiB in bf16. Every chunk reads and writes the head's whole gradient, so
// chunks are long, and a whole number of the token blocks that the weight gradient sums.
constexpr int64_t kChunkElements = int64_t{32} << 20;
constexpr int64_t kMostChunkRows = 1024;
constexpr int64_t kLogitRows = 256;

std::vector<int64_t> RowIndices(std::span<const LossRow> rows) {
  std::vector<int64_t> out;
  out.reserve(rows.size());
  for (const LossRow& row : rows) out.push_back(row.row);
  return out;
}

double AccAt(const TensorView& view, int64_t col) {
  return view.dtype == DType::kF64 ? view.Row<double>(0)[col] : static_cast<double>(view.Row<float>(0)[col]);
}

// The values as a [1, n] acc vector in the arena.
TensorView ToAcc(Ops& ops, std::span<const float> values, DType acc, Arena& arena) {
  const Tensor host(acc, 1, static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i) {
    if (acc == DType::kF64) {
      host.Row<double>(0)[i] = static_cast<double>(values[i]);
    } else {
      host.Row<float>(0)[i] = values[i];
    }
  }
  const TensorView out = arena.New(acc, 1, host.cols());
  ops.Upload(host, out);
  return out;
}
}  // namespace

LossHead::LossHead(Ops& ops, const Transformer& transformer) : ops_(ops), transformer_(transformer) {}

int64_t LossHead::ChunkRows() const {
  return std::clamp<int64_t>(kChunkElements / transformer_.config().vocab_size, 16, kMostChunkRows);
}

std::vector<float> LossHead::MaxRatios(const Weights& behaviour, const TensorView& behaviour_hidden,
                                       const Weights& value, const TensorView& value_hidden,
                                       std::span<const LossRow> rows, float epsilon, float top_p, int32_t reserved,
                                       Arena& arena) const {
  const DType acc = transformer_.acc_dtype();
  const int64_t v = transformer_.config().vocab_size;
  const std::vector<int64_t> indices = RowIndices(rows);
  std::vector<float> out(rows.size());
  for (size_t begin = 0; begin < rows.size(); begin += static_cast<size_t>(ChunkRows())) {
    const Arena::Scope scope(arena);
    const size_t count = std::min(rows.size() - begin, static_cast<size_t>(ChunkRows()));
    const auto n = static_cast<int64_t>(count);
    const auto logits = [&](const Weights& weights, const TensorView& hidden) {
      const TensorView gathered = arena.New(hidden.dtype, n, hidden.cols);
      ops_.GatherRows({.x = hidden, .rows = std::span(indices).subspan(begin, count), .y = gathered});
      const TensorView z = arena.New(acc, n, v);
      transformer_.Logits(weights, gathered, z);
      return z;
    };
    const TensorView behaviour_logits = logits(behaviour, behaviour_hidden);
    const TensorView value_logits = logits(value, value_hidden);
    const TensorView ratio = arena.New(acc, 1, n);
    ops_.MaxRatio({.value_logits = value_logits,
                   .behaviour_logits = behaviour_logits,
                   .epsilon = epsilon,
                   .top_p = top_p,
                   .reserved = reserved,
                   .max_ratio = ratio});
    const Tensor host = OnHost(ops_, ratio);
    for (int64_t i = 0; i < n; ++i) out[begin + static_cast<size_t>(i)] = static_cast<float>(AccAt(host, i));
  }
  return out;
}

LossHead::Result LossHead::Score(const Weights& weights, const TensorView& hidden, std::span<const LossRow> rows,
                                 Arena& arena) const {
  const DType acc = transformer_.acc_dtype();
  const std::vector<int64_t> indices = RowIndices(rows);
  Result result;
  result.log_probs.resize(rows.size());
  std::vector<int32_t> targets;
  for (size_t begin = 0; begin < rows.size(); begin += static_cast<size_t>(ChunkRows())) {
    const Arena::Scope scope(arena);
    const size_t count = std::min(rows.size() - begin, static_cast<size_t>(ChunkRows()));
    const auto n = static_cast<int64_t>(count);
    targets.clear();
    for (size_t i = 0; i < count; ++i) targets.push_back(rows[begin + i].target);
    const TensorView gathered = arena.New(hidden.dtype, n, hidden.cols);
    ops_.GatherRows({.x = hidden, .rows = std::span(indices).subspan(begin, count), .y = gathered});
    const TensorView logits = arena.New(acc, n, transformer_.config().vocab_size);
    transformer_.Logits(weights, gathered, logits);
    const TensorView lse = arena.New(acc, 1, n), log_prob = arena.New(acc, 1, n), entropy = arena.New(acc, 1, n);
    ops_.LogSoftmax({.logits = logits,
                     .targets = targets,
                     .lse = lse,
                     .log_prob = log_prob,
                     .mean_log_prob = {},
                     .entropy = entropy});
    const Tensor log_probs = OnHost(ops_, log_prob), entropies = OnHost(ops_, entropy);
    for (int64_t i = 0; i < n; ++i) {
      const double lp = AccAt(log_probs, i);
      result.log_probs[begin + static_cast<size_t>(i)] = static_cast<float>(lp);
      result.log_prob_sum += lp;
      result.entropy_sum += AccAt(entropies, i);
    }
  }
  return result;
}

LossHead::Result LossHead::ForwardBackward(const Weights& weights, const TensorView& hidden,
                                           std::span<const LossRow> rows, const RowCoefficients& coefficients,
                                           int32_t reserved, const TensorView& dhidden, Parameters& gradients,
                                           Arena& arena) const {
  const DType acc = transformer_.acc_dtype();
  const int64_t v = transformer_.config().vocab_size;
  const std::vector<int64_t> indices = RowIndices(rows);
  const std::span<const float> a(coefficients.a), b(coefficients.b), c(coefficients.c);
  Result result;
  result.log_probs.resize(rows.size());
  ops_.Fill(dhidden, 0);
  std::vector<int32_t> targets;
  for (size_t begin = 0; begin < rows.size(); begin += static_cast<size_t>(ChunkRows())) {
    const Arena::Scope scope(arena);
    const size_t count = std::min(rows.size() - begin, static_cast<size_t>(ChunkRows()));
    const auto n = static_cast<int64_t>(count);
    const auto chunk_rows = std::span(indices).subspan(begin, count);
    targets.clear();
    for (size_t i = 0; i < count; ++i) targets.push_back(rows[begin + i].target);
    const TensorView gathered = arena.New(hidden.dtype, n, hidden.cols);
    ops_.GatherRows({.x = hidden, .rows = chunk_rows, .y = gathered});
    // The gradient of the logits is whole, the logits are not: their rows stay in cache between the three operations.
    const TensorView dlogits = arena.New(transformer_.dtype(), n, v);
    for (int64_t first = 0; first < n; first += kLogitRows) {
      const Arena::Scope logit_scope(arena);
      const int64_t m = std::min(kLogitRows, n - first);
      const size_t offset = begin + static_cast<size_t>(first);
      const auto length = static_cast<size_t>(m);
      const TensorView part = dlogits.Rows(first, m);
      const TensorView logits = transformer_.dtype() == acc ? part : arena.New(acc, m, v);
      transformer_.Logits(weights, gathered.Rows(first, m), logits);
      const TensorView lse = arena.New(acc, 1, m), log_prob = arena.New(acc, 1, m), entropy = arena.New(acc, 1, m);
      const TensorView mean = b.empty() ? TensorView{} : arena.New(acc, 1, m);
      const auto part_targets = std::span<const int32_t>(targets).subspan(static_cast<size_t>(first), length);
      ops_.LogSoftmax({.logits = logits,
                       .targets = part_targets,
                       .lse = lse,
                       .log_prob = log_prob,
                       .mean_log_prob = mean,
                       .entropy = entropy});
      const Tensor log_probs = OnHost(ops_, log_prob), entropies = OnHost(ops_, entropy);
      const Tensor means = OnHost(ops_, mean), masses = c.empty() ? Tensor() : OnHost(ops_, lse);
      const Tensor reserved_logits = c.empty() ? Tensor() : OnHost(ops_, logits.Cols(reserved, 1));
      for (int64_t i = 0; i < m; ++i) {
        const size_t row = offset + static_cast<size_t>(i);
        const double lp = AccAt(log_probs, i);
        result.log_probs[row] = static_cast<float>(lp);
        result.log_prob_sum += lp;
        result.entropy_sum += AccAt(entropies, i);
        result.loss += static_cast<double>(a[row]) * lp;
        if (!b.empty()) result.loss += static_cast<double>(b[row]) * AccAt(means, i);
        if (!c.empty())
          result.loss += static_cast<double>(c[row]) * (AccAt(reserved_logits.view().Rows(i, 1), 0) - AccAt(masses, i));
      }
      ops_.LogSoftmaxBackward({.logits = logits,
                               .lse = lse,
                               .targets = part_targets,
                               .a = ToAcc(ops_, a.subspan(offset, length), acc, arena),
                               .b = b.empty() ? TensorView{} : ToAcc(ops_, b.subspan(offset, length), acc, arena),
                               .c = c.empty() ? TensorView{} : ToAcc(ops_, c.subspan(offset, length), acc, arena),
                               .reserved = reserved,
                               .dlogits = part});
    }
    const TensorView dgathered = arena.New(acc, n, hidden.cols);
    transformer_.HeadBackward(weights, dlogits, gathered, dgathered, gradients);
    ops_.ScatterRows({.x = dgathered, .rows = chunk_rows, .y = dhidden});
  }
  return result;
}

}  // namespace quern
