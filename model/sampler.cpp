#include "model/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/random.h"

namespace quern {

namespace {

constexpr size_t kLanes = 16;   // chains side by side, which become vector code
constexpr size_t kBlock = 512;  // weights that are summed together before the draw looks inside

// Integers in the order of the floats; its own inverse.
inline int32_t OrderedBits(int32_t bits) { return bits >= 0 ? bits : bits ^ 0x7fffffff; }

// NaN when there is a NaN.
float Largest(std::span<const float> row) {
  int32_t largest = std::numeric_limits<int32_t>::min();
  for (const float z : row) largest = std::max(largest, OrderedBits(std::bit_cast<int32_t>(z)));
  return std::bit_cast<float>(OrderedBits(largest));
}

int32_t ArgMax(std::span<const float> row) {
  const auto found = std::find(row.begin(), row.end(), Largest(row));
  QUERN_CHECK(found != row.end(), "logits are not finite");
  return static_cast<int32_t>(found - row.begin());
}

// e^x for x <= 0, within 2 ulp, 0 below -87.33 (and for -infinity): range reduction by Cody & Waite, polynomial as in
// Cephes expf. No library call and no branch, so that loops over it become vector code and every machine rounds alike.
inline float ExpOfNegative(float x) {
  const float clamped = x > -87.33f ? x : -87.33f;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const float shifted = clamped * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const uint32_t exponent = (std::bit_cast<uint32_t>(shifted) - 0x4b400000u + 127u) << 23;
  const float e = p * std::bit_cast<float>(exponent);
  return x > -87.33f ? e : 0.0f;
}

// Sum of a block of weights, in an order that depends on its length alone.
double BlockSum(std::span<const float> weights) {
  float lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= weights.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) lanes[j] += weights[i + j];
  }
  for (size_t j = 0; i + j < weights.size(); ++j) lanes[j] += weights[i + j];
  double sum = 0;
  for (const float lane : lanes) sum += static_cast<double>(lane);
  return sum;
}

std::span<const float> Block(std::span<const float> weights, size_t begin) {
  return weights.subspan(begin, std::min(kBlock, weights.size() - begin));
}

// Draws from unnormalised weights in id order.
int32_t DrawInOrder(std::span<const float> weights, float uniform) {
  double total = 0;
  for (size_t begin = 0; begin < weights.size(); begin += kBlock) total += BlockSum(Block(weights, begin));
  double left = static_cast<double>(uniform) * total;
  int32_t last = -1;
  for (size_t begin = 0; begin < weights.size(); begin += kBlock) {
    const std::span<const float> block = Block(weights, begin);
    const double mass = BlockSum(block);
    if (mass <= 0) continue;
    if (left >= mass && begin + kBlock < weights.size()) {
      left -= mass;
      for (size_t i = block.size(); last < static_cast<int32_t>(begin); --i) {
        if (block[i - 1] > 0) last = static_cast<int32_t>(begin + i - 1);
      }
      continue;
    }
    for (size_t i = 0; i < block.size(); ++i) {
      if (block[i] <= 0) continue;
      last = static_cast<int32_t>(begin + i);
      left -= static_cast<double>(block[i]);
      if (left < 0) return last;
    }
  }
  QUERN_CHECK(last >= 0, "no token may be sampled");
  return last;
}

}  // namespace

int32_t SampleToken(std::span<const float> logits, const SamplingOptions& options, std::span<const int32_t> history,
                    float uniform, std::vector<float>& scratch, std::vector<int32_t>* kept) {
  std::span<const float> logit_row = logits;
  if (options.repetition_penalty != 1.0f) scratch.assign(logits.begin(), logits.end());
  scratch.resize(logits.size());
  const std::span<float> row(scratch);
  if (options.repetition_penalty != 1.0f) {
    std::vector<int32_t> seen(history.begin(), history.end());
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    for (const int32_t id : seen) {
      float& z = row[static_cast<size_t>(id)];
      z = z > 0 ? z / options.repetition_penalty : z * options.repetition_penalty;
    }
    logit_row = row;
  }
  if (kept != nullptr) kept->clear();
  if (options.temperature <= 0) {
    const int32_t best = ArgMax(logit_row);
    if (kept != nullptr) kept->push_back(best);
    return best;
  }

  const float largest = Largest(logit_row);
  QUERN_CHECK(std::isfinite(largest), "logits are not finite");
  const float inverse = 1.0f / options.temperature;
  for (size_t i = 0; i < row.size(); ++i) row[i] = ExpOfNegative((logit_row[i] - largest) * inverse);
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
    double mass_kept = 0;
    for (size_t i = 0; i < keep; ++i) mass_kept += static_cast<double>(row[static_cast<size_t>(order[i])]);
    if (options.top_p < 1.0f) {
      const double mass = mass_kept * static_cast<double>(options.top_p);
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
    for (size_t i = keep; i < order.size(); ++i) row[static_cast<size_t>(order[i])] = 0;
    if (kept != nullptr) {
      for (size_t i = 0; i < keep; ++i)
        if (row[static_cast<size_t>(order[i])] > 0) kept->push_back(order[i]);
      std::sort(kept->begin(), kept->end());
    }
  }
  return DrawInOrder(row, uniform);
}

float SamplingUniform(uint64_t seed, int64_t n) { return Random(seed, static_cast<uint64_t>(n)).UniformFloat(); }

}  // namespace quern
