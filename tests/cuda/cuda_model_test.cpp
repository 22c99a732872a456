// A whole model on the GPU's backend: training steps with everything in the device's memory follow those of the CPU.

#include <cmath>

#include "compute/cpu/cpu_ops.h"
#include "learner/trainer.h"
#include "methods/sft.h"
#include "tests/compute/test_tensors.h"
#include "tests/cuda/backend.h"

namespace quern {
namespace {

ModelConfig SmallModel(bool selective) {
  ModelConfig config;
  config.vocab_size = 50;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.initializer_range = 0.05;
  config.layers = 2;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 64;
  config.qk_norm = true;
  config.attention_bias = true;
  config.tie_word_embeddings = true;
  config.selective_attention = selective;
  return config;
}

TrainingBatch SmallBatch(uint64_t seed) {
  TrainingBatch batch;
  Random random(seed);
  for (const int64_t length : {5, 20}) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i <= length; ++i) ids.push_back(static_cast<int32_t>(random.Below(50)));
    const int64_t row = batch.tokens.rows();
    batch.tokens.Add(ids.data(), length, 0, nullptr);
    ++batch.episodes;
    for (int64_t i = 0; i < length; ++i)
      batch.rows.push_back({.row = row + i, .target = ids[static_cast<size_t>(i) + 1]});
  }
  return batch;
}

struct Case {
  const char* name;
  Recipe recipe;
  bool fp8_moments = false;
  bool selective = false;
  double tolerance = 0;
};

class CudaModelTest : public ::testing::TestWithParam<Case> {};

TEST_P(CudaModelTest, TrainsAsTheCpuDoes) {
  const Case& c = GetParam();
  const auto device = NewDeviceUnderTest();
  if (device == nullptr) GTEST_SKIP() << WhyNoBackend();
  ThreadPool pool(1);
  const auto cpu = NewCpuOps(&pool);
  const ModelConfig config = SmallModel(c.selective);
  TrainerOptions options;
  // Small: Adam's first steps go by the signs of gradients, whose smallest are rounding.
  options.optimizer.learning_rate = 3e-4f;
  options.optimizer.memory_loss = c.selective ? 0.1f : 0.0f;
  options.memory.fp8_moments = c.fp8_moments;
  options.memory.block = 2048;
  std::vector<double> losses, norms;
  std::vector<float> scores[2];
  for (Ops* ops : {cpu.get(), device.get()}) {
    Trainer trainer(*ops, config, c.recipe, 64, options);
    trainer.parameters().Initialize(config, 1);
    ASSERT_TRUE(trainer.Begin(options.optimizer, std::nullopt).ok());
    for (uint64_t step = 0; step < 2; ++step) {
      const auto report = trainer.Step(SmallBatch(step), SftObjective(), nullptr);
      ASSERT_TRUE(report.ok()) << report.status().message();
      losses.push_back(report->loss);
      norms.push_back(report->grad_norm);
    }
    scores[ops == device.get() ? 1 : 0] = trainer.Score(SmallBatch(9));
  }
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_NEAR(losses[i], losses[i + 2], c.tolerance * std::abs(losses[i])) << "step " << i;
    EXPECT_NEAR(norms[i], norms[i + 2], 10 * c.tolerance * norms[i]) << "step " << i;
  }
  ASSERT_EQ(scores[0].size(), scores[1].size());
  for (size_t i = 0; i < scores[0].size(); ++i) EXPECT_NEAR(scores[0][i], scores[1][i], 20 * c.tolerance) << i;
}

INSTANTIATE_TEST_SUITE_P(
    Cuda, CudaModelTest,
    ::testing::Values(Case{"fp32", DType::kF32, false, false, 1e-5}, Case{"bf16", DType::kBf16, false, false, 2e-3},
                      Case{"fp8", Recipe::Fp8(), true, false, 1e-2},
                      Case{"fp8_delayed", Recipe::Fp8Delayed(), true, false, 1.5e-2},
                      Case{"fp8_delayed_row", Recipe::Fp8Delayed(Recipe::Smooth::kRow), true, false, 1.5e-2},
                      Case{"bf16_selective", DType::kBf16, false, true, 2e-3}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace quern
