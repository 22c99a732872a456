// Selective Attention: the definition against worked examples, its gradient against differences, the CPU backend
// against the definition, and the same bits however rows are cut into calls.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/compute/cpu_ops_fixture.h"

namespace quern {
namespace {

constexpr DType kF32 = DType::kF32, kBf16 = DType::kBf16, kReal = DType::kF64;

struct Shape {
  int64_t heads, kv_heads, dim;
};
const Shape kShapes[] = {{6, 6, 48}, {4, 2, 8}, {3, 1, 37}, {1, 1, 16}};

// One selection a sequence, filled with NaN: initial values must not matter.
class Selections {
 public:
  Selections(const KvLayout& layout, const std::vector<int64_t>& lengths) {
    for (const int64_t length : lengths) {
      const int64_t pages = (length + KvLayout::kPageTokens - 1) / KvLayout::kPageTokens;
      tensors_.emplace_back(layout.dtype == kReal ? kReal : kF32, 1, pages * layout.selection_elements());
      for (int64_t i = 0; i < tensors_.back().cols(); ++i) SetElement(tensors_.back(), 0, i, std::nan(""));
    }
  }
  void* At(size_t sequence) const { return tensors_[sequence].view().data; }
  const Tensor& of(size_t sequence) const { return tensors_[sequence]; }
  void Set(std::vector<SequenceRows>& sequences) const {
    for (size_t i = 0; i < sequences.size(); ++i) sequences[i].selection = At(i);
  }

 private:
  std::vector<Tensor> tensors_;
};

struct Call {
  Shape shape;
  KvLayout layout;
  int64_t budget = 0;
  float scale = 1;
  float live_tau = 0.75f;
  double gain = 1;

  void Attend(Ops& ops, const TensorView& qkv, const std::vector<SequenceRows>& sequences, const TensorView& out,
              const TensorView& lse, const TensorView& live) const {
    ops.KvWrite({.qkv = qkv, .sequences = sequences, .layout = layout, .layer = 1, .heads = shape.heads});
    ops.Attention({.q = qkv.Cols(0, shape.heads * shape.dim),
                   .sequences = sequences,
                   .layout = layout,
                   .layer = 1,
                   .heads = shape.heads,
                   .scale = scale,
                   .out = out,
                   .lse = lse,
                   .budget = budget,
                   .gain = gain,
                   .live = live,
                   .live_tau = live_tau});
  }
};

Call MakeCall(const Shape& shape, DType dtype, int64_t budget) {
  return {.shape = shape,
          .layout = {.dtype = dtype, .layers = 2, .kv_heads = shape.kv_heads, .head_dim = shape.dim, .selective = true},
          .budget = budget,
          .scale = 0.3f / std::sqrt(static_cast<float>(shape.dim))};
}

// Queries and keys whose product is a given matrix: keys are unit vectors and row i's query is row i of the scores.
struct Worked {
  Worked(const std::vector<std::vector<std::vector<double>>>& logits, int64_t budget = 0, double gain = 1) {
    const auto heads = static_cast<int64_t>(logits.size()), n = static_cast<int64_t>(logits[0].size());
    qkv = Tensor(kReal, n, (heads + 2) * n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t j = 0; j <= i; ++j)
          SetElement(qkv, i, h * n + j, logits[static_cast<size_t>(h)][static_cast<size_t>(i)][static_cast<size_t>(j)]);
      SetElement(qkv, i, heads * n + i, 1);
      SetElement(qkv, i, (heads + 1) * n, static_cast<double>(i + 1));  // value i + 1 in channel 0
    }
    run = MakeCall({heads, 1, n}, kReal, budget);
    run.scale = run.live_tau = 1;
    run.gain = gain;
    out = Tensor(kReal, n, heads * n);
    lse = Tensor(kReal, n, heads);
    live = Tensor(kReal, 1, n);
    pages = std::make_unique<TestPages>(run.layout, std::vector<int64_t>{n});
    selections = std::make_unique<Selections>(run.layout, std::vector<int64_t>{n});
    sequences = pages->AllRows({n});
    selections->Set(sequences);
    const auto ops = NewReferenceOps();
    run.Attend(*ops, qkv, sequences, out, lse, live);
  }
  double Out(int64_t row, int64_t head) const { return GetElement(out, row, head * run.shape.dim); }
  // F of the row after the last.
  double Mask(int64_t position) const {
    return GetElement(selections->of(0), 0, run.layout.SelectionOffset(0, 1) + position);
  }

  Call run;
  Tensor qkv, out, lse, live;
  std::unique_ptr<TestPages> pages;
  std::unique_ptr<Selections> selections;
  std::vector<SequenceRows> sequences;
};

const std::vector<std::vector<std::vector<double>>> kFourTokens = {
    {{0.5}, {0.2, 0.3}, {1.0, 0.7, 0.4}, {-0.5, 0.9, -0.3, 0.6}},
    {{0.1}, {0.4, -0.2}, {0.3, 0.8, 0.1}, {0, 1.0, 0.5, -0.4}}};
const std::vector<std::vector<std::vector<double>>> kSixTokens = {
    {{0.1}, {0.2, 0.1}, {0.3, 0.9, 0.2}, {0.1, 0.8, 0.3, 0.5}, {0, 0.2, 0.6, 1.4, 0.1}, {0.3, 0.1, 0.2, 0, 0.4, 0.2}}};

TEST(SelectiveDefinition, FourTokensTwoHeads) {
  const Worked worked(kFourTokens);
  const double expected[2][4] = {{1, 1.524979, 1.802943, 2.860541}, {1, 1.354344, 1.947723, 2.426088}};
  for (int64_t head = 0; head < 2; ++head)
    for (int64_t row = 0; row < 4; ++row) EXPECT_NEAR(worked.Out(row, head), expected[head][row], 1e-6);
}

TEST(SelectiveDefinition, GradientOfFourTokens) {
  const Worked worked(kFourTokens);
  Tensor dout(kReal, 4, 8), dqkv(kReal, 4, worked.qkv.cols());
  for (int64_t row = 0; row < 4; ++row)
    for (int64_t head = 0; head < 2; ++head) SetElement(dout, row, head * 4, 1);
  NewReferenceOps()->AttentionBackward({.qkv = worked.qkv,
                                        .sequences = worked.sequences,
                                        .heads = 2,
                                        .kv_heads = 1,
                                        .head_dim = 4,
                                        .scale = 1,
                                        .out = worked.out,
                                        .lse = worked.lse,
                                        .dout = dout,
                                        .dqkv = dqkv,
                                        .selective = true});
  // By head 0's query i in channel j, which is that by its score of key j.
  EXPECT_NEAR(GetElement(dqkv, 2, 1), 0.426324, 1e-6);
  EXPECT_NEAR(GetElement(dqkv, 3, 1), -0.239376, 1e-6);
  EXPECT_NEAR(GetElement(dqkv, 2, 0), -0.350687, 1e-6);
  EXPECT_NEAR(GetElement(dqkv, 1, 1), 0.249376, 1e-6);
}

TEST(SelectiveDefinition, SixTokensTheirMemoryAndWhatIsEvicted) {
  const Worked worked(kSixTokens);
  const double next[] = {0, 2.0, 1.1, 1.4, 0.4, 0};  // row 5's own selection added to F of row 5
  for (int64_t p = 0; p < 6; ++p) EXPECT_NEAR(worked.Mask(p), next[p], 1e-12) << p;
  const double live[] = {1, 2, 3, 3.1, 3.7, 3.1};
  for (int64_t p = 0; p < 6; ++p) EXPECT_NEAR(GetElement(worked.live, 0, p), live[p], 1e-12) << p;

  const Worked budget(kSixTokens, 3);
  for (const int64_t p : {1, 2, 3}) EXPECT_TRUE(std::isinf(budget.Mask(p))) << p;
  for (const int64_t p : {0, 4, 5}) EXPECT_FALSE(std::isinf(budget.Mask(p))) << p;
  const Worked four(kSixTokens, 4);
  EXPECT_TRUE(std::isinf(four.Mask(1)) && std::isinf(four.Mask(3)) && !std::isinf(four.Mask(2)));
}

TEST(SelectiveDefinition, NothingSelectedIsPlainAttention) {
  auto logits = kFourTokens;
  for (auto& row : logits[0])
    for (double& l : row) l = -std::abs(l);
  const Worked worked(logits);
  Call plain = worked.run;
  plain.layout.selective = false;
  const TestPages pages(plain.layout, {4});
  Tensor out(kReal, 4, 8);
  plain.Attend(*NewReferenceOps(), worked.qkv, pages.AllRows({4}), out, {}, {});
  EXPECT_TRUE(BitEqual(out, worked.out));
}

// Without a selection all positions are alike, and the earliest but the first are evicted: a window.
TEST(SelectiveDefinition, WithoutGainABudgetIsAWindow) {
  const Worked worked(kSixTokens, 3, 0);
  for (const int64_t p : {1, 2, 3}) EXPECT_TRUE(std::isinf(worked.Mask(p))) << p;
  for (const int64_t p : {0, 4, 5}) EXPECT_EQ(worked.Mask(p), 0) << p;
}

TEST(SelectiveDefinition, GradientAgainstDifferences) {
  const Shape shape = {4, 2, 3};
  Call run = MakeCall(shape, kReal, 0);
  run.scale = 0.7f;
  run.gain = 0.8;
  const std::vector<int64_t> lengths = {6, 1, 8};
  const TestPages pages(run.layout, lengths);
  const Selections selections(run.layout, lengths);
  auto sequences = pages.AllRows(lengths);
  selections.Set(sequences);
  const auto ops = NewReferenceOps();
  const Tensor qkv = RandomTensor(kReal, 15, 8 * 3, 1), dout = RandomTensor(kReal, 15, 12, 2);
  Tensor out(kReal, 15, 12), lse(kReal, 15, 4), live(kReal, 1, 15), dqkv(kReal, 15, 24), dgain(kReal, 1, 1);
  constexpr double kLiveWeight = 0.25;
  const auto loss = [&] {
    run.Attend(*ops, qkv, sequences, out, lse, live);
    double sum = 0;
    for (int64_t r = 0; r < 15; ++r)
      for (int64_t c = 0; c < 12; ++c) sum += GetElement(out, r, c) * GetElement(dout, r, c);
    for (const SequenceRows& s : sequences) {
      double most = 0;
      for (int64_t r = s.row; r < s.row + s.count; ++r) most = std::max(most, GetElement(live, 0, r));
      sum += kLiveWeight * most;
    }
    return sum;
  };
  loss();
  ops->AttentionBackward({.qkv = qkv,
                          .sequences = sequences,
                          .heads = 4,
                          .kv_heads = 2,
                          .head_dim = 3,
                          .scale = 0.7f,
                          .out = out,
                          .lse = lse,
                          .dout = dout,
                          .dqkv = dqkv,
                          .selective = true,
                          .live_weight = 0.25f,
                          .live_tau = 0.75f,
                          .gain = run.gain,
                          .dgain = dgain});
  run.gain += 1e-5;
  const double more = loss();
  run.gain -= 2e-5;
  const double less = loss();
  run.gain = 0.8;
  EXPECT_NEAR((more - less) / 2e-5, GetElement(dgain, 0, 0), 1e-6);
  EXPECT_GT(std::abs(GetElement(dgain, 0, 0)), 0.1);
  for (int64_t r = 0; r < 15; ++r) {
    for (int64_t c = 0; c < 24; ++c) {
      const double at = GetElement(qkv, r, c);
      SetElement(qkv, r, c, at + 1e-5);
      const double above = loss();
      SetElement(qkv, r, c, at - 1e-5);
      const double below = loss();
      SetElement(qkv, r, c, at);
      ASSERT_NEAR((above - below) / 2e-5, GetElement(dqkv, r, c), 1e-6) << r << ", " << c;
    }
  }
}

class SelectiveTest : public CpuOpsTest {
 protected:
  double relative() const { return act() == kBf16 ? 0x1.02p-8 : 2e-5; }
  // As in attention_test.cpp.
  double absolute() const { return act() == kBf16 && GetParam().isa == cpu::Isa::kAvx512Bf16 ? 0x1p-8 : 5e-6; }
};

TEST_P(SelectiveTest, MatchesTheDefinition) {
  const std::vector<int64_t> lengths = {1, 17, 90};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  for (const Shape& shape : kShapes) {
    for (const int64_t budget : {0, 13, 400}) {
      Call run = MakeCall(shape, act(), budget);
      run.gain = shape.dim == 8 ? 0.6 : 1;
      const int64_t width = shape.heads * shape.dim;
      const PaddedTensor qkv(RandomTensor(act(), rows, (shape.heads + 2 * shape.kv_heads) * shape.dim, 1), 6);
      const PaddedTensor out(Tensor(act(), rows, width), 3);
      Tensor lse(kF32, rows, shape.heads), live(kF32, 1, rows);
      Tensor expected(kReal, rows, width), expected_lse(kReal, rows, shape.heads), expected_live(kReal, 1, rows);
      const TestPages pages(run.layout, lengths), reference_pages(run.layout, lengths);
      const Selections selections(run.layout, lengths), reference_selections(run.layout, lengths);
      auto sequences = pages.AllRows(lengths), reference_sequences = reference_pages.AllRows(lengths);
      selections.Set(sequences);
      reference_selections.Set(reference_sequences);
      run.Attend(cpu_, qkv, sequences, out, lse, live);
      run.Attend(*reference_, qkv, reference_sequences, expected, expected_lse, expected_live);
      EXPECT_LE(WorstError(out, expected, absolute(), relative()), 1) << shape.dim << " budget " << budget;
      EXPECT_LE(WorstError(lse, expected_lse, 5e-6, 2e-6), 1) << shape.dim << " budget " << budget;
      EXPECT_LE(WorstError(live, expected_live, 1e-4, 2e-6), 1) << shape.dim << " budget " << budget;
      EXPECT_TRUE(out.Intact());
    }
  }
}

TEST_P(SelectiveTest, BackwardMatchesTheDefinition) {
  const std::vector<int64_t> lengths = {1, 45, 70};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  for (const Shape& shape : kShapes) {
    Call run = MakeCall(shape, act(), 0);
    run.gain = shape.dim == 8 ? 0.6 : 1;
    const int64_t width = shape.heads * shape.dim;
    const PaddedTensor qkv(RandomTensor(act(), rows, (shape.heads + 2 * shape.kv_heads) * shape.dim, 1), 6);
    const TestPages pages(run.layout, lengths);
    const Selections selections(run.layout, lengths);
    auto sequences = pages.AllRows(lengths);
    selections.Set(sequences);
    Tensor out(act(), rows, width), lse(kF32, rows, shape.heads);
    run.Attend(cpu_, qkv, sequences, out, lse, {});
    for (const DType grad : {kF32, act()}) {
      const PaddedTensor dout(RandomTensor(grad, rows, width, 2), 1);
      const PaddedTensor dqkv(RandomTensor(grad, rows, qkv.view().cols, 3), 4);
      Tensor expected(kReal, rows, qkv.view().cols), dgain(kF32, 1, 1), expected_dgain(kReal, 1, 1);
      SetElement(dgain, 0, 0, 2);
      SetElement(expected_dgain, 0, 0, 2);
      AttentionBackwardArgs args = {.qkv = qkv,
                                    .sequences = sequences,
                                    .heads = shape.heads,
                                    .kv_heads = shape.kv_heads,
                                    .head_dim = shape.dim,
                                    .scale = run.scale,
                                    .out = out,
                                    .lse = lse,
                                    .dout = dout,
                                    .dqkv = dqkv,
                                    .selective = true,
                                    .live_weight = 2,
                                    .live_tau = 0.75f,
                                    .gain = run.gain,
                                    .dgain = dgain};
      cpu_.AttentionBackward(args);
      args.dqkv = expected;
      args.dgain = expected_dgain;
      reference_->AttentionBackward(args);
      EXPECT_LE(WorstError(dgain, expected_dgain, 1e-3, 1e-4), 1) << "head dim " << shape.dim;
      EXPECT_LE(WorstError(dqkv, expected, 3e-5, grad == kBf16 ? 0x1.02p-8 : 3e-5), 1) << "head dim " << shape.dim;
      EXPECT_TRUE(dqkv.Intact());

      ThreadPool one(1);
      CpuOps alone(&one, GetParam().isa);
      Tensor again(grad, rows, qkv.view().cols), dgain_again(kF32, 1, 1);
      SetElement(dgain_again, 0, 0, 2);
      args.dqkv = again;
      args.dgain = dgain_again;
      alone.AttentionBackward(args);
      EXPECT_TRUE(BitEqual(again, dqkv.view()));
      EXPECT_TRUE(BitEqual(dgain_again, dgain));
    }
  }
}

// All rows at once, in pieces, one a call; with other sequences or alone: the same bits.
TEST_P(SelectiveTest, AnyCutOfTheRowsGivesEqualBits) {
  const std::vector<int64_t> lengths = {1, 17, 70, 131};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  for (const Shape& shape : kShapes) {
    for (const int64_t budget : {0, 20}) {
      const Call run = MakeCall(shape, act(), budget);
      const Tensor qkv = RandomTensor(act(), rows, (shape.heads + 2 * shape.kv_heads) * shape.dim, 1);
      const int64_t width = shape.heads * shape.dim;
      const TestPages pages(run.layout, lengths);
      const Selections selections(run.layout, lengths);
      auto sequences = pages.AllRows(lengths);
      selections.Set(sequences);
      Tensor out(act(), rows, width), lse(kF32, rows, shape.heads);
      run.Attend(cpu_, qkv, sequences, out, lse, {});
      for (const int64_t step : {int64_t{0}, int64_t{1}, int64_t{64}}) {
        ThreadPool pool(static_cast<int>(step % 2) + 1);
        CpuOps ops(&pool, GetParam().isa);
        const TestPages own_pages(run.layout, lengths);
        const Selections own_selections(run.layout, lengths);
        std::vector<int64_t> done(lengths.size(), 0);
        Random random(static_cast<uint64_t>(step + 1));
        while (done != lengths) {
          std::vector<SequenceRows> batch;
          std::vector<int64_t> from;
          for (size_t s = 0; s < lengths.size(); ++s) {
            const int64_t left = lengths[s] - done[s];
            if (left == 0 || random.Below(4) == 0) continue;
            const int64_t count = std::min(left, step > 0 ? step : 1 + static_cast<int64_t>(random.Below(40)));
            batch.push_back({.row = static_cast<int64_t>(from.size()),
                             .count = count,
                             .context = done[s],
                             .pages = own_pages.Table(s),
                             .selection = own_selections.At(s)});
            for (int64_t r = 0; r < count; ++r) from.push_back(sequences[s].row + done[s] + r);
            done[s] += count;
          }
          const auto count = static_cast<int64_t>(from.size());
          if (count == 0) continue;
          Tensor part(act(), count, qkv.cols()), part_out(act(), count, width), part_lse(kF32, count, shape.heads);
          ops.GatherRows({.x = qkv, .rows = from, .y = part});
          run.Attend(ops, part, batch, part_out, part_lse, {});
          for (int64_t r = 0; r < count; ++r) {
            const int64_t row = from[static_cast<size_t>(r)];
            ASSERT_TRUE(BitEqual(part_out.view().Rows(r, 1), out.view().Rows(row, 1))) << row << " step " << step;
            ASSERT_TRUE(BitEqual(part_lse.view().Rows(r, 1), lse.view().Rows(row, 1))) << row;
          }
        }
      }
    }
  }
}

// A budget that is never exceeded changes not a bit.
TEST_P(SelectiveTest, ABudgetOfAllPositionsChangesNothing) {
  const std::vector<int64_t> lengths = {90};
  const Shape shape = {4, 2, 16};
  const Tensor qkv = RandomTensor(act(), 90, 8 * 16, 1);
  Tensor outs[2];
  for (const int64_t budget : {0, 90}) {
    const Call run = MakeCall(shape, act(), budget);
    const TestPages pages(run.layout, lengths);
    const Selections selections(run.layout, lengths);
    auto sequences = pages.AllRows(lengths);
    selections.Set(sequences);
    Tensor& out = outs[budget > 0] = Tensor(act(), 90, 64);
    run.Attend(cpu_, qkv, sequences, out, {}, {});
  }
  EXPECT_TRUE(BitEqual(outs[0], outs[1]));
}

INSTANTIATE_TEST_SUITE_P(Cpu, SelectiveTest, ::testing::ValuesIn(CpuCases()), CpuCaseName);

}  // namespace
}  // namespace quern
