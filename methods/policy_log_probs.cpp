#include "methods/policy_log_probs.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace quern {

namespace {

// The policy's logits [n, V] f32, given those of its models, which may become them.
TensorView CombineLogits(Ops& ops, const PolicyHead& head, std::span<const TensorView> model_logits, Arena& arena) {
  if (head.copies()) {
    if (head.never() >= 0) ops.Fill(model_logits[0].Cols(head.never(), 1), -std::numeric_limits<float>::infinity());
    return model_logits[0];
  }
  std::vector<Tensor> rows;
  for (const TensorView& logits : model_logits) rows.push_back(OnHost(ops, logits));
  const TensorView out = arena.New(DType::kF32, rows[0].rows(), rows[0].cols());
  const Tensor combined(DType::kF32, out.rows, out.cols);
  ops.ForEach(out.rows, [&](int64_t i) {
    std::vector<std::span<const float>> inputs;
    for (const Tensor& logits : rows) inputs.emplace_back(logits.Row<float>(i), static_cast<size_t>(logits.cols()));
    head.Combine(inputs, {combined.Row<float>(i), static_cast<size_t>(out.cols)});
  });
  ops.Upload(combined.view(), out);
  return out;
}

}  // namespace

std::vector<float> PolicyLogProbs(Ops& ops, std::span<const PolicyModel> models, const PolicyHead& head,
                                  TokenBatch& batch, std::span<const int64_t> rows, std::span<const int32_t> targets,
                                  Arena& arena) {
  constexpr size_t kRows = 64;  // whose logits are there at a time
  QUERN_CHECK(rows.size() == targets.size() && static_cast<size_t>(head.models()) == models.size());
  std::vector<float> out;
  if (rows.empty()) return out;
  const Arena::Scope scope(arena);
  batch.wanted.emplace(rows.begin(), rows.end());
  std::vector<TensorView> hidden;
  for (const PolicyModel& model : models) {
    const Transformer& transformer = *model.transformer;
    hidden.push_back(arena.New(transformer.dtype(), std::ssize(rows), transformer.config().hidden_size));
    std::vector<void*> page_table;
    const KvView kv = MakeTrainingKv(transformer.kv_layout(), batch, arena, page_table);
    transformer.Forward(*model.weights, batch, kv, arena, hidden.back());
  }
  for (size_t begin = 0; begin < rows.size(); begin += kRows) {
    const Arena::Scope chunk(arena);
    const size_t count = std::min(kRows, rows.size() - begin);
    const auto n = static_cast<int64_t>(count);
    std::vector<TensorView> logits;
    for (size_t m = 0; m < models.size(); ++m) {
      logits.push_back(arena.New(DType::kF32, n, models[m].transformer->config().vocab_size));
      models[m].transformer->Logits(*models[m].weights, hidden[m].Rows(static_cast<int64_t>(begin), n), logits.back());
    }
    const TensorView log_prob = arena.New(DType::kF32, 1, n);
    ops.LogSoftmax({.logits = CombineLogits(ops, head, logits, arena),
                    .targets = targets.subspan(begin, count),
                    .lse = arena.New(DType::kF32, 1, n),
                    .log_prob = log_prob,
                    .mean_log_prob = {},
                    .entropy = {}});
    const Tensor host = OnHost(ops, log_prob);
    out.insert(out.end(), host.Row<float>(0), host.Row<float>(0) + n);
  }
  return out;
}

}  // namespace quern
