// Attention of the CPU backend: against the reference, and the promise that a row's bits do not depend on its batch.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/compute/cpu_ops_fixture.h"

namespace quern {
namespace {

constexpr DType kF32 = DType::kF32, kBf16 = DType::kBf16, kReal = DType::kF64;

struct Shape {
  int64_t heads, kv_heads, dim, window;
};

const Shape kShapes[] = {{6, 6, 48, 0}, {4, 2, 8, 0}, {6, 2, 64, 20}, {3, 1, 37, 70}, {8, 1, 80, 0}, {2, 2, 128, 5}};

class AttentionTest : public CpuOpsTest {
 protected:
  double relative() const { return act() == kBf16 ? 0x1.02p-8 : 1e-5; }
  // Where the softmax's weights are rounded to bf16, an output moves by up to 2^-8 of its values' mean distance to it,
  // which is about 1 here.
  double absolute() const { return act() == kBf16 && GetParam().isa == cpu::Isa::kAvx512Bf16 ? 0x1p-8 : 3e-6; }
  KvLayout Layout(const Shape& shape) const {
    return {.dtype = act(), .layers = 2, .kv_heads = shape.kv_heads, .head_dim = shape.dim};
  }
  Tensor RandomQkv(const Shape& shape, int64_t rows, uint64_t seed) const {
    return RandomTensor(act(), rows, (shape.heads + 2 * shape.kv_heads) * shape.dim, seed);
  }
  static float Scale(const Shape& shape) { return 1.0f / std::sqrt(static_cast<float>(shape.dim)); }

  // Writes and attends in layer 1.
  static void Attend(Ops& ops, const Shape& shape, const KvLayout& layout, const TensorView& qkv,
                     const std::vector<SequenceRows>& sequences, const TensorView& out, const TensorView& lse) {
    ops.KvWrite({.qkv = qkv, .sequences = sequences, .layout = layout, .layer = 1, .heads = shape.heads});
    ops.Attention({.q = qkv.Cols(0, shape.heads * shape.dim),
                   .sequences = sequences,
                   .layout = layout,
                   .layer = 1,
                   .heads = shape.heads,
                   .scale = Scale(shape),
                   .window = shape.window,
                   .out = out,
                   .lse = lse});
  }
};

TEST_P(AttentionTest, MatchesTheReference) {
  const std::vector<int64_t> lengths = {1, 17, 70, 131};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  for (const Shape& shape : kShapes) {
    const PaddedTensor qkv(RandomQkv(shape, rows, 1), 6);
    const PaddedTensor out(Tensor(act(), rows, shape.heads * shape.dim), 3);
    Tensor lse(kF32, rows, shape.heads), expected(kReal, rows, shape.heads * shape.dim),
        expected_lse(kReal, rows, shape.heads);
    const TestPages pages(Layout(shape), lengths), reference_pages(Layout(shape), lengths);
    Attend(cpu_, shape, Layout(shape), qkv, pages.AllRows(lengths), out, lse);
    Attend(*reference_, shape, Layout(shape), qkv, reference_pages.AllRows(lengths), expected, expected_lse);
    EXPECT_LE(WorstError(out, expected, absolute(), relative()), 1) << "head dim " << shape.dim;
    EXPECT_LE(WorstError(lse, expected_lse, 3e-6, 1e-6), 1) << "head dim " << shape.dim;
    EXPECT_TRUE(out.Intact());
  }
}

// Weights that are all the same are exact in every format, so that nothing covers a value that is left out or added.
TEST_P(AttentionTest, QueriesOfZeroAverageTheValues) {
  const std::vector<int64_t> lengths = {1, 2, 17, 70};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  for (const Shape& shape : kShapes) {
    const Tensor qkv = RandomQkv(shape, rows, 1);
    cpu_.Fill(qkv.view().Cols(0, shape.heads * shape.dim), 0);
    Tensor out(act(), rows, shape.heads * shape.dim), lse(kF32, rows, shape.heads),
        expected(kReal, rows, shape.heads * shape.dim), expected_lse(kReal, rows, shape.heads);
    const TestPages pages(Layout(shape), lengths), reference_pages(Layout(shape), lengths);
    Attend(cpu_, shape, Layout(shape), qkv, pages.AllRows(lengths), out, lse);
    Attend(*reference_, shape, Layout(shape), qkv, reference_pages.AllRows(lengths), expected, expected_lse);
    EXPECT_LE(WorstError(out, expected, 3e-6, relative()), 1) << "head dim " << shape.dim;
    EXPECT_LE(WorstError(lse, expected_lse, 3e-6, 1e-6), 1) << "head dim " << shape.dim;
  }
}

TEST_P(AttentionTest, BackwardMatchesTheReference) {
  const std::vector<int64_t> lengths = {1, 45, 70};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  for (const Shape& shape : kShapes) {
    const int64_t width = shape.heads * shape.dim;
    const PaddedTensor qkv(RandomQkv(shape, rows, 1), 6);
    const TestPages pages(Layout(shape), lengths);
    const auto sequences = pages.AllRows(lengths);
    Tensor out(act(), rows, width), lse(kF32, rows, shape.heads);
    Attend(cpu_, shape, Layout(shape), qkv, sequences, out, lse);
    for (const DType grad : {kF32, act()}) {
      const PaddedTensor dout(RandomTensor(grad, rows, width, 2), 1);
      const PaddedTensor dqkv(RandomTensor(grad, rows, qkv.view().cols, 3), 4);
      Tensor expected(kReal, rows, qkv.view().cols);
      AttentionBackwardArgs args = {.qkv = qkv,
                                    .sequences = sequences,
                                    .heads = shape.heads,
                                    .kv_heads = shape.kv_heads,
                                    .head_dim = shape.dim,
                                    .scale = Scale(shape),
                                    .window = shape.window,
                                    .out = out,
                                    .lse = lse,
                                    .dout = dout,
                                    .dqkv = dqkv};
      cpu_.AttentionBackward(args);
      args.dqkv = expected;
      reference_->AttentionBackward(args);
      const double rounding = grad == kBf16 ? 0x1.02p-8 : 2e-5;
      EXPECT_LE(WorstError(dqkv, expected, 2e-5, rounding), 1) << "head dim " << shape.dim;
      EXPECT_TRUE(dqkv.Intact());

      // Again, with one thread: the same bits.
      ThreadPool one(1);
      CpuOps alone(&one, GetParam().isa);
      Tensor again(grad, rows, qkv.view().cols);
      args.dqkv = again;
      alone.AttentionBackward(args);
      EXPECT_TRUE(BitEqual(again, dqkv.view()));
    }
  }
}

// Training runs all rows at once; prefill runs them in pieces; decode runs one a step, with other sequences in the
// batch.
TEST_P(AttentionTest, TrainingPrefillAndDecodeGiveEqualBits) {
  const std::vector<int64_t> lengths = {1, 17, 70, 131};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  for (const Shape& shape : kShapes) {
    const KvLayout layout = Layout(shape);
    const Tensor qkv = RandomQkv(shape, rows, 1);
    const int64_t width = shape.heads * shape.dim;
    const TestPages pages(layout, lengths);
    const auto sequences = pages.AllRows(lengths);
    Tensor out(act(), rows, width), lse(kF32, rows, shape.heads);
    Attend(cpu_, shape, layout, qkv, sequences, out, lse);

    // Each call takes the next few rows (`step`, or a random number up to 40 for 0) of every unfinished sequence, in an
    // order that changes.
    for (const int64_t step : {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{64}}) {
      for (const int threads : {1, 2}) {
        ThreadPool pool(threads);
        CpuOps ops(&pool, GetParam().isa);
        const TestPages own_pages(layout, lengths);
        std::vector<int64_t> done(lengths.size(), 0);
        Random random(static_cast<uint64_t>(step + 1));
        while (done != lengths) {
          std::vector<SequenceRows> batch;
          std::vector<int64_t> from;  // rows of qkv
          for (size_t i = 0; i < lengths.size(); ++i) {
            const size_t s = (i + random.Below(lengths.size())) % lengths.size();
            const bool taken =
                std::any_of(batch.begin(), batch.end(), [&](const auto& b) { return b.pages == own_pages.Table(s); });
            const int64_t left = lengths[s] - done[s];
            if (taken || left == 0) continue;
            const int64_t count = std::min(left, step > 0 ? step : 1 + static_cast<int64_t>(random.Below(40)));
            batch.push_back({.row = static_cast<int64_t>(from.size()),
                             .count = count,
                             .context = done[s],
                             .pages = own_pages.Table(s)});
            for (int64_t r = 0; r < count; ++r) from.push_back(sequences[s].row + done[s] + r);
            done[s] += count;
          }
          const auto count = static_cast<int64_t>(from.size());
          Tensor part(act(), count, qkv.cols()), part_out(act(), count, width), part_lse(kF32, count, shape.heads);
          ops.GatherRows({.x = qkv, .rows = from, .y = part});
          Attend(ops, shape, layout, part, batch, part_out, part_lse);
          for (int64_t r = 0; r < count; ++r) {
            const int64_t row = from[static_cast<size_t>(r)];
            ASSERT_TRUE(BitEqual(part_out.view().Rows(r, 1), out.view().Rows(row, 1)))
                << "row " << row << " step " << step << " head dim " << shape.dim;
            ASSERT_TRUE(BitEqual(part_lse.view().Rows(r, 1), lse.view().Rows(row, 1))) << "row " << row;
          }
        }
      }
    }
  }
}

// A sequence longer than a tile of anything, and one query at its end.
TEST_P(AttentionTest, LongContext) {
  const Shape shape = {4, 1, 32, 0};
  const std::vector<int64_t> lengths = {1500};
  const KvLayout layout = Layout(shape);
  const Tensor qkv = RandomQkv(shape, 1500, 1);
  const TestPages pages(layout, lengths);
  Tensor out(act(), 1500, 128), lse(kF32, 1500, 4), last(act(), 1, 128), last_lse(kF32, 1, 4), expected(kReal, 1, 128),
      expected_lse(kReal, 1, 4);
  Attend(cpu_, shape, layout, qkv, pages.AllRows(lengths), out, lse);
  const std::vector<SequenceRows> decode = {{.row = 0, .count = 1, .context = 1499, .pages = pages.Table(0)}};
  const TensorView row = qkv.view().Rows(1499, 1);
  Attend(cpu_, shape, layout, row, decode, last, last_lse);
  Attend(*reference_, shape, layout, row, decode, expected, expected_lse);
  EXPECT_TRUE(BitEqual(last, out.view().Rows(1499, 1)));
  EXPECT_LE(WorstError(last, expected, absolute(), relative()), 1);
  EXPECT_LE(WorstError(last_lse, expected_lse, 3e-6, 1e-6), 1);
}

TEST(AttentionAcrossInstructionSets, Avx2AndAvx512GiveEqualBits) {
  if (!cpu::IsaAvailable(cpu::Isa::kAvx512)) GTEST_SKIP() << "no AVX-512";
  constexpr int64_t kRows = 90, kHeads = 4, kDim = 40;
  const std::vector<int64_t> lengths = {kRows};
  const KvLayout layout = {.dtype = kBf16, .layers = 1, .kv_heads = 2, .head_dim = kDim};
  const Tensor qkv = RandomTensor(kBf16, kRows, (kHeads + 4) * kDim, 1);
  const auto run = [&](cpu::Isa isa) {
    ThreadPool pool(1);
    CpuOps ops(&pool, isa);
    const TestPages pages(layout, lengths);
    const auto sequences = pages.AllRows(lengths);
    Tensor out(kF32, kRows, kHeads * kDim);
    ops.KvWrite({.qkv = qkv, .sequences = sequences, .layout = layout, .layer = 0, .heads = kHeads});
    ops.Attention({.q = qkv.view().Cols(0, kHeads * kDim),
                   .sequences = sequences,
                   .layout = layout,
                   .layer = 0,
                   .heads = kHeads,
                   .scale = 0.2f,
                   .window = 0,
                   .out = out,
                   .lse = {}});
    return out;
  };
  EXPECT_TRUE(BitEqual(run(cpu::Isa::kAvx2), run(cpu::Isa::kAvx512)));
}

INSTANTIATE_TEST_SUITE_P(Cpu, AttentionTest, ::testing::ValuesIn(CpuCases()), CpuCaseName);

}  // namespace
}  // namespace quern
