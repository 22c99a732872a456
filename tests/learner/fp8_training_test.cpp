// Training with FP8 products, FP8 moments and bf16 master weights: bit-equal resumption, damaged checkpoints, what is
// published and exported, and how far it gets.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
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
          {"fp8_plain", Recipe::Fp8(Recipe::Smooth::kOff), {}},
          {"delayed", Recipe::Fp8Delayed(), {.fp8_moments = true}},
          {"delayed_row", Recipe::Fp8Delayed(Recipe::Smooth::kRow, kE4M3Gaudi), {.fp8_moments = true}},
          {"delayed_plain_gaudi", Recipe::Fp8Delayed(Recipe::Smooth::kOff, kE4M3Gaudi), {}}};
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
    // Folded, a matrix has another largest magnitude.
    if (folded && GetParam().recipe.delayed()) continue;
    const std::string dir = JoinPath(folder, folded ? "folded" : "published");
    const TensorSource source = folded ? FoldSmoothScales(config, trainer->Source()) : trainer->Source();
    ASSERT_TRUE(
        SaveModelDirectory(dir, config, source, {.dtype = DType::kF32, .source_dir = "", .generation = std::nullopt})
            .ok());
    EXPECT_EQ(PathExists(JoinPath(dir, kFp8StateFile)),
              !folded && (GetParam().recipe.smooth_channels() || GetParam().recipe.delayed()));
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

// Two channels of a trained model get aligned gate and linear rows that grow by a tenth a step while their column of
// the down projection shrinks by the square: in exact arithmetic nearly the same function at every step. Nothing is
// learnt meanwhile (learning rate 0); scales and histories go on.
class ForcedOutlier : public ::testing::Test {
 protected:
  struct Run {
    std::vector<double> losses;
    double saturated = 0;  // largest share in a step
    double linear_amax = 0, correlation = 0;
  };
  // A tenth of the tokens is random: the loss has a floor that relative errors can be measured against.
  static TrainingBatch Noisy(int64_t step) {
    TrainingBatch batch = Batch(step);
    Random random(9, static_cast<uint64_t>(step));
    for (LossRow& row : batch.rows)
      if (random.Below(5) == 0) row.target = static_cast<int32_t>(random.Below(31));
    return batch;
  }
  static void Grow(Parameters& parameters, float factor) {
    const std::string mlp = "model.layers.1.mlp.";
    const TensorView gate = parameters.View(mlp + "gate_proj.weight"), up = parameters.View(mlp + "up_proj.weight");
    const TensorView down = parameters.View(mlp + "down_proj.weight");
    for (const int64_t channel : {int64_t{7}, int64_t{40}}) {
      for (int64_t i = 0; i < gate.cols; ++i) {
        gate.Row<float>(channel)[i] *= factor;
        up.Row<float>(channel)[i] = gate.Row<float>(channel)[i];
      }
      for (int64_t i = 0; i < down.rows; ++i) down.Row<float>(i)[channel] /= factor * factor;
    }
  }
  void Teach(Trainer& trainer, int64_t steps, float rate) {
    OptimizerOptions options;
    options.max_steps = steps;
    options.learning_rate = rate;
    QUERN_CHECK(trainer.Begin(options, std::nullopt).ok());
    for (int64_t step = 0; step < steps; ++step) QUERN_CHECK(trainer.Step(Noisy(step), objective_, nullptr).ok());
  }
  Run Grown(const Recipe& recipe, const Parameters& start) {
    Trainer trainer(*ops_, TinyConfig(), recipe, 64, {});
    QUERN_CHECK(trainer.CopyFrom(start.Source()).ok());
    OptimizerOptions options;
    options.learning_rate = 0;
    options.weight_decay = 0;
    options.schedule = "constant";
    QUERN_CHECK(trainer.Begin(options, std::nullopt).ok());
    Run run;
    for (int64_t step = 0; step < 70; ++step) {
      Grow(trainer.parameters(), 1.1f);
      QUERN_CHECK(trainer.Resume(step).ok());
      const Result<StepReport> report = trainer.Step(Noisy(500 + step), objective_, nullptr);
      QUERN_CHECK(report.ok(), report.status().ToString());
      run.losses.push_back(report->loss);
      if (report->fp8.empty()) continue;
      run.saturated = std::max(run.saturated, report->fp8[1].saturated);
      run.linear_amax = report->fp8[1].linear_amax;
    }
    run.correlation = CorrelateGateAndLinear(trainer.parameters(), 1).largest;
    return run;
  }
  // |loss / bf16's - 1| of the second half of the steps: a batch alone is as noisy as its 60 tokens.
  static double Difference(const Run& run, const Run& bf16) {
    double own = 0, other = 0;
    for (size_t i = run.losses.size() / 2; i < run.losses.size(); ++i) {
      own += run.losses[i];
      other += bf16.losses[i];
    }
    return std::abs(own / other - 1);
  }

  // Of the worst step.
  static double Spike(const Run& run, const Run& bf16) {
    double worst = 0;
    for (size_t i = 0; i < run.losses.size(); ++i) worst = std::max(worst, run.losses[i] / bf16.losses[i] - 1);
    return worst;
  }

  ThreadPool pool_{2};
  std::unique_ptr<Ops> ops_ = NewCpuOps(&pool_);
  const SftObjective objective_;
};

TEST_F(ForcedOutlier, PerTensorScalingSpikesAndSmoothSwiGluStaysWithBf16) {
  using Smooth = Recipe::Smooth;
  Trainer teacher(*ops_, TinyConfig(), DType::kBf16, 64, {});
  teacher.parameters().Initialize(TinyConfig(), 1);
  Teach(teacher, 150, 1e-2f);
  Grow(teacher.parameters(), 1);  // aligns them
  Teach(teacher, 50, 3e-3f);
  const Run bf16 = Grown(DType::kBf16, teacher.parameters());
  const Run smooth = Grown(Recipe::Fp8(), teacher.parameters());
  const Run plain_rows = Grown(Recipe::Fp8(Smooth::kOff), teacher.parameters());
  const Run delayed = Grown(Recipe::Fp8Delayed(Smooth::kOff), teacher.parameters());
  const Run delayed_smooth = Grown(Recipe::Fp8Delayed(), teacher.parameters());
  const Run delayed_rows = Grown(Recipe::Fp8Delayed(Smooth::kRow), teacher.parameters());
  std::printf("linear branch reached %.0f; loss against bf16 over the second half, and in the worst step:\n",
              smooth.linear_amax);
  const auto print = [&](const char* name, const Run& run) {
    std::printf("  %-30s %.4f %+.4f, saturated at most %.5f\n", name, Difference(run, bf16), Spike(run, bf16),
                run.saturated);
  };
  print("fp8", smooth);
  print("fp8 without smoothing", plain_rows);
  print("fp8_delayed", delayed_smooth);
  print("fp8_delayed by token", delayed_rows);
  print("fp8_delayed without smoothing", delayed);
  EXPECT_NEAR(smooth.correlation, 1, 1e-3);
  EXPECT_EQ(smooth.saturated, 0) << "scales are of present values";
  EXPECT_LT(Difference(smooth, bf16), 0.01);
  EXPECT_GT(delayed.saturated, 0);
  EXPECT_LT(Difference(delayed_smooth, bf16), 0.01);
  EXPECT_GT(Difference(delayed, bf16), 0.02);
  EXPECT_GT(Spike(delayed, bf16), 0.2);
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

// Three tokens, three channels, the last of which squares its input: what four ways of scaling leave of it.
TEST(SmoothScales, OfASmallExample) {
  const double gate[3][3] = {{2, -1, 3}, {0.5, 1.5, -2}, {1, 0.2, 25}};
  const double linear[3][3] = {{0.01, 0.8, 3}, {-0.02, -0.4, -2}, {0.015, 0.6, 25}};
  const auto h = [&](int t, int c) { return linear[t][c] * gate[t][c] / (1 + std::exp(-gate[t][c])); };
  using Factor = std::function<double(int t, int c)>;
  // The cast values of h * factor under one scale, divided by the factor again; `amax` 0: of the present values.
  const auto cast = [&](const Factor& factor, double amax, double expected[3][3]) {
    for (int t = 0; amax == 0 && t < 3; ++t)
      for (int c = 0; c < 3; ++c) expected[t][c] = h(t, c) * factor(t, c);
    double most = amax;
    for (int t = 0; amax == 0 && t < 3; ++t)
      for (int c = 0; c < 3; ++c) most = std::max(most, std::abs(expected[t][c]));
    const double scale = std::ldexp(1.0, PowerOfTwoExponent(static_cast<float>(most), kE4M3.max));
    for (int t = 0; t < 3; ++t) {
      for (int c = 0; c < 3; ++c) {
        const auto code = FloatToFp8(static_cast<float>(h(t, c) * factor(t, c) * scale), kE4M3);
        expected[t][c] = static_cast<double>(Fp8ToFloat(code, DType::kE4M3)) / scale / factor(t, c);
      }
    }
  };
  const auto expect = [](const double got[3][3], const std::vector<std::vector<double>>& table) {
    for (size_t t = 0; t < 3; ++t)
      for (size_t c = 0; c < 3; ++c) EXPECT_NEAR(got[t][c], table[t][c], 6e-7) << t << " " << c;
  };
  double out[3][3];
  const auto none = [](int, int) { return 1.0; };
  cast(none, 10, out);  // delayed: the last step's largest magnitude was 10
  EXPECT_EQ(out[2][2], 14);
  cast(none, 0, out);
  EXPECT_EQ(out[2][2], 640);
  EXPECT_NEAR(out[0][0], 0.019531, 1e-6);
  EXPECT_NEAR(out[1][0], -0.007812, 1e-6);
  EXPECT_NEAR(out[2][0], 0.011719, 1e-6);
  const auto channel = [&](int, int c) {
    double amax = 0;
    for (const auto& token : linear) amax = std::max(amax, std::abs(token[c]));
    return static_cast<double>(SmoothScale(static_cast<float>(amax)));
  };
  cast(channel, 0, out);
  expect(out, {{0.017578, -0.21875, 9}, {-0.006348, -0.5, 0.46875}, {0.010742, 0.0625, 640}});
  // The reference code divides a token by its largest magnitude itself; `row` here takes the power of two.
  const auto largest = [&](int t) {
    return std::max({std::abs(linear[t][0]), std::abs(linear[t][1]), std::abs(linear[t][2])});
  };
  cast([&](int t, int) { return 1 / largest(t); }, 0, out);
  expect(out, {{0.017578, -0.210938, 8.25}, {-0.006348, -0.5, 0.46875}, {0.012207, 0.067139, 600}});
  cast([&](int t, int) { return static_cast<double>(SmoothScale(static_cast<float>(largest(t)))); }, 0, out);
  EXPECT_EQ(out[2][2], 640);
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
