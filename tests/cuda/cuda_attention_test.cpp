// Attention of the GPU's backend: the kernels for every shape, those with tensor cores, Selective Attention and pruned
// keys against the reference, and equal bits in training, prefill and decode.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "compute/key_pruning.h"
#include "tests/compute/test_tensors.h"
#include "tests/cuda/backend.h"

namespace quern {
namespace {

constexpr double kGain = 0.6;  // of selective cases
constexpr DType kF32 = DType::kF32, kBf16 = DType::kBf16, kReal = DType::kF64;

struct Case {
  DType act;
  int64_t heads, kv_heads, dim, window;
  bool selective = false;
  int64_t budget = 0;
};

class CudaAttentionTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    ops_ = NewBackendUnderTest();
    if (ops_ == nullptr) GTEST_SKIP() << WhyNoBackend();
  }
  void TearDown() override { SetThreadOrder(0); }

  // Probabilities are rounded to bf16 before they meet the values, as FlashAttention does.
  double relative() const { return c_.act == kBf16 ? 0x1p-6 : 2e-5; }
  double absolute() const { return c_.act == kBf16 ? 0x1p-7 : 1e-5; }
  KvLayout Layout() const {
    return {.dtype = c_.act, .layers = 2, .kv_heads = c_.kv_heads, .head_dim = c_.dim, .selective = c_.selective};
  }
  int64_t width() const { return c_.heads * c_.dim; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(c_.dim)); }
  Tensor RandomQkv(int64_t rows) const {
    return RandomTensor(c_.act, rows, (c_.heads + 2 * c_.kv_heads) * c_.dim, 1, c_.selective ? 0.5 : 1);
  }
  void Attend(Ops& ops, const TensorView& qkv, std::span<const SequenceRows> sequences, const TensorView& out,
              const TensorView& lse, const TensorView& live = {}) const {
    ops.KvWrite({.qkv = qkv, .sequences = sequences, .layout = Layout(), .layer = 1, .heads = c_.heads});
    ops.Attention({.q = qkv.Cols(0, width()),
                   .sequences = sequences,
                   .layout = Layout(),
                   .layer = 1,
                   .heads = c_.heads,
                   .scale = scale(),
                   .window = c_.window,
                   .out = out,
                   .lse = lse,
                   .budget = c_.budget,
                   .gain = kGain,
                   .live = live});
  }
  std::vector<Tensor> Selections(const std::vector<int64_t>& lengths) const {
    std::vector<Tensor> out;
    for (const int64_t length : lengths) {
      out.push_back(RandomTensor(kF32, 1, (length + 63) / 64 * Layout().selection_elements(), 9));
      if (!c_.selective) out.back() = Tensor();
    }
    return out;
  }

  const Case c_ = GetParam();
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Ops> reference_ = NewReferenceOps();
};

TEST_P(CudaAttentionTest, ForwardAndBackwardMatchTheReference) {
  const std::vector<int64_t> lengths = {1, 17, 70};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  // Padding that keeps rows aligned, so that the kernels with tensor cores take them.
  const PaddedTensor qkv(RandomQkv(rows), 8), out(Tensor(c_.act, rows, width()), 8);
  Tensor lse(kF32, rows, c_.heads), live(kF32, 1, rows), expected(kReal, rows, width()),
      expected_lse(kReal, rows, c_.heads), expected_live(kReal, 1, rows);
  const TestPages pages(Layout(), lengths), reference_pages(Layout(), lengths);
  const std::vector<Tensor> selections = Selections(lengths), reference_selections = Selections(lengths);
  auto sequences = pages.AllRows(lengths), reference_sequences = reference_pages.AllRows(lengths);
  for (size_t i = 0; i < lengths.size(); ++i) {
    sequences[i].selection = selections[i].view().data;
    reference_sequences[i].selection = reference_selections[i].view().data;
  }
  Attend(*ops_, qkv, sequences, out, lse, c_.selective ? live.view() : TensorView{});
  Attend(*reference_, qkv, reference_sequences, expected, expected_lse,
         c_.selective ? expected_live.view() : TensorView{});
  EXPECT_LE(WorstError(out, expected, absolute(), relative()), 1);
  EXPECT_LE(WorstError(lse, expected_lse, 1e-5, 2e-6), 1);
  EXPECT_LE(WorstError(live, expected_live, 1e-4, 2e-6), 1);
  EXPECT_TRUE(out.Intact());
  for (const uint64_t order : {1, 5}) {
    SetThreadOrder(order);
    Tensor again(c_.act, rows, width());
    Attend(*ops_, qkv, sequences, again, {});
    EXPECT_TRUE(BitEqual(out.view(), again)) << "order " << order;
  }
  SetThreadOrder(0);
  if (c_.budget > 0) return;

  const PaddedTensor dout(RandomTensor(c_.act, rows, width(), 2), 8);
  const PaddedTensor dqkv(RandomTensor(c_.act, rows, qkv.view().cols, 3), 4);
  Tensor expected_dqkv(kReal, rows, qkv.view().cols), dgain(kF32, 1, 1), expected_dgain(kReal, 1, 1);
  AttentionBackwardArgs args = {.qkv = qkv,
                                .sequences = sequences,
                                .heads = c_.heads,
                                .kv_heads = c_.kv_heads,
                                .head_dim = c_.dim,
                                .scale = scale(),
                                .window = c_.window,
                                .out = out,
                                .lse = lse,
                                .dout = dout,
                                .dqkv = dqkv,
                                .selective = c_.selective,
                                .live_weight = c_.selective ? 2.0f : 0.0f,
                                .live_tau = 0.75f,
                                .gain = kGain,
                                .dgain = dgain};
  ops_->AttentionBackward(args);
  args.dqkv = expected_dqkv;
  args.dgain = expected_dgain;
  reference_->AttentionBackward(args);
  EXPECT_LE(WorstError(dqkv, expected_dqkv, c_.act == kBf16 ? 0x1p-6 : 3e-5, c_.act == kBf16 ? 0x1p-6 : 3e-5), 1);
  EXPECT_TRUE(dqkv.Intact());
  EXPECT_LE(WorstError(dgain, expected_dgain, c_.act == kBf16 ? 0.2 : 2e-3, c_.act == kBf16 ? 0x1p-5 : 1e-4), 1);
  args.dgain = {};
  for (const uint64_t order : {1, 5}) {
    SetThreadOrder(order);
    Tensor again(c_.act, rows, qkv.view().cols);
    args.dqkv = again;
    ops_->AttentionBackward(args);
    EXPECT_TRUE(BitEqual(dqkv.view(), again)) << "order " << order;
  }
}

// All rows at once, in pieces, one a call with other sequences beside them; long enough for several segments, which
// have a block each in the short calls.
TEST_P(CudaAttentionTest, TrainingPrefillAndDecodeGiveEqualBits) {
  const std::vector<int64_t> lengths = {310, 20};
  const KvLayout layout = Layout();
  const Tensor qkv = RandomQkv(330);
  const TestPages pages(layout, lengths);
  const std::vector<Tensor> selections = Selections(lengths);
  auto sequences = pages.AllRows(lengths);
  for (size_t i = 0; i < lengths.size(); ++i) sequences[i].selection = selections[i].view().data;
  Tensor out(c_.act, 330, width()), lse(kF32, 330, c_.heads);
  Attend(*ops_, qkv, sequences, out, lse);

  const TestPages own_pages(layout, lengths);
  const std::vector<Tensor> own_selections = Selections(lengths);
  std::vector<int64_t> done = {0, 0};
  // First long pieces, then single rows.
  for (const auto& [first, second] : {std::pair{int64_t{190}, int64_t{17}}, {110, 0}, {3, 1}, {1, 1}, {6, 1}}) {
    std::vector<SequenceRows> batch;
    std::vector<int64_t> from;
    const int64_t counts[] = {first, second};
    for (size_t s : {size_t{1}, size_t{0}}) {
      if (counts[s] == 0) continue;
      batch.push_back({.row = static_cast<int64_t>(from.size()),
                       .count = counts[s],
                       .context = done[s],
                       .pages = own_pages.Table(s),
                       .selection = own_selections[s].view().data});
      for (int64_t r = 0; r < counts[s]; ++r) from.push_back(sequences[s].row + done[s] + r);
      done[s] += counts[s];
    }
    const auto count = static_cast<int64_t>(from.size());
    Tensor part(c_.act, count, qkv.cols()), part_out(c_.act, count, width()), part_lse(kF32, count, c_.heads);
    reference_->GatherRows({.x = qkv, .rows = from, .y = part});
    SetThreadOrder(static_cast<uint64_t>(count % 7));
    Attend(*ops_, part, batch, part_out, part_lse);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = from[static_cast<size_t>(r)];
      ASSERT_TRUE(BitEqual(part_out.view().Rows(r, 1), out.view().Rows(row, 1))) << "row " << row;
      ASSERT_TRUE(BitEqual(part_lse.view().Rows(r, 1), lse.view().Rows(row, 1))) << "row " << row;
    }
  }
  EXPECT_EQ(done, lengths);
}

INSTANTIATE_TEST_SUITE_P(Cuda, CudaAttentionTest,
                         ::testing::Values(Case{kF32, 4, 2, 8, 0}, Case{kF32, 3, 1, 37, 30}, Case{kBf16, 2, 2, 80, 0},
                                           Case{kBf16, 4, 2, 64, 0}, Case{kBf16, 3, 1, 64, 20},
                                           Case{kBf16, 2, 1, 128, 0}, Case{kF32, 4, 2, 8, 0, true, 0},
                                           Case{kF32, 3, 3, 16, 0, true, 12}, Case{kBf16, 2, 1, 64, 0, true, 0},
                                           Case{kBf16, 2, 2, 64, 0, true, 12}),
                         [](const auto& test) {
                           const Case& c = test.param;
                           return std::string(DTypeName(c.act)) + "_" + std::to_string(c.heads) + "_" +
                                  std::to_string(c.kv_heads) + "_" + std::to_string(c.dim) + "_window" +
                                  std::to_string(c.window) + (c.selective ? "_selective" : "") +
                                  (c.budget > 0 ? "_budget" : "");
                         });

TEST(CudaPrunedKeys, MatchTheReference) {
  const auto ops = NewBackendUnderTest();
  if (ops == nullptr) GTEST_SKIP() << WhyNoBackend();
  constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 64, kLength = 150, kPruned = 2;
  const auto reference = NewReferenceOps();
  const KvLayout layout = {.dtype = kBf16, .layers = 1, .kv_heads = kKvHeads, .head_dim = kDim};
  const Tensor qkv = RandomTensor(kBf16, kLength, (kHeads + 2 * kKvHeads) * kDim, 1);
  for (const int64_t full_heads : {0, 1}) {
    for (const int64_t channels : {int64_t{13}, kDim}) {
      const TestPages pages(layout, {kLength});
      const auto all = pages.AllRows({kLength});
      ops->KvWrite({.qkv = qkv, .sequences = all, .layout = layout, .heads = kHeads});
      std::vector<int32_t> kept;
      for (int64_t head = 0; head < kKvHeads; ++head)
        for (int64_t c = 0; c < channels; ++c)
          kept.push_back(static_cast<int32_t>(kDim - channels + c - (c == 0 && channels < kDim ? head : 0)));
      const PrunedKeys pruned = {.pages = kPruned, .channels = channels, .full_heads = full_heads, .kept = kept.data()};
      std::vector<Tensor> small;
      std::vector<void*> table(all[0].pages, all[0].pages + 3);
      for (size_t p = 0; p < kPruned; ++p) {
        small.emplace_back(kBf16, 1, pruned.page_elements(layout));
        CopySlots(layout, WholeKeys(layout), pruned, {table[p], small.back().view().data, 0, 0, KvLayout::kPageTokens});
        table[p] = small.back().view().data;
      }
      for (const int64_t count : {int64_t{1}, kLength - kPruned * KvLayout::kPageTokens}) {
        const SequenceRows sequence = {.row = 0,
                                       .count = count,
                                       .context = kLength - count,
                                       .pages = table.data(),
                                       .selection = nullptr,
                                       .pruned = &pruned};
        Tensor out(kBf16, count, kHeads * kDim), expected(kReal, count, kHeads * kDim);
        for (Ops* o : {ops.get(), reference.get()})
          o->Attention({.q = qkv.view().Rows(kLength - count, count).Cols(0, kHeads * kDim),
                        .sequences = {&sequence, 1},
                        .layout = layout,
                        .heads = kHeads,
                        .scale = 0.125f,
                        .out = o == ops.get() ? out : expected,
                        .lse = {}});
        EXPECT_LE(WorstError(out, expected, 1e-5, 0x1.02p-8), 1) << channels;
      }
    }
  }
}

}  // namespace
}  // namespace quern
