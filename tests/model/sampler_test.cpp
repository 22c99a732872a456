#include "model/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/random.h"

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

// What is kept of a row, by sorting all of it.
std::vector<int32_t> KeptByTheBook(const std::vector<float>& logits, const SamplingOptions& options) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  std::vector<std::pair<double, int32_t>> order;
  for (size_t i = 0; i < logits.size(); ++i)
    order.emplace_back(-std::exp((logits[i] - largest) / options.temperature), static_cast<int32_t>(i));
  std::sort(order.begin(), order.end());
  size_t keep = order.size();
  if (options.top_k > 0) keep = std::min(keep, static_cast<size_t>(options.top_k));
  double mass = 0, sum = 0;
  for (size_t i = 0; i < keep; ++i) mass -= order[i].first;
  size_t count = 0;
  while (count < keep && (count == 0 || sum < mass * options.top_p)) sum -= order[count++].first;
  while (count > 1 && -order[count - 1].first < options.min_p) --count;
  std::vector<int32_t> kept;
  for (size_t i = 0; i < count; ++i) kept.push_back(order[i].second);
  std::sort(kept.begin(), kept.end());
  return kept;
}

TEST(Sampler, KeepsTheIdsThatSortingAllOfThemGives) {
  std::vector<float> scratch;
  std::vector<int32_t> kept;
  for (uint64_t trial = 0; trial < 300; ++trial) {
    Random random(8, trial);
    std::vector<float> logits(1 + random.Below(3000));
    const float scale = static_cast<float>(1 + random.Below(12));
    // Steps of a quarter: many are equal.
    for (float& z : logits) z = std::floor(random.UniformFloat() * scale * 4) / 4;
    SamplingOptions options;
    options.temperature = 0.5f + random.UniformFloat();
    if (random.Below(2) == 0) options.top_k = static_cast<int32_t>(1 + random.Below(200));
    if (random.Below(2) == 0) options.top_p = 0.05f + 0.9f * random.UniformFloat();
    if (random.Below(2) == 0 || options.plain()) options.min_p = 0.3f * random.UniformFloat();
    const int32_t drawn = SampleToken(logits, options, {}, random.UniformFloat(), scratch, &kept);
    const std::vector<int32_t> expected = KeptByTheBook(logits, options);
    ASSERT_EQ(kept, expected) << trial;
    ASSERT_TRUE(std::binary_search(kept.begin(), kept.end(), drawn));
  }
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
