// The whole model, forward and backward, against PyTorch's autograd in double (make_golden.py).
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/thread_pool.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/trainer.h"
#include "methods/sft.h"
#include "tests/reference_ops.h"

namespace quern {
namespace {

using Json = nlohmann::json;

Json Golden() {
  std::ifstream in(std::string(QUERN_TEST_FOLDER) + "/golden.json");
  return Json::parse(in);
}

ModelConfig ConfigOf(const Json& c) {
  ModelConfig config;
  config.vocab_size = c["vocab"];
  config.hidden_size = c["hidden"];
  config.intermediate_size = c["inter"];
  config.layers = c["layers"];
  config.heads = c["heads"];
  config.kv_heads = c["kv_heads"];
  config.head_dim = c["head_dim"];
  config.tie_word_embeddings = c["tie"];
  config.attention_bias = c["bias"];
  config.qk_norm = c["qk_norm"];
  config.rms_norm_eps = 1e-5f;
  return config;
}

// make_golden.py's value().
double WeightValue(int64_t index, int64_t position) {
  const int64_t x = (index * 7919 + position * 104729 + (position * position) % 7907 * 31) % 4096;
  return static_cast<double>(x) / 4096.0 - 0.5;
}

void FillWeights(Parameters& parameters) {
  int64_t index = 0;
  for (const ParameterInfo& info : parameters.layout().parameters()) {
    const TensorView view = parameters.View(info.name);
    const double shift = info.name.find("norm") != std::string::npos ? 1.0 : 0.0;
    for (int64_t i = 0; i < info.rows * info.cols; ++i) {
      const double value = WeightValue(index, i) + shift;
      if (view.dtype == DType::kF64) {
        view.Row<double>(0)[i] = value;
      } else {
        view.Row<float>(0)[i] = static_cast<float>(value);
      }
    }
    ++index;
  }
}

TrainingBatch BatchOf(const Json& lengths, int64_t vocab) {
  TrainingBatch batch;
  int64_t s = 0;
  for (const int64_t length : lengths) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < length; ++i) ids.push_back(static_cast<int32_t>((s * 11 + i * i * 3 + i) % vocab));
    const int64_t row = batch.tokens.rows();
    batch.tokens.Add(ids.data(), length, 0, nullptr);
    for (int64_t i = 0; i + 1 < length; ++i) {
      LossRow loss_row;
      loss_row.row = row + i;
      loss_row.target = ids[static_cast<size_t>(i + 1)];
      batch.rows.push_back(loss_row);
    }
    ++s;
  }
  return batch;
}

double At(const TensorView& view, int64_t i) {
  return view.dtype == DType::kF64 ? view.Row<double>(0)[i] : static_cast<double>(view.Row<float>(0)[i]);
}

// tolerance: of the loss, absolute; of each gradient, relative to its tensor's norm.
void CompareWithGolden(Ops& ops, DType dtype, double tolerance, double gradient_tolerance, int64_t micro_batch) {
  const Json families = Golden();
  for (const auto& [family, golden] : families.items()) {
    SCOPED_TRACE(family);
    const ModelConfig config = ConfigOf(golden["config"]);
    TrainerOptions options;
    options.max_micro_batch_tokens = micro_batch;
    Trainer trainer(ops, config, dtype, 64, options);
    FillWeights(trainer.parameters());
    ASSERT_TRUE(trainer.Begin({}, std::nullopt).ok());
    const TrainingBatch batch = BatchOf(golden["lengths"], config.vocab_size);
    Result<StepReport> report = trainer.AccumulateGradients(batch, SftObjective(), nullptr);
    ASSERT_TRUE(report.ok()) << report.status().ToString();
    EXPECT_NEAR(report->loss, golden["loss"].get<double>(), tolerance);
    const std::vector<float> log_probs = trainer.Score(batch);
    ASSERT_EQ(log_probs.size(), golden["log_probs"].size());
    for (size_t i = 0; i < log_probs.size(); ++i) {
      EXPECT_NEAR(static_cast<double>(log_probs[i]), golden["log_probs"][i].get<double>(), 30 * tolerance + 1e-6);
    }
    for (const auto& [name, gradient] : golden["gradients"].items()) {
      const TensorView view = trainer.gradients().View(name);
      const double norm = gradient["norm"];
      double squares = 0;
      for (int64_t i = 0; i < view.rows * view.cols; ++i) squares += At(view, i) * At(view, i);
      EXPECT_NEAR(std::sqrt(squares), norm, gradient_tolerance * norm) << name;
      const int64_t stride = gradient["stride"];
      for (size_t k = 0; k < gradient["values"].size(); ++k) {
        EXPECT_NEAR(At(view, static_cast<int64_t>(k) * stride), gradient["values"][k].get<double>(),
                    gradient_tolerance * norm)
            << name << "[" << static_cast<int64_t>(k) * stride << "]";
      }
    }
  }
}

TEST(Golden, ReferenceOpsInDouble) {
  const auto ops = NewReferenceOps();
  // What is left is the loss coefficient 1/n, which methods give in single precision.
  CompareWithGolden(*ops, DType::kF64, 3e-7, 1e-7, 4096);
}

TEST(Golden, CpuOpsFp32) {
  ThreadPool pool(2);
  const auto ops = NewCpuOps(&pool);
  CompareWithGolden(*ops, DType::kF32, 2e-5, 2e-5, 4096);
}

TEST(Golden, CpuOpsFp32InMicroBatches) {
  ThreadPool pool(1);
  const auto ops = NewCpuOps(&pool);
  CompareWithGolden(*ops, DType::kF32, 2e-5, 2e-5, 10);
}

TEST(Golden, CpuOpsBf16) {
  ThreadPool pool(2);
  const auto ops = NewCpuOps(&pool);
  // bf16 keeps 8 bits: weights of this size and two layers leave a few parts in a hundred.
  CompareWithGolden(*ops, DType::kBf16, 0.08, 0.08, 4096);
}

}  // namespace
}  // namespace quern
