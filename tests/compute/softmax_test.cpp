// Log-probabilities, draws and Q-SFT's target of the CPU backend, for every instruction set this machine has.

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/compute/cpu_ops_fixture.h"

namespace quern {
namespace {

constexpr DType kF32 = DType::kF32, kReal = DType::kF64;

class SoftmaxTest : public CpuOpsTest {};

TEST_P(SoftmaxTest, LogSoftmax) {
  for (const auto& [rows, vocabulary] : {std::pair{5, 1}, {9, 17}, {4, 512}, {3, 32001}}) {
    const auto targets = RandomIds(rows, vocabulary, 1);
    const PaddedTensor logits(RandomTensor(kF32, rows, vocabulary, 2, 4), 3);
    Tensor lse(kF32, 1, rows), log_prob(kF32, 1, rows), mean(kF32, 1, rows), entropy(kF32, 1, rows);
    Tensor want_lse(kReal, 1, rows), want_log_prob(kReal, 1, rows), want_mean(kReal, 1, rows),
        want_entropy(kReal, 1, rows);
    cpu_.LogSoftmax({.logits = logits,
                     .targets = targets,
                     .lse = lse,
                     .log_prob = log_prob,
                     .mean_log_prob = mean,
                     .entropy = entropy});
    reference_->LogSoftmax({.logits = logits,
                            .targets = targets,
                            .lse = want_lse,
                            .log_prob = want_log_prob,
                            .mean_log_prob = want_mean,
                            .entropy = want_entropy});
    EXPECT_LE(WorstError(lse, want_lse, 1e-6, 1e-6), 1);
    EXPECT_LE(WorstError(log_prob, want_log_prob, 2e-6, 1e-6), 1);
    EXPECT_LE(WorstError(mean, want_mean, 2e-6, 1e-6), 1);
    EXPECT_LE(WorstError(entropy, want_entropy, 1e-5, 1e-6), 1);

    const int32_t reserved = static_cast<int32_t>(vocabulary / 2);
    const Tensor a = RandomTensor(kF32, 1, rows, 3), b = RandomTensor(kF32, 1, rows, 4),
                 c = RandomTensor(kF32, 1, rows, 5);
    LogSoftmaxBackwardArgs args = {
        .logits = logits, .lse = lse, .targets = targets, .a = a, .b = {}, .c = {}, .reserved = -1, .dlogits = {}};
    for (const bool all : {false, true}) {
      if (all) {
        args.b = b;
        args.c = c;
        args.reserved = reserved;
      }
      const PaddedTensor dlogits(Tensor(act(), rows, vocabulary), 2);
      Tensor expected(kReal, rows, vocabulary);
      LogSoftmaxBackwardArgs reference_args = args;
      args.dlogits = dlogits;
      reference_args.dlogits = expected;
      reference_args.lse = want_lse;
      cpu_.LogSoftmaxBackward(args);
      reference_->LogSoftmaxBackward(reference_args);
      EXPECT_LE(WorstError(dlogits, expected, 2e-6, relative()), 1);
      EXPECT_TRUE(dlogits.Intact());
      if (act() == kF32) {
        const PaddedTensor in_place(logits, 3);
        args.logits = args.dlogits = in_place;
        cpu_.LogSoftmaxBackward(args);
        EXPECT_TRUE(BitEqual(in_place.view(), dlogits.view()));
        args.logits = logits;
      }
    }
  }
}

TEST_P(SoftmaxTest, LogSoftmaxOfMaskedAndHugeLogits) {
  Tensor logits(kF32, 2, 20), lse(kF32, 1, 2), mean(kF32, 1, 2), entropy(kF32, 1, 2), log_prob(kF32, 1, 2);
  for (int64_t i = 0; i < 20; ++i) {
    SetElement(logits, 0, i, i < 2 ? 1e30 : -std::numeric_limits<double>::infinity());
    SetElement(logits, 1, i, i == 3 ? std::numeric_limits<double>::quiet_NaN() : 0);
  }
  const std::vector<int32_t> targets = {1, 0};
  cpu_.LogSoftmax({.logits = logits,
                   .targets = targets,
                   .lse = lse,
                   .log_prob = log_prob,
                   .mean_log_prob = mean,
                   .entropy = entropy});
  EXPECT_EQ(GetElement(lse, 0, 0), static_cast<double>(1e30f));
  EXPECT_NEAR(GetElement(entropy, 0, 0), std::log(2.0), 1e-6);
  EXPECT_TRUE(std::isnan(GetElement(lse, 0, 1)));
}

// Draws from a product's rows, and what the same draws are by the product, its logits and LogSoftmax.
TEST_P(SoftmaxTest, DrawGivesTheLogProbabilityOfItsLogits) {
  for (const auto& [rows, k, vocabulary] :
       {std::tuple{1, 33, 7}, {3, 64, 480}, {9, 31, 481}, {140, 48, 1500}, {33, 16, 5000}}) {
    const Tensor a = RandomTensor(act(), rows, k, 1), weight = RandomTensor(act(), vocabulary, k, 2);
    const auto packed = cpu_.NewPacked(act(), k, vocabulary);
    cpu_.Pack({.weight = weight, .out = packed.get()});
    Random random(3);
    std::vector<DrawUniforms> uniforms;
    for (int row = 0; row < rows; ++row)
      uniforms.push_back(row % 5 == 4
                             ? DrawUniforms{-1, -1}
                             : DrawUniforms{random.UniformFloat(), random.UniformFloat(), row % 5 == 3 ? 2.0f : 1.0f});
    for (const int32_t never : {-1, vocabulary / 2}) {
      std::vector<int32_t> ids(static_cast<size_t>(rows));
      const TensorView drawn{ids.data(), DType::kI32, 1, rows, rows};
      Tensor log_prob(kF32, 1, rows), logits(kF32, rows, vocabulary), lse(kF32, 1, rows), expected(kF32, 1, rows);
      cpu_.Draw({.a = a, .b = packed.get(), .never = never, .uniforms = uniforms, .ids = drawn, .log_prob = log_prob});
      cpu_.MatMul({.a = a, .b = packed.get(), .c = logits, .bias = {}});
      if (never >= 0) cpu_.Fill(logits.view().Cols(never, 1), -std::numeric_limits<float>::infinity());
      cpu_.LogSoftmax(
          {.logits = logits, .targets = ids, .lse = lse, .log_prob = expected, .mean_log_prob = {}, .entropy = {}});
      EXPECT_TRUE(BitEqual(log_prob, expected));
      for (int row = 0; row < rows; ++row) {
        const auto at = static_cast<size_t>(row);
        EXPECT_NE(ids[at], never);
        const float* z = logits.Row<float>(row);
        if (uniforms[at].block < 0) {
          EXPECT_EQ(ids[at], std::max_element(z, z + vocabulary) - z);
        }
        // A row alone, in another pool, gives what it gives among others.
        if (row % 10 != 0) continue;
        ThreadPool one(1);
        CpuOps alone(&one, GetParam().isa);
        int32_t id = -1;
        Tensor own(kF32, 1, 1);
        alone.Draw({.a = a.view().Rows(row, 1),
                    .b = packed.get(),
                    .never = never,
                    .uniforms = std::span(uniforms).subspan(at, 1),
                    .ids = {&id, DType::kI32, 1, 1, 1},
                    .log_prob = own});
        EXPECT_EQ(id, ids[at]);
        EXPECT_TRUE(BitEqual(own, log_prob.view().Cols(row, 1)));
      }
    }
  }
}

TEST_P(SoftmaxTest, DrawsFollowTheSoftmax) {
  constexpr int64_t kRows = 20000, kWidth = 4, kVocabulary = 600;
  Tensor a(act(), kRows, kWidth);
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t i = 0; i < kWidth; ++i) SetElement(a, r, i, 1);
  const auto packed = cpu_.NewPacked(act(), kWidth, kVocabulary);
  const Tensor weight = RandomTensor(act(), kVocabulary, kWidth, 2, 0.8);
  cpu_.Pack({.weight = weight, .out = packed.get()});
  Tensor logits(kF32, 1, kVocabulary), log_prob(kF32, 1, kRows), ids(DType::kI32, 1, kRows);
  cpu_.MatMul({.a = a.view().Rows(0, 1), .b = packed.get(), .c = logits, .bias = {}});
  for (const float inverse : {1.0f, 0.5f}) {
    Random random(5);
    std::vector<DrawUniforms> uniforms(kRows);
    for (DrawUniforms& u : uniforms) u = {random.UniformFloat(), random.UniformFloat(), inverse};
    cpu_.Draw({.a = a, .b = packed.get(), .uniforms = uniforms, .ids = ids, .log_prob = log_prob});
    std::vector<int64_t> counts(kVocabulary);
    for (int64_t r = 0; r < kRows; ++r) ++counts[static_cast<size_t>(ids.Row<int32_t>(0)[r])];
    double mass = 0;
    const auto weight_of = [&](int64_t id) {
      return std::exp(GetElement(logits, 0, id) * static_cast<double>(inverse));
    };
    for (int64_t id = 0; id < kVocabulary; ++id) mass += weight_of(id);
    for (int64_t id = 0; id < kVocabulary; ++id) {
      const double expected = weight_of(id) / mass * kRows;
      EXPECT_NEAR(static_cast<double>(counts[static_cast<size_t>(id)]), expected, 6 * std::sqrt(expected) + 6) << id;
    }
  }
}

// e^x itself, read off the gradient: with lse 0, a = -1 and a target elsewhere, dlogits = e^logit.
TEST_P(SoftmaxTest, ExponentialIsWithinOneUnitInTheLastPlace) {
  if (act() != kF32) return;  // it has no other form
  constexpr int64_t kCount = 400001;
  Tensor logits(kF32, 1, kCount), out(kF32, 1, kCount), lse(kF32, 1, 1), a(kF32, 1, 1);
  for (int64_t i = 0; i < kCount; ++i) SetElement(logits, 0, i, -87.3 + 175.6 * static_cast<double>(i) / kCount);
  SetElement(a, 0, 0, -1);
  const std::vector<int32_t> targets = {0};
  cpu_.LogSoftmaxBackward(
      {.logits = logits, .lse = lse, .targets = targets, .a = a, .b = {}, .c = {}, .reserved = -1, .dlogits = out});
  double worst = 0;
  for (int64_t i = 1; i < kCount; ++i) {
    const double want = std::exp(GetElement(logits, 0, i));
    const double ulp = std::exp2(std::floor(std::log2(want)) - 23);
    worst = std::max(worst, std::abs(GetElement(out, 0, i) - want) / ulp);
  }
  EXPECT_LT(worst, 1);
  RecordProperty("worst_ulp_thousandths", static_cast<int>(worst * 1000));
}

TEST_P(SoftmaxTest, MaxRatio) {
  if (act() != kF32) return;  // logits have no other form
  for (const auto& [rows, vocabulary] : {std::pair{40, 5}, {40, 61}, {10, 512}, {3, 20001}}) {
    for (const double spread : {0.3, 2.0, 6.0}) {
      for (const auto& [epsilon, top_p] : {std::pair{0.01f, 0.95f}, {0.3f, 0.5f}, {1e-4f, 0.9f}, {0.9f, 0.99f}}) {
        for (const int32_t reserved : {-1, 3}) {
          const Tensor value = RandomTensor(kF32, rows, vocabulary, 1, 2),
                       behaviour = RandomTensor(kF32, rows, vocabulary, 2, spread);
          Tensor ratio(kF32, 1, rows), expected(kReal, 1, rows);
          MaxRatioArgs args = {.value_logits = value,
                               .behaviour_logits = behaviour,
                               .epsilon = epsilon,
                               .top_p = top_p,
                               .reserved = reserved,
                               .max_ratio = ratio};
          cpu_.MaxRatio(args);
          args.max_ratio = expected;
          reference_->MaxRatio(args);
          EXPECT_LE(WorstError(ratio, expected, 1e-7, 3e-5), 1)
              << vocabulary << " " << spread << " " << epsilon << " " << reserved;
        }
      }
    }
  }
}

// Eight ids of probability 1/8: a nucleus of 0.5 holds the first four of them that are not reserved.
TEST_P(SoftmaxTest, MaxRatioTakesTiesInOrderOfId) {
  for (const int32_t reserved : {-1, 1}) {
    const int64_t vocabulary = reserved < 0 ? 8 : 9;
    for (int64_t favourite = 0; favourite < vocabulary; ++favourite) {
      Tensor value(kF32, 1, vocabulary), behaviour(kF32, 1, vocabulary), ratio(kF32, 1, 1);
      SetElement(value, 0, favourite, 10);
      cpu_.MaxRatio({.value_logits = value,
                     .behaviour_logits = behaviour,
                     .epsilon = 0.2f,
                     .top_p = 0.5f,
                     .reserved = reserved,
                     .max_ratio = ratio});
      const bool inside = favourite != reserved && favourite < (reserved < 0 ? 4 : 5);
      EXPECT_EQ(GetElement(ratio, 0, 0) == 1, inside) << favourite;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, SoftmaxTest, ::testing::ValuesIn(CpuCases()), CpuCaseName);

}  // namespace
}  // namespace quern
