// Distributions after cuts and penalties, as llama.cpp's own tests expect them (shared data, vectors/sampling).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "model/sampler.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

using Json = nlohmann::json;

// Shares of ids over a fine grid of uniforms, the largest first.
std::vector<double> Shares(const Json& probabilities, const SamplingOptions& options,
                           const std::vector<int32_t>& seen) {
  std::vector<float> logits, scratch;
  for (const Json& p : probabilities) logits.push_back(std::log(p.get<float>()));
  std::vector<double> shares(logits.size());
  constexpr int kDraws = 40000;
  for (int i = 0; i < kDraws; ++i) {
    const float uniform = (static_cast<float>(i) + 0.5f) / kDraws;
    shares[static_cast<size_t>(SampleToken(logits, options, seen, uniform, scratch))] += 1.0 / kDraws;
  }
  std::sort(shares.rbegin(), shares.rend());
  return shares;
}

TEST(SamplerVectors, AgreeWithTheirExpectedDistributions) {
  const std::string file = "vectors/sampling/llamacpp_sampling.json";
  QUERN_NEED_SHARED_DATA(file);
  const Json cases = Json::parse(std::ifstream(SharedData(file))).at("cases");
  const std::map<std::string, std::function<void(SamplingOptions&, const Json&)>> set = {
      {"temp", [](SamplingOptions& o, const Json& a) { o.temperature = a[2]; }},
      {"top_k", [](SamplingOptions& o, const Json& a) { o.top_k = a[2]; }},
      {"top_p", [](SamplingOptions& o, const Json& a) { o.top_p = a[2]; }},
      {"min_p", [](SamplingOptions& o, const Json& a) { o.min_p = a[2]; }},
      {"penalties", [](SamplingOptions& o, const Json& a) { o.repetition_penalty = a[3]; }}};
  std::map<std::string, int> tested;
  for (const Json& entry : cases) {
    const std::string sampler = entry.at("sampler");
    const Json& a = entry.at("args");
    const bool penalties = sampler == "penalties";
    // xtc, typical, dry, top_n_sigma, and frequency and presence penalties are not there.
    if (!set.contains(sampler) || (penalties && (a[4] != 0.0 || a[5] != 0.0))) continue;
    SCOPED_TRACE(entry.dump());
    SamplingOptions options;
    set.at(sampler)(options, a);
    std::vector<double> expected = a[penalties ? 2 : 1];
    std::vector<int32_t> seen;
    if (penalties) seen = a[1].get<std::vector<int32_t>>();
    expected.resize(a[0].size());
    std::sort(expected.rbegin(), expected.rend());
    const std::vector<double> shares = Shares(a[0], options, seen);
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(shares[i], expected[i], 2e-4) << i;
    ++tested[sampler];
  }
  EXPECT_EQ(tested,
            (std::map<std::string, int>{{"temp", 2}, {"top_k", 4}, {"top_p", 4}, {"min_p", 8}, {"penalties", 3}}));
}

}  // namespace
}  // namespace quern
