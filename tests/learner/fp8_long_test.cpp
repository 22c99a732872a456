// 2,000 steps on one made-up language, in bf16 with fp32 moments and under every FP8 recipe with FP8 moments: the loss
// on sequences that are never trained on. Some minutes.

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "base/random.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/trainer.h"
#include "methods/sft.h"

namespace quern {
namespace {

constexpr int64_t kSteps = 2000;
constexpr int32_t kTokens = 64;
constexpr int64_t kLength = 32;

// Every token has five successors of falling probability; which ones, depends on the sequence's first token as well.
int32_t Successor(int32_t topic, int32_t last, double uniform) {
  constexpr std::array<double, 5> kShares = {0.45, 0.25, 0.15, 0.1, 0.05};
  size_t choice = 0;
  for (double sum = kShares[0]; choice + 1 < kShares.size() && uniform >= sum; sum += kShares[++choice]) {
  }
  const uint64_t mixed = MixSeed(static_cast<uint64_t>(topic % 4) * 1000 + static_cast<uint64_t>(last), choice);
  return static_cast<int32_t>(mixed % kTokens);
}

TrainingBatch Batch(uint64_t stream, int sequences) {
  TrainingBatch out;
  Random random(77, stream);
  for (int s = 0; s < sequences; ++s) {
    std::vector<int32_t> ids = {static_cast<int32_t>(random.Below(kTokens))};
    while (static_cast<int64_t>(ids.size()) < kLength) ids.push_back(Successor(ids[0], ids.back(), random.Uniform()));
    const int64_t first = out.tokens.rows();
    out.tokens.Add(ids.data(), kLength, 0, nullptr);
    ++out.episodes;
    for (int64_t i = 0; i + 1 < kLength; ++i) {
      LossRow row;
      row.row = first + i;
      row.target = ids[static_cast<size_t>(i) + 1];
      out.rows.push_back(row);
    }
  }
  return out;
}

double HeldoutLoss(const Recipe& recipe, const OptimizerMemory& memory) {
  ThreadPool pool(2);
  const std::unique_ptr<Ops> ops = NewCpuOps(&pool);
  ModelConfig config;
  config.vocab_size = kTokens;
  config.hidden_size = 64;
  config.intermediate_size = 192;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.initializer_range = 0.1;
  Trainer trainer(*ops, config, recipe, kLength, TrainerOptions{.optimizer = {}, .memory = memory});
  trainer.parameters().Initialize(config, 1);
  OptimizerOptions optimizer;
  optimizer.max_steps = kSteps;
  optimizer.warmup_steps = 50;
  optimizer.learning_rate = 3e-3f;
  optimizer.weight_decay = 0.1f;
  QUERN_CHECK(trainer.Begin(optimizer, std::nullopt).ok());
  const SftObjective objective;
  for (int64_t step = 0; step < kSteps; ++step) {
    const Result<StepReport> report = trainer.Step(Batch(static_cast<uint64_t>(step), 16), objective, nullptr);
    QUERN_CHECK(report.ok(), report.status().ToString());
  }
  double sum = 0, count = 0;
  for (uint64_t i = 0; i < 16; ++i) {
    for (const float log_prob : trainer.Score(Batch(1000000 + i, 64))) {
      sum -= static_cast<double>(log_prob);
      ++count;
    }
  }
  return sum / count;
}

TEST(Fp8Long, EndsWithinHalfAPercentOfBf16) {
  const OptimizerMemory moments{.fp8_moments = true, .block = 2048};
  const double bf16 = HeldoutLoss(DType::kBf16, {});
  const double fp8 = HeldoutLoss(Recipe::Fp8(), moments);
  std::printf("held-out loss after %d steps: bf16 %.4f, fp8 %.4f (%+.2f %%)\n", static_cast<int>(kSteps), bf16, fp8,
              100 * (fp8 / bf16 - 1));
  const auto also = [&](const char* name, const Recipe& recipe, const OptimizerMemory& memory) {
    const double loss = HeldoutLoss(recipe, memory);
    std::printf("  %s %.4f (%+.2f %%)\n", name, loss, 100 * (loss / bf16 - 1));
  };
  also("bf16, moments in FP8, a scale a matrix", DType::kBf16, {.fp8_moments = true});
  also("bf16, moments in FP8, masters in bf16", DType::kBf16,
       {.fp8_moments = true, .block = 2048, .bf16_masters = true});
  also("fp8_delayed", Recipe::Fp8Delayed(), moments);
  EXPECT_LT(fp8, 1.005 * bf16);
}

}  // namespace
}  // namespace quern
