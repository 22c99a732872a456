// Selective attention through the whole model: gradients against differences in double, with the memory loss.
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "base/thread_pool.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/trainer.h"
#include "methods/sft.h"
#include "tests/reference_ops.h"

namespace quern {
namespace {

ModelConfig SmallConfig() {
  ModelConfig config;
  config.vocab_size = 11;
  config.hidden_size = 12;
  config.intermediate_size = 10;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 4;
  config.qk_norm = true;
  config.initializer_range = 0.5;
  config.selective_attention = true;
  return config;
}

TrainingBatch SmallBatch() {
  TrainingBatch batch;
  Random random(3);
  for (const int64_t length : {9, 6}) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < length; ++i) ids.push_back(static_cast<int32_t>(random.Below(11)));
    const int64_t row = batch.tokens.rows();
    batch.tokens.Add(ids.data(), length, 0, nullptr);
    for (int64_t i = 0; i + 1 < length; ++i) {
      LossRow loss_row;
      loss_row.row = row + i;
      loss_row.target = ids[static_cast<size_t>(i + 1)];
      batch.rows.push_back(loss_row);
    }
  }
  return batch;
}

void CheckGradients(bool with_gain) {
  ModelConfig config = SmallConfig();
  config.selection_gain = with_gain;
  const auto ops = NewReferenceOps();
  Trainer trainer(*ops, config, DType::kF64, 16, {});
  trainer.parameters().Initialize(config, 5);
  if (with_gain)
    for (int64_t layer = 0; layer < config.layers; ++layer)
      *trainer.parameters().View(SelectionGainName(layer)).Row<double>(0) = 0.7 + 0.5 * static_cast<double>(layer);
  OptimizerOptions optimizer;
  optimizer.memory_loss = 0.75f;
  const TrainingBatch batch = SmallBatch();
  double live_share = 0;
  const auto loss = [&] {
    QUERN_CHECK(trainer.Begin(optimizer, std::nullopt).ok());
    const Result<StepReport> report = trainer.AccumulateGradients(batch, SftObjective(), nullptr);
    QUERN_CHECK(report.ok());
    live_share = report->live_share;
    return report->loss + 0.75 * report->live_share;
  };
  loss();
  Tensor gradients(DType::kF64, 1, trainer.gradients().flat().cols);
  ops->Cast(trainer.gradients().flat(), gradients);
  EXPECT_GT(live_share, 0.1);
  EXPECT_LT(live_share, 0.95);  // something is selected
  const TensorView parameters = trainer.parameters().flat();
  double largest = 0;
  for (int64_t i = 0; i < parameters.cols; ++i) largest = std::max(largest, std::abs(gradients.Row<double>(0)[i]));
  std::vector<int64_t> checked;
  for (int64_t i = 0; i < parameters.cols; i += 7) checked.push_back(i);
  if (with_gain)
    for (int64_t layer = 0; layer < config.layers; ++layer)
      checked.push_back(trainer.parameters().layout().Find(SelectionGainName(layer)).offset);
  for (const int64_t i : checked) {
    double& value = parameters.Row<double>(0)[i];
    const double at = value;
    value = at + 1e-5;
    const double above = loss();
    value = at - 1e-5;
    const double below = loss();
    value = at;
    // The loss coefficient 1/n is given in single precision.
    ASSERT_NEAR((above - below) / 2e-5, gradients.Row<double>(0)[i], 2e-6 * largest) << i;
  }
}

TEST(SelectiveModel, GradientAgainstDifferences) { CheckGradients(false); }
TEST(SelectiveModel, GradientWithGains) { CheckGradients(true); }

// A gain of zero is a model without selection, to the bit; it has a gradient, and no step takes it below zero.
TEST(SelectiveModel, GainsStartAtNothingAndStayAtOrAboveIt) {
  ThreadPool pool(1);
  const auto ops = NewCpuOps(&pool);
  ModelConfig plain = SmallConfig(), gained = SmallConfig();
  plain.selective_attention = false;
  gained.selection_gain = true;
  OptimizerOptions optimizer;
  optimizer.learning_rate = 0.1f;
  optimizer.memory_loss = 0.5f;
  const TrainingBatch batch = SmallBatch();
  Trainer before(*ops, plain, DType::kF32, 16, {}), after(*ops, gained, DType::kF32, 16, {});
  before.parameters().Initialize(plain, 5);
  ASSERT_TRUE(after.parameters()
                  .CopyFrom([&](const std::string& name) -> Result<TensorView> {
                    static const Tensor zero(DType::kF32, 1, 1);
                    if (name.ends_with("selection_gain")) return zero.view();
                    return before.parameters().View(name);
                  })
                  .ok());
  ASSERT_TRUE(before.Begin({}, std::nullopt).ok());
  ASSERT_TRUE(after.Begin(optimizer, std::nullopt).ok());
  EXPECT_EQ(before.Score(batch), after.Score(batch));

  const auto gain = [&](int64_t layer) { return *after.parameters().View(SelectionGainName(layer)).Row<float>(0); };
  ASSERT_TRUE(after.Step(batch, SftObjective(), nullptr).ok());
  EXPECT_GT(gain(0), 0);  // fewer entries are wanted
  *after.parameters().View(SelectionGainName(1)).Row<float>(0) = 1e-9f;
  *after.gradients().View(SelectionGainName(1)).Row<float>(0) = 0;
  optimizer.memory_loss = 0;
  ASSERT_TRUE(after.Begin(optimizer, std::nullopt).ok());
  for (int step = 0; step < 30; ++step) {
    ASSERT_TRUE(after.Step(batch, SftObjective(), nullptr).ok());
    for (int64_t layer = 0; layer < 2; ++layer) ASSERT_GE(gain(layer), 0);
  }
}

}  // namespace
}  // namespace quern
