// Selective attention through the whole model: gradients against differences in double, with the memory loss.
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "learner/trainer.h"
#include "methods/sft.h"
#include "tests/reference_ops.h"

namespace quern {
namespace {

TEST(SelectiveModel, GradientAgainstDifferences) {
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
  const auto ops = NewReferenceOps();
  Trainer trainer(*ops, config, DType::kF64, 16, {});
  trainer.parameters().Initialize(config, 5);
  OptimizerOptions optimizer;
  optimizer.memory_loss = 0.75f;
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
  for (int64_t i = 0; i < parameters.cols; i += 7) {
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

}  // namespace
}  // namespace quern
