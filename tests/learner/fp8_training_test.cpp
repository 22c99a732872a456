// Training with FP8 products, FP8 moments and bf16 master weights: bit-equal resumption, damaged checkpoints, what is
// published and exported, and how far it gets.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>

#include "base/file.h"
#include "base/random.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/checkpoints.h"
#include "learner/trainer.h"
#include "methods/sft.h"
#include "model/hf/model_directory.h"

namespace quern {
namespace {

ModelConfig TinyConfig() {
  ModelConfig config;
  config.vocab_size = 31;
  config.hidden_size = 32;
  config.intermediate_size = 64;
  config.layers = 2;
  config.heads = config.kv_heads = 2;
  config.head_dim = 16;
  config.max_positions = 64;
  config.initializer_range = 0.15;
  return config;
}

// Arithmetic progressions with steps 3, 7 and 11: the second token tells which.
TrainingBatch Batch(int64_t step) {
  TrainingBatch out;
  Random random(5, static_cast<uint64_t>(step));
  for (int sequence = 0; sequence < 6; ++sequence) {
    const uint64_t increment = 3 + 4 * random.Below(3);
    std::vector<int32_t> ids = {static_cast<int32_t>(random.Below(31))};
    while (ids.size() < 12) ids.push_back(static_cast<int32_t>((static_cast<uint64_t>(ids.back()) + increment) % 31));
    const int64_t first = out.tokens.rows();
    out.tokens.Add(ids.data(), 12, 0, nullptr);
    ++out.episodes;
    for (int64_t i = 1; i + 1 < 12; ++i) {
      LossRow row;
      row.row = first + i;
      row.target = ids[static_cast<size_t>(i) + 1];
      out.rows.push_back(row);
    }
  }
  return out;
}

struct Setting {
  std::string name;
  Recipe recipe;
  OptimizerMemory memory;
};

std::vector<Setting> Settings() {
  return {{"bf16", DType::kBf16, {}},
          {"moments", DType::kBf16, {.fp8_moments = true}},
          {"blocks", DType::kBf16, {.fp8_moments = true, .block = 2048}},
          {"masters", DType::kBf16, {.fp8_moments = true, .block = 2048, .bf16_masters = true}},
          {"fp8", Recipe::Fp8(), {.fp8_moments = true, .block = 2048}},
          {"fp8_plain", Recipe::Fp8(Recipe::Smooth::kOff), {}}};
}

class Fp8Training : public ::testing::TestWithParam<Setting> {
 protected:
  std::unique_ptr<Trainer> NewTrainer(uint64_t seed, const Setting& setting, int64_t steps,
                                      std::optional<float> polyak = std::nullopt) {
    OptimizerOptions optimizer;
    optimizer.max_steps = steps;
    optimizer.learning_rate = 1e-2f;
    optimizer.seed = 17;
    auto trainer = std::make_unique<Trainer>(*ops_, TinyConfig(), setting.recipe, 64,
                                             TrainerOptions{.optimizer = {}, .memory = setting.memory});
    trainer->parameters().Initialize(TinyConfig(), seed);
    QUERN_CHECK(trainer->Begin(optimizer, polyak).ok());
    return trainer;
  }

  ThreadPool pool_{2};
  std::unique_ptr<Ops> ops_ = NewCpuOps(&pool_);
  const SftObjective objective_;
};
INSTANTIATE_TEST_SUITE_P(Settings, Fp8Training, ::testing::ValuesIn(Settings()),
                         [](const auto& setting) { return setting.param.name; });

std::string Bytes(const TensorView& view) {
  return {reinterpret_cast<const char*>(view.Row<uint8_t>(0)), static_cast<size_t>(view.cols * DTypeSize(view.dtype))};
}

TEST_P(Fp8Training, GoesOnToTheBit) {
  constexpr int64_t kSteps = 6;
  const auto whole = NewTrainer(1, GetParam(), kSteps, 0.05f);
  std::map<std::string, std::string> middle;
  for (int64_t step = 0; step < kSteps; ++step) {
    if (step == 3)
      for (const auto& [name, view] : whole->State()) middle[name] = Bytes(view);
    ASSERT_TRUE(whole->Step(Batch(step), objective_, nullptr).ok());
  }
  const auto resumed = NewTrainer(2, GetParam(), kSteps, 0.05f);
  for (const auto& [name, view] : resumed->State())
    std::memcpy(view.Row<uint8_t>(0), middle.at(name).data(), middle.at(name).size());
  ASSERT_TRUE(resumed->Resume(3).ok());
  for (int64_t step = 3; step < kSteps; ++step) ASSERT_TRUE(resumed->Step(Batch(step), objective_, nullptr).ok());
  const auto a = whole->State(), b = resumed->State();
  ASSERT_EQ(a.size(), middle.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(Bytes(a[i].second), Bytes(b[i].second)) << a[i].first;
}

TEST_P(Fp8Training, LearnsAsFarAsFp32Moments) {
  constexpr int64_t kSteps = 150;
  const auto loss_of = [&](const Setting& setting) {
    const auto trainer = NewTrainer(1, setting, kSteps);
    for (int64_t step = 0; step < kSteps; ++step) QUERN_CHECK(trainer->Step(Batch(step), objective_, nullptr).ok());
    double sum = 0, count = 0;
    for (int64_t step = 1000; step < 1010; ++step) {
      for (const float log_prob : trainer->Score(Batch(step))) {
        sum -= static_cast<double>(log_prob);
        ++count;
      }
    }
    return sum / count;
  };
  // From log 31 = 3.43; two thirds of the way is far from chance.
  EXPECT_LT(loss_of(GetParam()), 1.0);
}

// What is published, loaded again, and what is exported with the scales folded in give the trainer's numbers.
TEST_P(Fp8Training, PublishedAndFoldedWeightsGiveTheTrainersNumbers) {
  const auto trainer = NewTrainer(1, GetParam(), 5);
  for (int64_t step = 0; step < 5; ++step) ASSERT_TRUE(trainer->Step(Batch(step), objective_, nullptr).ok());
  const std::string folder =
      JoinPath(::testing::TempDir(), "fp8-" + GetParam().name + "-" + std::to_string(::getpid()));
  std::filesystem::remove_all(folder);
  const std::vector<float> expected = trainer->Score(Batch(77));
  const ModelConfig config = TinyConfig();
  for (const bool folded : {false, true}) {
    const std::string dir = JoinPath(folder, folded ? "folded" : "published");
    const TensorSource source = folded ? FoldSmoothScales(config, trainer->Source()) : trainer->Source();
    ASSERT_TRUE(
        SaveModelDirectory(dir, config, source, {.dtype = DType::kF32, .source_dir = "", .generation = std::nullopt})
            .ok());
    EXPECT_EQ(PathExists(JoinPath(dir, kFp8StateFile)), !folded && GetParam().recipe.smooth_channels());
    const auto checkpoint = Checkpoint::Open(dir);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
    ASSERT_TRUE((*checkpoint)->CheckMatches(config).ok()) << (*checkpoint)->CheckMatches(config).ToString();
    Trainer loaded(*ops_, config, GetParam().recipe, 64, {});
    ASSERT_TRUE(loaded.CopyFrom((*checkpoint)->Source()).ok());
    ASSERT_TRUE(loaded.Begin({}, std::nullopt).ok());
    const std::vector<float> got = loaded.Score(Batch(77));
    ASSERT_EQ(got.size(), expected.size());
    EXPECT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)), 0) << dir;
  }
  std::filesystem::remove_all(folder);
}

TEST_P(Fp8Training, ADamagedCheckpointIsFoundBeforeItIsUsed) {
  const std::string folder =
      JoinPath(::testing::TempDir(), "damage-" + GetParam().name + "-" + std::to_string(::getpid()));
  std::filesystem::remove_all(folder);
  const auto trainer = NewTrainer(1, GetParam(), 5);
  ASSERT_TRUE(trainer->Step(Batch(0), objective_, nullptr).ok());
  std::vector<CheckpointArray> arrays;
  for (const auto& [name, view] : trainer->State())
    arrays.push_back({name, {view.Row<uint8_t>(0), static_cast<size_t>(view.cols * DTypeSize(view.dtype))}});
  for (const CheckpointArray& damaged : arrays) {
    if (damaged.bytes.empty()) continue;
    StageCheckpoints checkpoints({.directory = folder}, "sft", "key");
    ASSERT_TRUE(checkpoints.Save({.step = 1, .state = "{}"}, arrays).ok());
    const std::string path = JoinPath(JoinPath(checkpoints.directory(), "step-1"), damaged.name);
    auto text = ReadFile(path);
    ASSERT_TRUE(text.ok());
    (*text)[text->size() / 2] ^= 0x01;
    ASSERT_TRUE(WriteFileAtomic(path, *text).ok());
    const std::vector<uint8_t> before(damaged.bytes.begin(), damaged.bytes.end());
    const auto loaded = checkpoints.Load(arrays);
    ASSERT_TRUE(loaded.ok());
    EXPECT_FALSE(loaded->has_value()) << damaged.name;
    EXPECT_TRUE(std::equal(before.begin(), before.end(), damaged.bytes.begin()));
  }
  std::filesystem::remove_all(folder);
}

TEST(Fp8Memory, MomentsTakeTwoBytesAWeight) {
  ThreadPool pool(1);
  const std::unique_ptr<Ops> ops = NewCpuOps(&pool);
  ModelConfig config = TinyConfig();
  config.hidden_size = 128;
  config.intermediate_size = 512;
  const ParameterLayout layout(config);
  const auto bytes = [&](const OptimizerMemory& memory) {
    return static_cast<double>(Moments(*ops, layout, DType::kF32, memory).bytes()) / static_cast<double>(layout.size());
  };
  EXPECT_EQ(bytes({}), 8);
  EXPECT_LT(bytes({.fp8_moments = true}), 2.05);
  EXPECT_LT(bytes({.fp8_moments = true, .block = 2048}), 2.05);
}

TEST(SmoothScales, ArePowersOfTwoThatBringAChannelBelowOne) {
  EXPECT_EQ(SmoothScale(0.02f), 32);
  EXPECT_EQ(SmoothScale(0.8f), 1);
  EXPECT_EQ(SmoothScale(25), 0x1p-5f);
  EXPECT_EQ(SmoothScale(1), 1);
  EXPECT_EQ(SmoothScale(2), 0.5f);
  EXPECT_EQ(SmoothScale(0), 1);
  EXPECT_EQ(SmoothScale(INFINITY), 1);
}

TEST(GateAndLinear, CorrelationOfAlignedChannels) {
  const ModelConfig config = TinyConfig();
  Parameters parameters(config);
  parameters.Initialize(config, 3);
  const GateLinearCorrelation before = CorrelateGateAndLinear(parameters, 1);
  EXPECT_LT(before.largest, 0.7);
  const TensorView gate = parameters.View("model.layers.1.mlp.gate_proj.weight");
  const TensorView up = parameters.View("model.layers.1.mlp.up_proj.weight");
  for (int64_t c = 0; c < gate.cols; ++c) up.Row<float>(5)[c] = -3 * gate.Row<float>(5)[c];
  EXPECT_NEAR(CorrelateGateAndLinear(parameters, 1).largest, 1, 1e-6);
  EXPECT_EQ(CorrelateGateAndLinear(parameters, 0).largest < 0.7, true);
}

}  // namespace
}  // namespace quern
