#include "model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace quern {
namespace {

int32_t Draw(const std::vector<float>& logits, const SamplingOptions& options, float uniform,
             const std::vector<int32_t>& history = {}) {
  std::vector<float> scratch;
  return SampleToken(logits, options, history, uniform, scratch);
}

// Shares of ids over a fine grid of uniforms.
std::vector<double> Shares(const std::vector<float>& logits, const SamplingOptions& options) {
  std::vector<double> out(logits.size());
  const int n = 20000;
  for (int i = 0; i < n; ++i) {
    out[static_cast<size_t>(Draw(logits, options, (static_cast<float>(i) + 0.5f) / static_cast<float>(n)))] += 1.0 / n;
  }
  return out;
}

std::vector<float> LogitsOf(std::initializer_list<double> probabilities) {
  std::vector<float> out;
  for (const double p : probabilities) out.push_back(static_cast<float>(std::log(p)));
  return out;
}

TEST(Sampler, GreedyTakesTheMostLikelyAndTheLowestOfEquals) {
  SamplingOptions greedy;
  greedy.temperature = 0;
  EXPECT_EQ(Draw({0.5f, 2.0f, 2.0f, -1.0f}, greedy, 0.99f), 1);
}

TEST(Sampler, PlainSamplingFollowsTheDistribution) {
  const std::vector<double> shares = Shares(LogitsOf({0.1, 0.2, 0.3, 0.4}), {});
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(shares[static_cast<size_t>(i)], 0.1 * (i + 1), 1e-3);
}

TEST(Sampler, TemperatureSharpens) {
  SamplingOptions options;
  options.temperature = 0.5f;
  const std::vector<double> shares = Shares(LogitsOf({0.1, 0.2, 0.3, 0.4}), options);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(shares[static_cast<size_t>(i)], (i + 1) * (i + 1) / 30.0, 1e-3);
}

TEST(Sampler, TopKTopPAndMinPCutTheTail) {
  SamplingOptions top_k;
  top_k.top_k = 3;
  std::vector<double> shares = Shares(LogitsOf({0.1, 0.2, 0.3, 0.4}), top_k);
  EXPECT_EQ(shares[0], 0);
  EXPECT_NEAR(shares[3], 0.4 / 0.9, 1e-3);
  SamplingOptions top_p;
  top_p.top_p = 0.8f;  // 0.4 + 0.3 is short of it, 0.2 completes it
  shares = Shares(LogitsOf({0.1, 0.2, 0.3, 0.4}), top_p);
  EXPECT_EQ(shares[0], 0);
  EXPECT_NEAR(shares[1], 0.2 / 0.9, 1e-3);
  SamplingOptions min_p;
  min_p.min_p = 0.6f;
  shares = Shares(LogitsOf({0.1, 0.2, 0.3, 0.4}), min_p);
  EXPECT_EQ(shares[1], 0);
  EXPECT_NEAR(shares[2], 0.3 / 0.7, 1e-3);
}

TEST(Sampler, RepetitionPenaltyLowersSeenIdsOfBothSigns) {
  SamplingOptions options;
  options.temperature = 0;
  options.repetition_penalty = 2.0f;
  EXPECT_EQ(Draw({1.0f, 1.5f}, options, 0, {1}), 0);
  EXPECT_EQ(Draw({-1.0f, -0.9f}, options, 0, {1}), 0);
}

TEST(Sampler, NeverTakesAnImpossibleId) {
  const float minus = -std::numeric_limits<float>::infinity();
  const std::vector<float> logits = {minus, 0.0f, minus, 0.0f, minus};
  for (const float u : {0.0f, 0.499f, 0.5f, 0.99999994f}) {
    const int32_t id = Draw(logits, {}, u);
    EXPECT_TRUE(id == 1 || id == 3);
  }
}

TEST(Sampler, UniformIsAFunctionOfSeedAndPosition) {
  EXPECT_EQ(SamplingUniform(5, 3), SamplingUniform(5, 3));
  EXPECT_NE(SamplingUniform(5, 3), SamplingUniform(5, 4));
  EXPECT_NE(SamplingUniform(5, 3), SamplingUniform(6, 3));
}

}  // namespace
}  // namespace quern
