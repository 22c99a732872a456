// What gives the same bits: a row in any batch, a gradient with any number of threads, all vector instruction sets.

#include <span>
#include <vector>

#include "tests/compute/cpu_ops_fixture.h"

namespace quern {
namespace {

constexpr DType kF32 = DType::kF32, kBf16 = DType::kBf16, kReal = DType::kF64;

class BitEqualityTest : public CpuOpsTest {};

// A row alone gives the bits it gives among others, with any number of threads.
TEST_P(BitEqualityTest, RowsDoNotDependOnTheBatch) {
  constexpr int64_t kRows = 50, kDim = 300;
  ThreadPool one(1);
  CpuOps alone(&one, GetParam().isa);
  const Tensor x = RandomTensor(kF32, kRows, kDim, 1), weight = RandomTensor(kF32, 1, kDim, 2);
  const Tensor gate_up = RandomTensor(act(), kRows, 2 * kDim, 3);
  const auto targets = RandomIds(kRows, kDim, 4);
  const std::vector<int32_t> positions(kRows, 0);
  const Tensor cos = RandomTensor(kF32, 1, 15, 5), sin = RandomTensor(kF32, 1, 15, 6),
               norm = RandomTensor(kF32, 1, 30, 7);
  const Tensor a = RandomTensor(kF32, 1, kRows, 8);
  struct Outputs {
    Tensor normed, inv_rms, h, rotated, lse, log_prob, mean, entropy, dlogits, ratio;
  };
  const auto run = [&](Ops& ops, int64_t begin, int64_t rows) {
    Outputs out = {Tensor(act(), rows, kDim),     Tensor(kF32, 1, rows), Tensor(act(), rows, kDim),
                   Tensor(act(), rows, 2 * kDim), Tensor(kF32, 1, rows), Tensor(kF32, 1, rows),
                   Tensor(kF32, 1, rows),         Tensor(kF32, 1, rows), Tensor(act(), rows, kDim),
                   Tensor(kF32, 1, rows)};
    const TensorView xs = x.view().Rows(begin, rows), gates = gate_up.view().Rows(begin, rows);
    const std::span<const int32_t> ids =
        std::span(targets).subspan(static_cast<size_t>(begin), static_cast<size_t>(rows));
    ops.RmsNorm({.x = xs, .weight = weight, .eps = 1e-5f, .y = out.normed, .inv_rms = out.inv_rms});
    ops.SwiGlu({.gate_up = gates, .h = out.h});
    ops.Rotary({.qkv = gates,
                .out = out.rotated,
                .positions = std::span(positions).first(static_cast<size_t>(rows)),
                .cos = cos,
                .sin = sin,
                .q_norm = norm,
                .k_norm = norm,
                .norm_eps = 1e-6f,
                .heads = 10,
                .kv_heads = 5,
                .head_dim = 30});
    ops.LogSoftmax({.logits = xs,
                    .targets = ids,
                    .lse = out.lse,
                    .log_prob = out.log_prob,
                    .mean_log_prob = out.mean,
                    .entropy = out.entropy});
    ops.LogSoftmaxBackward({.logits = xs,
                            .lse = out.lse,
                            .targets = ids,
                            .a = a.view().Cols(begin, rows),
                            .b = {},
                            .c = {},
                            .reserved = -1,
                            .dlogits = out.dlogits});
    ops.MaxRatio({.value_logits = xs, .behaviour_logits = xs, .max_ratio = out.ratio});
    return out;
  };
  const Outputs all = run(cpu_, 0, kRows);
  const Outputs single = run(alone, 0, kRows);
  for (int64_t row = 0; row < kRows; row += 7) {
    const Outputs own = run(alone, row, 1);
    for (const Outputs* batch : {&all, &single}) {
      for (const auto member : {&Outputs::normed, &Outputs::h, &Outputs::rotated, &Outputs::dlogits})
        EXPECT_TRUE(BitEqual(own.*member, (batch->*member).view().Rows(row, 1)));
      for (const auto member :
           {&Outputs::inv_rms, &Outputs::lse, &Outputs::log_prob, &Outputs::mean, &Outputs::entropy, &Outputs::ratio})
        EXPECT_TRUE(BitEqual(own.*member, (batch->*member).view().Cols(row, 1)));
    }
  }
  // The statistics that need a second sum do not change the first.
  Tensor lse(kF32, 1, kRows);
  cpu_.LogSoftmax({.logits = x, .targets = {}, .lse = lse, .log_prob = {}, .mean_log_prob = {}, .entropy = {}});
  EXPECT_TRUE(BitEqual(lse, all.lse));
}

// Sums over rows are cut into pieces by size, never by the number of threads.
TEST_P(BitEqualityTest, GradientsDoNotDependOnThreads) {
  constexpr int64_t kRows = 300, kDim = 200;
  const Tensor x = RandomTensor(kF32, kRows, kDim, 1), weight = RandomTensor(kF32, 1, kDim, 2),
               dy = RandomTensor(act(), kRows, kDim, 3);
  const Tensor inv_rms = RandomTensor(kF32, 1, kRows, 4);
  const auto ids = RandomIds(kRows, 7, 5);
  const auto run = [&](int threads) {
    ThreadPool pool(threads);
    CpuOps ops(&pool, GetParam().isa);
    std::vector<Tensor> out;
    out.emplace_back(kF32, 1, kDim);
    ops.BiasBackward({.dy = dy, .dbias = out[0]});
    out.emplace_back(kF32, kRows, kDim);
    out.emplace_back(kF32, 1, kDim);
    ops.RmsNormBackward({.dy = dy, .x = x, .weight = weight, .inv_rms = inv_rms, .dx = out[1], .dweight = out[2]});
    out.emplace_back(kF32, 7, kDim);
    ops.EmbeddingBackward({.ids = ids, .dout = x, .dtable = out[3]});
    out.emplace_back(kReal, 1, 1);
    SetElement(out[4], 0, 0, ops.SquaredNorm(x));
    return out;
  };
  const auto one = run(1), two = run(2), five = run(5);
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_TRUE(BitEqual(one[i], two[i])) << i;
    EXPECT_TRUE(BitEqual(one[i], five[i])) << i;
  }
}

TEST(BitEquality, OfAvx2AndAvx512) {
  if (!cpu::IsaAvailable(cpu::Isa::kAvx512)) GTEST_SKIP() << "no AVX-512";
  ThreadPool pool(1);
  CpuOps narrow(&pool, cpu::Isa::kAvx2), wide(&pool, cpu::Isa::kAvx512);
  const Tensor logits = RandomTensor(kF32, 6, 1003, 1, 5), weight = RandomTensor(kF32, 1, 1003, 2);
  const auto run = [&](Ops& ops) {
    std::vector<Tensor> out;
    for (int i = 0; i < 3; ++i) out.emplace_back(kF32, 1, 6);
    out.emplace_back(kBf16, 6, 1003);
    ops.LogSoftmax(
        {.logits = logits, .targets = {}, .lse = out[0], .log_prob = {}, .mean_log_prob = out[1], .entropy = out[2]});
    ops.RmsNorm({.x = logits, .weight = weight, .eps = 1e-5f, .y = out[3], .inv_rms = {}});
    return out;
  };
  const auto a = run(narrow), b = run(wide);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(BitEqual(a[i], b[i])) << i;
}

INSTANTIATE_TEST_SUITE_P(Cpu, BitEqualityTest, ::testing::ValuesIn(CpuCases()), CpuCaseName);

}  // namespace
}  // namespace quern
