// ThinK: which channels are kept, against worked examples, and attention over pages of which some are pruned.

#include "compute/key_pruning.h"

#include <cmath>

#include "compute/cpu/cpu_ops.h"
#include "tests/compute/test_tensors.h"

namespace quern {
namespace {

constexpr int64_t kPage = KvLayout::kPageTokens;
using Channels = std::vector<int32_t>;
using Matrix = std::vector<std::vector<double>>;

std::vector<double> ColumnSquares(const Matrix& rows) {
  std::vector<double> squares(rows[0].size());
  for (const auto& row : rows)
    for (size_t d = 0; d < row.size(); ++d) squares[d] += row[d] * row[d];
  return squares;
}

// Frobenius norm of what the scores lose.
double Lost(const Matrix& q, const Matrix& k, const Channels& kept) {
  double sum = 0;
  for (const auto& query : q) {
    for (const auto& key : k) {
      double lost = 0;
      for (size_t d = 0; d < query.size(); ++d) lost += query[d] * key[d];
      for (const int32_t d : kept) lost -= query[static_cast<size_t>(d)] * key[static_cast<size_t>(d)];
      sum += lost * lost;
    }
  }
  return std::sqrt(sum);
}

const Matrix kQueries = {{1, 0.5, -2, 0.2}, {0, 1.5, 1, 0.2}};
const Matrix kKeys = {{0.5, 2, 0.1, 3}, {1, -1, 0.2, -2}, {-0.5, 0.5, 0.3, 1}};

TEST(ChooseChannels, WorkedExample) {
  const std::vector<double> q = ColumnSquares(kQueries), k = ColumnSquares(kKeys);
  const std::pair<Channels, double> expected[] = {{{1}, 1.562050}, {{0, 1}, 1.319091}, {{0, 1, 3}, 0.836660}};
  for (int64_t t = 1; t <= 3; ++t) {
    const Channels kept = ChooseChannels(q, k, 1, 4, t);
    EXPECT_EQ(kept, expected[t - 1].first);
    EXPECT_NEAR(Lost(kQueries, kKeys, kept), expected[t - 1].second, 1e-6);
  }
  EXPECT_EQ(ChooseChannels(q, k, 1, 4, 4), (Channels{0, 1, 2, 3}));
}

TEST(ChooseChannels, EqualsGoToTheLowerChannelThoughItIsNotTheBest) {
  const Matrix q = {{1, 1, 0.9}, {1, 1, 0.9}}, k = {{1, -1, 0.9}, {2, -2, 0.9}};
  const Channels kept = ChooseChannels(ColumnSquares(q), ColumnSquares(k), 1, 3, 1);
  EXPECT_EQ(kept, (Channels{0}));
  EXPECT_NEAR(Lost(q, k, kept), 1.7042, 1e-4);
  EXPECT_NEAR(Lost(q, k, {2}), 0, 1e-12);
}

TEST(ChooseChannels, HeadsOfAGroupDecideTogetherAndGroupsApart) {
  std::vector<double> q = ColumnSquares(kQueries);
  const double second[] = {0.2, 0.1, 9, 4};
  for (size_t d = 0; d < 4; ++d) q[d] += second[d];
  const std::vector<double> k = ColumnSquares(kKeys);
  EXPECT_EQ(ChooseChannels(q, k, 1, 4, 2), (Channels{1, 3}));
  std::vector<double> both_q = q, both_k = k;
  const std::vector<double> alone = ColumnSquares(kQueries);
  both_q.insert(both_q.end(), alone.begin(), alone.end());
  both_k.insert(both_k.end(), k.begin(), k.end());
  EXPECT_EQ(ChooseChannels(both_q, both_k, 2, 4, 2), (Channels{1, 3, 0, 1}));
}

struct Case {
  cpu::Isa isa;
  DType act;
};

class PrunedAttentionTest : public ::testing::TestWithParam<Case> {
 protected:
  ThreadPool pool_{2};
  CpuOps cpu_{&pool_, GetParam().isa};
};

TEST_P(PrunedAttentionTest, MatchesTheDefinition) {
  constexpr int64_t kHeads = 6, kKvHeads = 3, kDim = 20, kLength = 150, kPruned = 2;
  const DType act = GetParam().act;
  // As in attention_test.cpp.
  const double absolute = act == DType::kBf16 && GetParam().isa == cpu::Isa::kAvx512Bf16 ? 0x1p-8 : 5e-6;
  const KvLayout layout = {.dtype = act, .layers = 1, .kv_heads = kKvHeads, .head_dim = kDim};
  const Tensor qkv = RandomTensor(act, kLength, (kHeads + 2 * kKvHeads) * kDim, 1);
  const auto attend = [&](Ops& ops, const SequenceRows& sequence, const TensorView& out) {
    ops.Attention({.q = qkv.view().Rows(kLength - sequence.count, sequence.count).Cols(0, kHeads * kDim),
                   .sequences = {&sequence, 1},
                   .layout = layout,
                   .heads = kHeads,
                   .scale = 0.2f,
                   .out = out,
                   .lse = {}});
  };
  for (const int64_t full_heads : {0, 1}) {
    for (const int64_t channels : {int64_t{1}, int64_t{13}, kDim}) {
      const TestPages pages(layout, {kLength});
      const auto all = pages.AllRows({kLength});
      cpu_.KvWrite({.qkv = qkv, .sequences = all, .layout = layout, .heads = kHeads});
      Channels kept;
      for (int64_t head = 0; head < kKvHeads; ++head)
        for (int64_t c = 0; c < channels; ++c)
          kept.push_back(static_cast<int32_t>(kDim - channels + c - (c == 0 && channels < kDim ? head : 0)));
      PrunedKeys pruned = {.pages = kPruned, .channels = channels, .full_heads = full_heads, .kept = kept.data()};
      std::vector<Tensor> small;
      std::vector<void*> table(all[0].pages, all[0].pages + 3);
      for (size_t p = 0; p < kPruned; ++p) {
        small.emplace_back(act, 1, pruned.page_elements(layout));
        EXPECT_EQ(small.back().cols(), kPage * (full_heads * 2 * kDim + (kKvHeads - full_heads) * (channels + kDim)));
        CopySlots(layout, WholeKeys(layout), pruned, {table[p], small.back().view().data, 0, 0, kPage});
        table[p] = small.back().view().data;
      }
      for (const int64_t count : {int64_t{1}, kLength - kPruned * kPage}) {
        const SequenceRows sequence = {.row = 0,
                                       .count = count,
                                       .context = kLength - count,
                                       .pages = table.data(),
                                       .selection = nullptr,
                                       .pruned = &pruned};
        Tensor out(act, count, kHeads * kDim), expected(DType::kF64, count, kHeads * kDim),
            dense(act, count, kHeads * kDim);
        attend(cpu_, sequence, out);
        attend(*NewReferenceOps(), sequence, expected);
        EXPECT_LE(WorstError(out, expected, absolute, act == DType::kBf16 ? 0x1.02p-8 : 2e-5), 1) << channels;
        SequenceRows whole = all[0];
        whole.count = count;
        whole.context = kLength - count;
        attend(cpu_, whole, dense);
        EXPECT_EQ(BitEqual(out, dense), channels == kDim) << "all channels are dense attention";
      }
    }
  }
}

TEST_P(PrunedAttentionTest, SlotsAreCopiedWhole) {
  const KvLayout layout = {.dtype = GetParam().act, .layers = 1, .kv_heads = 2, .head_dim = 5};
  const Tensor from = RandomTensor(layout.dtype, 1, layout.page_elements(), 1);
  Tensor to(layout.dtype, 1, layout.page_elements());
  const PrunedKeys whole = WholeKeys(layout);
  for (int32_t begin = 0; begin < kPage; begin += 16)
    CopySlots(layout, whole, whole, {from.view().data, to.view().data, begin, begin, 16});
  EXPECT_TRUE(BitEqual(from, to));
  const Channels kept = {0, 3, 1, 2};
  const PrunedKeys pruned = {.pages = 1, .channels = 2, .full_heads = 0, .kept = kept.data()};
  Tensor small(layout.dtype, 1, pruned.page_elements(layout)), turned(layout.dtype, 1, small.cols());
  Tensor reversed(layout.dtype, 1, layout.page_elements()), expected(layout.dtype, 1, pruned.page_elements(layout));
  const auto all = static_cast<int32_t>(kPage);
  CopySlots(layout, whole, pruned, {from.view().data, small.view().data, 0, 0, all});
  for (int32_t slot = 0; slot < kPage; ++slot) {
    CopySlots(layout, pruned, pruned, {small.view().data, turned.view().data, slot, all - 1 - slot, 1});
    CopySlots(layout, whole, whole, {from.view().data, reversed.view().data, slot, all - 1 - slot, 1});
  }
  CopySlots(layout, whole, pruned, {reversed.view().data, expected.view().data, 0, 0, all});
  EXPECT_TRUE(BitEqual(turned, expected));
}

std::vector<Case> AllCases() {
  std::vector<Case> out;
  for (const cpu::Isa isa : {cpu::Isa::kScalar, cpu::Isa::kAvx2, cpu::Isa::kAvx512, cpu::Isa::kAvx512Bf16})
    if (cpu::IsaAvailable(isa))
      for (const DType act : {DType::kF32, DType::kBf16}) out.push_back({isa, act});
  return out;
}

INSTANTIATE_TEST_SUITE_P(Cpu, PrunedAttentionTest, ::testing::ValuesIn(AllCases()), [](const auto& test) {
  return std::string(cpu::IsaName(test.param.isa)) + "_" + DTypeName(test.param.act);
});

}  // namespace
}  // namespace quern
