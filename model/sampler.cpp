#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/random.h"

namespace quern {

namespace {

int32_t ArgMax(std::span<const float> row) {
  return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

// Draws from unnormalised weights in id order.
int32_t DrawInOrder(std::span<const float> weights, double total, float uniform) {
  double left = static_cast<double>(uniform) * total;
  int32_t last = -1;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] <= 0) continue;
    last = static_cast<int32_t>(i);
    left -= static_cast<double>(weights[i]);
    if (left < 0) return last;
  }
  QUERN_CHECK(last >= 0, "no token may be sampled");
  return last;
}

}  // namespace

int32_t SampleToken(std::span<const float> logits, const SamplingOptions& options, std::span<const int32_t> history,
                    float uniform, std::vector<float>& scratch) {
  scratch.assign(logits.begin(), logits.end());
  std::span<float> row(scratch.data(), logits.size());
  if (options.repetition_penalty != 1.0f) {
    std::vector<int32_t> seen(history.begin(), history.end());
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    for (const int32_t id : seen) {
      float& z = row[static_cast<size_t>(id)];
      z = z > 0 ? z / options.repetition_penalty : z * options.repetition_penalty;
    }
  }
  if (options.temperature <= 0) return ArgMax(row);

  const float largest = *std::max_element(row.begin(), row.end());
  QUERN_CHECK(std::isfinite(largest), "logits are not finite");
  const float inverse = 1.0f / options.temperature;
  double total = 0;
  for (float& z : row) {
    z = std::exp((z - largest) * inverse);
    total += static_cast<double>(z);
  }
  const bool truncates = options.top_k > 0 || options.top_p < 1.0f || options.min_p > 0.0f;
  if (truncates) {
    std::vector<int32_t> order(row.size());
    std::iota(order.begin(), order.end(), 0);
    size_t keep = order.size();
    if (options.top_k > 0) keep = std::min(keep, static_cast<size_t>(options.top_k));
    const auto more_likely = [&](int32_t a, int32_t b) {
      const float wa = row[static_cast<size_t>(a)];
      const float wb = row[static_cast<size_t>(b)];
      return wa != wb ? wa > wb : a < b;
    };
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(keep), order.end(), more_likely);
    double kept = 0;
    for (size_t i = 0; i < keep; ++i) kept += static_cast<double>(row[static_cast<size_t>(order[i])]);
    if (options.top_p < 1.0f) {
      const double mass = kept * static_cast<double>(options.top_p);
      double sum = 0;
      size_t count = 0;
      while (count < keep && (count == 0 || sum < mass))
        sum += static_cast<double>(row[static_cast<size_t>(order[count++])]);
      keep = count;
    }
    if (options.min_p > 0.0f) {
      const float threshold = options.min_p * row[static_cast<size_t>(order[0])];
      while (keep > 1 && row[static_cast<size_t>(order[keep - 1])] < threshold) --keep;
    }
    total = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      float& weight = row[static_cast<size_t>(order[i])];
      if (i >= keep) weight = 0;
      total += static_cast<double>(weight);
    }
  }
  return DrawInOrder(row, total, uniform);
}

float SamplingUniform(uint64_t seed, int64_t n) { return Random(seed, static_cast<uint64_t>(n)).UniformFloat(); }

}  // namespace quern
