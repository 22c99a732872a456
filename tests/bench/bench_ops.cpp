// Time of each operation but the matrix products at the shapes of a 15M-parameter model, with the bytes it has to move
// (or the floating-point operations it has to do). Usage: bench_ops [threads] [fp32|bf16]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/random.h"
#include "compute/cpu/cpu_ops.h"

namespace quern {
namespace {

constexpr int64_t kRows = 1024, kSequence = 256, kDim = 288, kHidden = 768, kVocabulary = 32000, kHeads = 6,
                  kHeadDim = 48;
constexpr int64_t kLogitRows = 256, kParameters = 15'191'712;
constexpr DType kF32 = DType::kF32;

Tensor RandomTensor(Ops& ops, DType dtype, int64_t rows, int64_t cols) {
  Tensor x(kF32, rows, cols), out(dtype, rows, cols);
  Random random(static_cast<uint64_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) x.Row<float>(r)[c] = 4 * random.UniformFloat() - 2;
  ops.Cast(x, out);
  return out;
}

// Best of several runs: neighbours on the machine only ever add time.
void Report(const char* name, double gigabytes, double gigaflops, const std::function<void()>& run) {
  run();
  double best = 1e9;
  const auto begin = Clock::now();
  for (int i = 0; i < 50 && (i < 5 || SecondsSince(begin) < 0.3); ++i) {
    const auto start = Clock::now();
    run();
    best = std::min(best, SecondsSince(start));
  }
  std::printf("%-28s %9.1f us", name, best * 1e6);
  if (gigabytes > 0) std::printf("  %7.2f MB  %6.1f GB/s", gigabytes * 1e3, gigabytes / best);
  if (gigaflops > 0) std::printf("  %7.1f MFLOP  %6.1f GFLOP/s", gigaflops * 1e3, gigaflops / best);
  std::printf("\n");
}

void Run(int threads, DType act) {
  ThreadPool pool(threads);
  CpuOps ops(&pool);
  std::printf("%d threads, %s activations, %s\n", pool.threads(), DTypeName(act), cpu::IsaName(cpu::ActiveIsa()));
  const auto size = static_cast<double>(DTypeSize(act));
  const auto gb = [](double elements, double bytes) { return elements * bytes * 1e-9; };

  const Tensor x = RandomTensor(ops, kF32, kRows, kDim), weight = RandomTensor(ops, kF32, 1, kDim);
  Tensor y(act, kRows, kDim), inv_rms(kF32, 1, kRows), dx(kF32, kRows, kDim), dweight(kF32, 1, kDim);
  Report("rms norm", gb(kRows * kDim, 4 + size), 0,
         [&] { ops.RmsNorm({.x = x, .weight = weight, .y = y, .inv_rms = inv_rms}); });
  Report("rms norm backward", gb(kRows * kDim, 12 + size), 0, [&] {
    ops.RmsNormBackward({.dy = y, .x = x, .weight = weight, .inv_rms = inv_rms, .dx = dx, .dweight = dweight});
  });

  std::vector<int32_t> ids, positions;
  for (int64_t t = 0; t < kRows; ++t) {
    ids.push_back(static_cast<int32_t>(t * 7919 % kVocabulary));
    positions.push_back(static_cast<int32_t>(t % kSequence));
  }
  const Tensor table = RandomTensor(ops, kF32, kVocabulary, kDim);
  Tensor dtable(kF32, kVocabulary, kDim);
  Report("embedding", gb(kRows * kDim, 8), 0, [&] { ops.Embedding({.ids = ids, .table = table, .out = dx}); });
  Report("embedding backward", gb(kRows * kDim, 12), 0,
         [&] { ops.EmbeddingBackward({.ids = ids, .dout = x, .dtable = dtable}); });

  constexpr int64_t kWidth = 3 * kHeads * kHeadDim;
  const Tensor qkv = RandomTensor(ops, act, kRows, kWidth);
  const Tensor cos = RandomTensor(ops, kF32, kSequence, kHeadDim / 2),
               sin = RandomTensor(ops, kF32, kSequence, kHeadDim / 2);
  Tensor rotated(act, kRows, kWidth), dqkv(act, kRows, kWidth);
  const RotaryArgs rotary = {.qkv = qkv,
                             .out = rotated,
                             .positions = positions,
                             .cos = cos,
                             .sin = sin,
                             .q_norm = {},
                             .k_norm = {},
                             .heads = kHeads,
                             .kv_heads = kHeads,
                             .head_dim = kHeadDim};
  Report("rotary", gb(kRows * kWidth, 2 * size), 0, [&] { ops.Rotary(rotary); });
  Report("rotary backward", gb(kRows * kWidth * 2 / 3, 2 * size), 0,
         [&] { ops.RotaryBackward({.forward = rotary, .dqkv = dqkv, .dq_norm = {}, .dk_norm = {}}); });

  const KvLayout layout = {.dtype = act, .layers = 1, .kv_heads = kHeads, .head_dim = kHeadDim};
  std::vector<Tensor> pages;
  std::vector<void*> page_pointers;
  for (int64_t p = 0; p < kRows / KvLayout::kPageTokens; ++p) {
    pages.emplace_back(act, 1, layout.page_elements());
    page_pointers.push_back(pages.back().view().data);
  }
  std::vector<SequenceRows> sequences, decode;
  for (int64_t s = 0; s < kRows / kSequence; ++s) {
    void* const* table_of = page_pointers.data() + s * kSequence / KvLayout::kPageTokens;
    sequences.push_back({.row = s * kSequence, .count = kSequence, .context = 0, .pages = table_of});
    decode.push_back({.row = s, .count = 1, .context = kSequence - 1, .pages = table_of});
  }
  Tensor out(act, kRows, kHeads * kHeadDim), lse(kF32, kRows, kHeads);
  ops.Rotary(rotary);
  const Tensor dout = RandomTensor(ops, act, kRows, kHeads * kHeadDim);
  Report("kv write", gb(kRows * kWidth * 2 / 3, 2 * size), 0,
         [&] { ops.KvWrite({.qkv = rotated, .sequences = sequences, .layout = layout, .layer = 0, .heads = kHeads}); });
  // A causal matrix product over pairs (query, key), 2 operations a channel.
  const double product = 1e-9 * kRows * kHeads * (kSequence + 1) / 2 * kHeadDim * 2;
  const float scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  const auto attend = [&](const std::vector<SequenceRows>& rows, int64_t count) {
    ops.Attention({.q = rotated.view().Rows(0, count).Cols(0, kHeads * kHeadDim),
                   .sequences = rows,
                   .layout = layout,
                   .layer = 0,
                   .heads = kHeads,
                   .scale = scale,
                   .window = 0,
                   .out = out.view().Rows(0, count),
                   .lse = lse.view().Rows(0, count)});
  };
  Report("attention (training)", 0, 2 * product, [&] { attend(sequences, kRows); });
  Report("attention backward", 0, 5 * product, [&] {
    ops.AttentionBackward({.qkv = rotated,
                           .sequences = sequences,
                           .heads = kHeads,
                           .kv_heads = kHeads,
                           .head_dim = kHeadDim,
                           .scale = scale,
                           .window = 0,
                           .out = out,
                           .lse = lse,
                           .dout = dout,
                           .dqkv = dqkv});
  });
  Report("attention (decode, 4 x 256)", gb(kRows * kWidth * 2 / 3, size), 0,
         [&] { attend(decode, static_cast<int64_t>(decode.size())); });

  const Tensor gate_up = RandomTensor(ops, act, kRows, 2 * kHidden), dh = RandomTensor(ops, act, kRows, kHidden);
  Tensor h(act, kRows, kHidden), dgate_up(act, kRows, 2 * kHidden);
  Report("swiglu", gb(kRows * kHidden, 3 * size), 0, [&] { ops.SwiGlu({.gate_up = gate_up, .h = h}); });
  Report("swiglu backward", gb(kRows * kHidden, 5 * size), 0,
         [&] { ops.SwiGluBackward({.gate_up = gate_up, .dh = dh, .dgate_up = dgate_up}); });

  const Tensor logits = RandomTensor(ops, kF32, kLogitRows, kVocabulary),
               other = RandomTensor(ops, kF32, 4, kVocabulary);
  Tensor row_lse(kF32, 1, kLogitRows), log_prob(kF32, 1, kLogitRows), mean(kF32, 1, kLogitRows),
      entropy(kF32, 1, kLogitRows);
  const std::vector<int32_t> targets(ids.begin(), ids.begin() + kLogitRows);
  Report("log softmax", gb(kLogitRows * kVocabulary, 4), 0, [&] {
    ops.LogSoftmax({.logits = logits,
                    .targets = targets,
                    .lse = row_lse,
                    .log_prob = log_prob,
                    .mean_log_prob = {},
                    .entropy = {}});
  });
  Report("log softmax, mean, entropy", gb(kLogitRows * kVocabulary, 4), 0, [&] {
    ops.LogSoftmax({.logits = logits,
                    .targets = targets,
                    .lse = row_lse,
                    .log_prob = log_prob,
                    .mean_log_prob = mean,
                    .entropy = entropy});
  });
  Tensor dlogits(act, kLogitRows, kVocabulary);
  Report("log softmax backward", gb(kLogitRows * kVocabulary, 4 + size), 0, [&] {
    ops.LogSoftmaxBackward(
        {.logits = logits, .lse = row_lse, .targets = targets, .a = log_prob, .b = {}, .c = {}, .dlogits = dlogits});
  });
  Report("max ratio (4 rows)", gb(4 * kVocabulary, 8), 0, [&] {
    ops.MaxRatio(
        {.value_logits = other, .behaviour_logits = logits.view().Rows(0, 4), .max_ratio = row_lse.view().Cols(0, 4)});
  });

  const Tensor grad = RandomTensor(ops, kF32, 1, kParameters);
  Tensor param(kF32, 1, kParameters), m(kF32, 1, kParameters), v(kF32, 1, kParameters);
  Report("adamw (15M)", gb(kParameters, 28), 0,
         [&] { ops.AdamW({.param = param, .grad = grad, .m = m, .v = v, .learning_rate = 1e-4f}); });
  double norm = 0;
  Report("squared norm (15M)", gb(kParameters, 4), 0, [&] { norm += ops.SquaredNorm(grad); });
  Report("lerp (15M)", gb(kParameters, 12), 0, [&] { ops.Lerp(grad, 0.01f, param); });
  Tensor narrow(DType::kBf16, 1, kParameters);
  Report("cast to bf16 (15M)", gb(kParameters, 6), 0, [&] { ops.Cast(grad, narrow); });
  std::printf("(%g)\n", norm);
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
  const bool bf16 = argc > 2 && std::string(argv[2]) == "bf16";
  quern::Run(threads, bf16 ? quern::DType::kBf16 : quern::DType::kF32);
}
