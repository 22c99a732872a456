// A token's log-probability is the same number in decode, prefill and the training forward, alone or in any batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/random.h"
#include "base/thread_pool.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/loss_head.h"
#include "learner/trainer.h"

namespace quern {
namespace {

ModelConfig SmallConfig(bool selective) {
  ModelConfig config;
  config.vocab_size = 211;
  config.hidden_size = 80;
  config.intermediate_size = 144;
  config.layers = 3;
  config.heads = 5;
  config.kv_heads = 1;
  config.head_dim = 16;
  config.qk_norm = true;
  config.attention_bias = true;
  config.initializer_range = 0.15;
  config.selective_attention = selective;
  return config;
}

std::vector<std::vector<int32_t>> Sequences(int count, int64_t vocab) {
  Random random(7);
  std::vector<std::vector<int32_t>> out;
  for (int s = 0; s < count; ++s) {
    std::vector<int32_t> ids(20 + random.Below(130));
    for (int32_t& id : ids) id = static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocab)));
    out.push_back(ids);
  }
  return out;
}

struct Kind {
  Recipe recipe;
  bool selective;
};

class Invariance : public ::testing::TestWithParam<Kind> {
 protected:
  Invariance()
      : pool_(2),
        ops_(NewCpuOps(&pool_)),
        config_(SmallConfig(GetParam().selective)),
        trainer_(*ops_, config_, GetParam().recipe, 256, {.optimizer = {}, .max_micro_batch_tokens = 1 << 20}) {
    trainer_.parameters().Initialize(config_, 3);
    Tensor scales(DType::kF32, 1, config_.intermediate_size);
    for (int64_t c = 0; c < scales.cols(); ++c) scales.Row<float>(0)[c] = std::ldexp(1.0f, static_cast<int>(c % 9) - 4);
    Tensor amax(DType::kF32, 1, 12);
    for (int64_t i = 0; i < 12; ++i) amax.Row<float>(0)[i] = 3;
    const TensorSource own = trainer_.parameters().Source();
    const auto source = [&](const std::string& name) -> Result<TensorView> {
      if (name.ends_with("fp8_amax"))
        return amax.view();  // without them, scales are those of what is computed together
      return name.ends_with("smooth_scale") ? Result<TensorView>(scales.view()) : own(name);
    };
    QUERN_CHECK(trainer_.CopyFrom(source).ok());
    QUERN_CHECK(trainer_.Begin({}, std::nullopt).ok());
  }

  // Log-probabilities of tokens 1.. of every sequence by the training forward of all of them together.
  std::vector<float> ByTraining(const std::vector<std::vector<int32_t>>& sequences) {
    TrainingBatch batch;
    for (const auto& ids : sequences) {
      const int64_t row = batch.tokens.rows();
      batch.tokens.Add(ids.data(), static_cast<int64_t>(ids.size()), 0, nullptr);
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        LossRow loss_row;
        loss_row.row = row + static_cast<int64_t>(i);
        loss_row.target = ids[i + 1];
        batch.rows.push_back(loss_row);
      }
    }
    return trainer_.Score(batch);
  }

  // The same by a paged cache, feeding `chunk` tokens of every sequence a step (1: decode).
  std::vector<float> ByCache(const std::vector<std::vector<int32_t>>& sequences, int64_t chunk) {
    const KvLayout layout = trainer_.transformer().kv_layout();
    Tensor storage(DType::kU8, static_cast<int64_t>(sequences.size()) * 4, layout.page_bytes());
    std::vector<std::vector<void*>> pages(sequences.size());
    for (size_t s = 0; s < sequences.size(); ++s) {
      for (int64_t p = 0; p < 4; ++p) pages[s].push_back(storage.Row<uint8_t>(static_cast<int64_t>(s) * 4 + p));
    }
    std::vector<std::vector<float>> selections(
        sequences.size(), std::vector<float>(static_cast<size_t>(4 * layout.selection_elements())));
    std::vector<std::vector<float>> results(sequences.size());
    Arena arena;
    const LossHead head(*ops_, trainer_.transformer());
    for (int64_t begin = 0;; begin += chunk) {
      const Arena::Scope scope(arena);
      TokenBatch batch;
      std::vector<LossRow> rows;
      std::vector<size_t> owner;
      for (size_t s = 0; s < sequences.size(); ++s) {
        const auto& ids = sequences[s];
        const int64_t count = std::min(chunk, static_cast<int64_t>(ids.size()) - begin);
        if (count <= 0) continue;
        const int64_t row = batch.rows();
        batch.Add(ids.data() + begin, count, begin, pages[s].data());
        batch.sequences.back().selection = selections[s].data();
        for (int64_t i = 0; i < count; ++i) {
          if (begin + i + 1 >= static_cast<int64_t>(ids.size())) continue;
          LossRow loss_row;
          loss_row.row = row + i;
          loss_row.target = ids[static_cast<size_t>(begin + i + 1)];
          rows.push_back(loss_row);
          owner.push_back(s);
        }
      }
      if (batch.rows() == 0) break;
      const TensorView hidden = arena.New(GetParam().recipe.act, batch.rows(), config_.hidden_size);
      trainer_.transformer().Forward(trainer_.weights(), batch, {layout, false}, arena, hidden);
      const std::vector<float> log_probs = head.Score(trainer_.weights(), hidden, rows, arena).log_probs;
      for (size_t i = 0; i < rows.size(); ++i) results[owner[i]].push_back(log_probs[i]);
    }
    std::vector<float> out;
    for (const auto& r : results) out.insert(out.end(), r.begin(), r.end());
    return out;
  }

  void ExpectSameBits(const std::vector<float>& a, const std::vector<float>& b, const std::string& what) {
    ASSERT_EQ(a.size(), b.size()) << what;
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << what;
  }

  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  ModelConfig config_;
  Trainer trainer_;
};

TEST_P(Invariance, DecodePrefillAndTrainingAgreeBitByBitAtEveryBatchSize) {
  const auto all = Sequences(17, config_.vocab_size);
  const std::vector<float> together = ByTraining(all);
  for (const size_t batch : {size_t{1}, size_t{3}, size_t{17}}) {
    for (const int64_t chunk : {int64_t{1}, int64_t{7}, int64_t{64}, int64_t{256}}) {
      std::vector<float> parts, trained;
      for (size_t first = 0; first < all.size(); first += batch) {
        const std::vector<std::vector<int32_t>> some(
            all.begin() + static_cast<std::ptrdiff_t>(first),
            all.begin() + static_cast<std::ptrdiff_t>(std::min(all.size(), first + batch)));
        const std::vector<float> cached = ByCache(some, chunk);
        parts.insert(parts.end(), cached.begin(), cached.end());
        const std::vector<float> scored = ByTraining(some);
        trained.insert(trained.end(), scored.begin(), scored.end());
      }
      const std::string what = "batch " + std::to_string(batch) + ", chunk " + std::to_string(chunk);
      ExpectSameBits(parts, together, what);
      ExpectSameBits(trained, together, what + " (training)");
    }
  }
}

// What the engine asks for: a few rows of a step.
TEST_P(Invariance, WantedRowsAreThoseOfAll) {
  const auto texts = Sequences(3, config_.vocab_size);
  Arena arena;
  TokenBatch batch;
  for (const auto& ids : texts) batch.Add(ids.data(), static_cast<int64_t>(ids.size()), 0, nullptr);
  const std::vector<int64_t> wanted = {0, 19, batch.rows() - 1};
  const auto forward = [&](int64_t rows) {
    std::vector<void*> pages;
    const KvView kv = MakeTrainingKv(trainer_.transformer().kv_layout(), batch, arena, pages);
    const TensorView hidden = arena.New(GetParam().recipe.act, rows, config_.hidden_size);
    trainer_.transformer().Forward(trainer_.weights(), batch, kv, arena, hidden);
    return hidden;
  };
  const TensorView all = forward(batch.rows());
  batch.wanted = wanted;
  const TensorView some = forward(3);
  for (int64_t i = 0; i < 3; ++i)
    EXPECT_EQ(std::memcmp(some.Row<uint8_t>(i), all.Row<uint8_t>(wanted[static_cast<size_t>(i)]),
                          static_cast<size_t>(config_.hidden_size * DTypeSize(some.dtype))),
              0)
        << i;
}

INSTANTIATE_TEST_SUITE_P(Kinds, Invariance,
                         ::testing::Values(Kind{DType::kF32, false}, Kind{DType::kBf16, false},
                                           Kind{Recipe::Fp8(), false}, Kind{Recipe::Fp8Delayed(), false},
                                           Kind{Recipe::Fp8Delayed(Recipe::Smooth::kRow), false},
                                           Kind{DType::kF32, true}, Kind{DType::kBf16, true}),
                         [](const auto& kind) {
                           std::string name = RecipeName(kind.param.recipe);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + (kind.param.selective ? "_selective" : "");
                         });

}  // namespace
}  // namespace quern
