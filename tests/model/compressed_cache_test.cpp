#include "model/compressed_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/random.h"
#include "base/thread_pool.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/loss_head.h"
#include "model/transformer.h"

namespace quern {
namespace {

constexpr int64_t kPage = KvLayout::kPageTokens;

class CompressedCacheTest : public ::testing::TestWithParam<DType> {
 protected:
  CompressedCacheTest() : pool_(2), ops_(NewCpuOps(&pool_)) {
    config_.vocab_size = 61;
    config_.hidden_size = 48;
    config_.intermediate_size = 64;
    config_.layers = 2;
    config_.heads = 6;
    config_.kv_heads = 3;
    config_.head_dim = 16;
    config_.qk_norm = true;
    config_.initializer_range = 0.2;
  }
  void MakeModel(bool selective, int64_t positions = 400) {
    config_.selective_attention = selective;
    Parameters parameters(config_);
    parameters.Initialize(config_, 3);
    transformer_ = std::make_unique<Transformer>(*ops_, config_, GetParam(), positions);
    weights_ = std::make_unique<Weights>(*ops_, config_, GetParam(), false);
    ASSERT_TRUE(weights_->Load(parameters.Source()).ok());
    Random random(5);
    for (const size_t length : {size_t{330}, size_t{217}, size_t{90}}) {
      std::vector<int32_t>& ids = texts_.emplace_back(length);
      for (int32_t& id : ids) id = static_cast<int32_t>(random.Below(61));
    }
  }

  // Log-probabilities of tokens 1.. of every text: its first `prompt` tokens in chunks, the others one a step.
  struct Read {
    std::vector<float> log_probs;
    std::vector<std::unique_ptr<CompressedCache>> caches;
    int64_t most_bytes = 0;  // of the first text's cache, at any time
  };
  Read ReadTexts(const Compression& compression, int64_t prompt, int64_t chunk) {
    const KvLayout layout = transformer_->kv_layout();
    Read out;
    std::vector<std::vector<float>> results(texts_.size());
    for (const auto& ids : texts_)
      out.caches.push_back(std::make_unique<CompressedCache>(
          *ops_, layout, compression, std::min<int64_t>(prompt, static_cast<int64_t>(ids.size()))));
    Arena arena;
    const LossHead head(*ops_, *transformer_);
    while (true) {
      const Arena::Scope scope(arena);
      TokenBatch batch;
      std::vector<CompressedCache*> caches;
      std::vector<LossRow> rows;
      std::vector<size_t> owner;
      for (size_t s = 0; s < texts_.size(); ++s) {
        const auto length = static_cast<int64_t>(texts_[s].size()), read = out.caches[s]->tokens();
        if (read == length) continue;
        const int64_t count = read < prompt ? std::min({chunk, prompt - read, length - read}) : 1;
        out.caches[s]->Reserve(count);
        caches.push_back(out.caches[s].get());
        for (int64_t i = 0; i < count && read + i + 1 < length; ++i) {
          rows.push_back({.row = batch.rows() + i, .target = texts_[s][static_cast<size_t>(read + i + 1)]});
          owner.push_back(s);
        }
        batch.Add(texts_[s].data() + read, count, read, nullptr);
      }
      if (caches.empty()) break;
      const TensorView hidden = arena.New(GetParam(), batch.rows(), config_.hidden_size);
      transformer_->Forward(*weights_, batch, CompressedView(layout, compression, caches, batch), arena, hidden);
      const std::vector<float> log_probs = head.Score(*weights_, hidden, rows, arena).log_probs;
      for (size_t i = 0; i < rows.size(); ++i) results[owner[i]].push_back(log_probs[i]);
      for (size_t s = 0; s < caches.size(); ++s) caches[s]->Advance(batch.sequences[s].count);
      out.most_bytes = std::max(out.most_bytes, out.caches[0]->bytes());
    }
    for (const auto& r : results) out.log_probs.insert(out.log_probs.end(), r.begin(), r.end());
    return out;
  }

  // The same by ordinary attention with masks, all rows at once.
  std::vector<float> AtOnce(const std::vector<int64_t>& budgets) {
    Arena arena;
    TokenBatch batch;
    std::vector<LossRow> rows;
    for (const auto& ids : texts_) {
      for (size_t i = 0; i + 1 < ids.size(); ++i)
        rows.push_back({.row = batch.rows() + static_cast<int64_t>(i), .target = ids[i + 1]});
      batch.Add(ids.data(), static_cast<int64_t>(ids.size()), 0, nullptr);
    }
    std::vector<void*> pages;
    KvView kv = MakeTrainingKv(transformer_->kv_layout(), batch, arena, pages);
    kv.budgets = budgets;
    const TensorView hidden = arena.New(GetParam(), batch.rows(), config_.hidden_size);
    transformer_->Forward(*weights_, batch, kv, arena, hidden);
    return LossHead(*ops_, *transformer_).Score(*weights_, hidden, rows, arena).log_probs;
  }

  static bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  }
  static double MeanDifference(const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += std::abs(static_cast<double>(a[i] - b[i]));
    return sum / static_cast<double>(a.size());
  }

  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  ModelConfig config_;
  std::unique_ptr<Transformer> transformer_;
  std::unique_ptr<Weights> weights_;
  std::vector<std::vector<int32_t>> texts_;
};

TEST_P(CompressedCacheTest, WhatLeavesNothingOutChangesNoBit) {
  for (const bool selective : {false, true}) {
    texts_.clear();
    MakeModel(selective);
    const std::vector<float> expected = AtOnce({});
    EXPECT_TRUE(SameBits(ReadTexts({}, 100, 33).log_probs, expected));
    EXPECT_TRUE(SameBits(ReadTexts({.key_channels = 16}, 100, 64).log_probs, expected)) << "all channels";
    EXPECT_TRUE(SameBits(ReadTexts({.key_channels = 3, .recent = 400}, 100, 100).log_probs, expected)) << "all recent";
    if (selective) {
      EXPECT_TRUE(SameBits(ReadTexts({.budgets = {330, 330}}, 50, 50).log_probs, expected));
    }
    EXPECT_GT(MeanDifference(ReadTexts({.key_channels = 3}, 100, 100).log_probs, expected), 1e-3);
  }
}

TEST_P(CompressedCacheTest, KeysShrinkBehindThePromptAndTheRecentOnes) {
  MakeModel(false);
  const Compression compression = {.key_channels = 6, .query_window = 16, .recent = 40};
  const Read read = ReadTexts(compression, 200, 90);
  const int64_t element = DTypeSize(GetParam()), heads = config_.kv_heads, dim = config_.head_dim;
  const auto bytes = [&](int64_t pruned, int64_t whole) {
    return config_.layers * heads * kPage * element * (pruned * (6 + dim) + whole * 2 * dim);
  };
  EXPECT_EQ(read.caches[0]->bytes(), bytes(4, 2))
      << "330 = 4 pruned pages, then 74 positions, 40 or more of them whole";
  EXPECT_EQ(read.caches[1]->bytes(), bytes(2, 2)) << "217: a third page would leave 25";
  EXPECT_EQ(read.caches[2]->bytes(), bytes(0, 2)) << "90: all of it is the prompt, and 26 would be left";
  EXPECT_EQ(read.most_bytes, bytes(4, 2));
  // Chunks of the prompt do not matter, nor who else is read.
  EXPECT_TRUE(SameBits(read.log_probs, ReadTexts(compression, 200, 37).log_probs));
  const std::vector<float> all = read.log_probs;
  texts_.resize(1);
  const std::vector<float> alone = ReadTexts(compression, 200, 200).log_probs;
  EXPECT_TRUE(SameBits(alone, {all.begin(), all.begin() + 329}));
}

TEST_P(CompressedCacheTest, EvictedPositionsGiveTheirMemoryBack) {
  MakeModel(true);
  const std::vector<int64_t> budgets = {3, 5};
  const Read read = ReadTexts({.budgets = budgets}, 60, 60);
  // The same positions are evicted as with masks; sums over what is left have another order.
  EXPECT_LT(MeanDifference(read.log_probs, AtOnce(budgets)), GetParam() == DType::kBf16 ? 0.02 : 1e-5);
  EXPECT_GT(MeanDifference(read.log_probs, AtOnce({})), 3e-3);
  for (int64_t layer = 0; layer < 2; ++layer)
    EXPECT_LE(read.caches[0]->slots(layer), budgets[static_cast<size_t>(layer)] + kPage);
  const int64_t page = config_.kv_heads * 2 * kPage * config_.head_dim * DTypeSize(GetParam()) + 4 * kPage;
  EXPECT_LE(read.most_bytes, (2 + 2) * page) << "of 2 * 6 without budgets";
}

TEST_P(CompressedCacheTest, EvictionAndFewerChannelsTogether) {
  MakeModel(true);
  const std::vector<int64_t> budgets = {150, 200};
  const Read both = ReadTexts({.budgets = budgets, .key_channels = 8, .recent = 16}, 100, 100);
  const Read evicted = ReadTexts({.budgets = budgets}, 100, 100);
  EXPECT_LT(both.caches[0]->bytes(), evicted.caches[0]->bytes());
  // All channels: the same positions go, only where they lie differs.
  const Read all = ReadTexts({.budgets = budgets, .key_channels = 16, .recent = 16}, 100, 100);
  EXPECT_LT(MeanDifference(all.log_probs, evicted.log_probs), GetParam() == DType::kBf16 ? 0.02 : 1e-5);
  EXPECT_GT(MeanDifference(both.log_probs, evicted.log_probs), 1e-3);
  EXPECT_LT(MeanDifference(both.log_probs, evicted.log_probs), 1);
}

// What is evicted has no channels, and what has fewer channels may still be evicted: of a long text the cache that is
// left is the product of what either leaves, up to the pages that are not full.
TEST_P(CompressedCacheTest, TheSavingsMultiply) {
  MakeModel(true, 1700);
  Random random(6);
  texts_.resize(1);
  texts_[0].resize(1664);
  for (int32_t& id : texts_[0]) id = static_cast<int32_t>(random.Below(61));
  const std::vector<int64_t> budgets = {800, 800};
  const auto left = [&](const Compression& compression) {
    return static_cast<double>(ReadTexts(compression, 1600, 400).caches[0]->bytes());
  };
  const double all = left({}), evicted = left({.budgets = budgets}) / all, pruned = left({.key_channels = 4}) / all;
  const double both = left({.budgets = budgets, .key_channels = 4}) / all;
  EXPECT_NEAR(evicted, 0.52, 0.04);
  EXPECT_NEAR(pruned, 0.77, 0.03) << "of two thirds of the heads three quarters of the keys go";
  EXPECT_NEAR(both, evicted * pruned, 0.02);
}

TEST_P(CompressedCacheTest, ACopyGoesOnByItself) {
  MakeModel(true);
  texts_.resize(1);
  const Compression compression = {.budgets = {40, 60}, .key_channels = 6, .query_window = 16, .recent = 20};
  const Read whole = ReadTexts(compression, 200, 200);
  const KvLayout layout = transformer_->kv_layout();
  Arena arena;
  const LossHead head(*ops_, *transformer_);
  const auto step = [&](CompressedCache& cache, int64_t count) {
    const Arena::Scope scope(arena);
    TokenBatch batch;
    CompressedCache* caches[] = {&cache};
    std::vector<LossRow> rows;
    for (int64_t i = 0; i < count; ++i)
      rows.push_back({.row = i, .target = texts_[0][static_cast<size_t>(cache.tokens() + i + 1)]});
    cache.Reserve(count);
    batch.Add(texts_[0].data() + cache.tokens(), count, cache.tokens(), nullptr);
    const TensorView hidden = arena.New(GetParam(), count, config_.hidden_size);
    transformer_->Forward(*weights_, batch, CompressedView(layout, compression, caches, batch), arena, hidden);
    const std::vector<float> log_probs = head.Score(*weights_, hidden, rows, arena).log_probs;
    cache.Advance(count);
    return log_probs;
  };
  CompressedCache first(*ops_, layout, compression, 200);
  step(first, 199);
  // From before the prompt's end, and from behind pages that are pruned already.
  for (const int64_t until : {int64_t{199}, int64_t{300}}) {
    while (first.tokens() < until) step(first, 1);
    const std::unique_ptr<CompressedCache> copy = first.Copy();
    EXPECT_EQ(copy->bytes(), first.bytes());
    std::vector<float> got;
    while (copy->tokens() < 320)
      for (const float log_prob : step(*copy, 1)) got.push_back(log_prob);
    EXPECT_TRUE(SameBits(got, {whole.log_probs.begin() + until, whole.log_probs.begin() + 320}));
    EXPECT_EQ(first.tokens(), until);
  }
}

INSTANTIATE_TEST_SUITE_P(Precisions, CompressedCacheTest, ::testing::Values(DType::kF32, DType::kBf16),
                         [](const auto& precision) { return std::string(DTypeName(precision.param)); });

}  // namespace
}  // namespace quern
