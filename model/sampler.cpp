#include "model/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/random.h"

namespace quern {

namespace {

constexpr size_t kLanes = 16;   // chains side by side, which become vector code
constexpr size_t kBlock = 512;  // weights that are summed together before the draw looks inside

// Integers in the order of the floats; its own inverse.
[[gnu::always_inline]] inline int32_t OrderedBits(int32_t bits) { return bits >= 0 ? bits : bits ^ 0x7fffffff; }

#define QUERN_INLINE [[gnu::always_inline]] inline

// NaN when there is a NaN.
QUERN_INLINE float LargestOf(std::span<const float> row) {
  int32_t largest = std::numeric_limits<int32_t>::min();
  for (const float z : row) largest = std::max(largest, OrderedBits(std::bit_cast<int32_t>(z)));
  return std::bit_cast<float>(OrderedBits(largest));
}

// e^x for x <= 0, within 2 ulp, 0 below -87.33 (and for -infinity): range reduction by Cody & Waite, polynomial as in
// Cephes expf. No library call and no branch, so that loops over it become vector code and every machine rounds alike.
QUERN_INLINE float ExpOfNegative(float x) {
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
QUERN_INLINE double BlockSum(std::span<const float> weights) {
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

QUERN_INLINE std::span<const float> Block(std::span<const float> weights, size_t begin) {
  return weights.subspan(begin, std::min(kBlock, weights.size() - begin));
}

// weights[i] = e^((logits[i] - largest) * inverse), and the sums of their blocks.
QUERN_INLINE void WeighInBlocks(std::span<const float> logits, float largest, float inverse, std::span<float> weights,
                                std::span<double> sums) {
  for (size_t b = 0; b < sums.size(); ++b) {
    const size_t begin = b * kBlock, end = std::min(begin + kBlock, weights.size());
    for (size_t i = begin; i < end; ++i) weights[i] = ExpOfNegative((logits[i] - largest) * inverse);
    sums[b] = BlockSum(weights.subspan(begin, end - begin));
  }
}

// The loops over a whole row, which are most of the work, for one instruction set. Every element and every sum is
// rounded alike in all of them.
struct RowLoops {
  float (*largest)(std::span<const float> row);
  void (*weigh)(std::span<const float> logits, float largest, float inverse, std::span<float> weights,
                std::span<double> sums);
};

#define QUERN_ROW_LOOPS(name, ...)                                                                              \
  __VA_ARGS__ float Largest##name(std::span<const float> row) { return LargestOf(row); }                        \
  __VA_ARGS__ void Weigh##name(std::span<const float> logits, float largest, float inverse, std::span<float> w, \
                               std::span<double> sums) {                                                        \
    WeighInBlocks(logits, largest, inverse, w, sums);                                                           \
  }                                                                                                             \
  constexpr RowLoops k##name = {Largest##name, Weigh##name};

QUERN_ROW_LOOPS(Portable)
#if defined(__x86_64__)
QUERN_ROW_LOOPS(Avx2, [[gnu::target("avx2")]])
QUERN_ROW_LOOPS(Avx512, [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")]])
#endif
#undef QUERN_ROW_LOOPS
#undef QUERN_INLINE

const RowLoops& Loops() {
#if defined(__x86_64__)
  static const RowLoops& chosen =
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
          ? kAvx512
      : __builtin_cpu_supports("avx2") ? kAvx2
                                       : kPortable;
  return chosen;
#else
  return kPortable;
#endif
}

int32_t ArgMax(std::span<const float> row) {
  const auto found = std::find(row.begin(), row.end(), Loops().largest(row));
  QUERN_CHECK(found != row.end(), "logits are not finite");
  return static_cast<int32_t>(found - row.begin());
}

// Draws from unnormalised weights in id order; `sums` are those of the blocks.
int32_t DrawInOrder(std::span<const float> weights, std::span<const double> sums, float uniform) {
  double total = 0;
  for (const double sum : sums) total += sum;
  double left = static_cast<double>(uniform) * total;
  int32_t last = -1;
  for (size_t b = 0; b < sums.size(); ++b) {
    if (sums[b] <= 0) continue;
    const size_t begin = b * kBlock;
    const std::span<const float> block = Block(weights, begin);
    if (left >= sums[b] && b + 1 < sums.size()) {
      left -= sums[b];
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

// The likeliest ids of a row of weights, which are at most 1, one after the other: the lowest first among equals. They
// are sorted in bands of weight, so that only those that are looked at cost more than a comparison.
class Ranked {
 public:
  explicit Ranked(std::span<const float> weights) : weights_(weights) {}
  // The first `count` ids, or all whose weight is not 0.
  std::span<const int32_t> First(size_t count) {
    while (order_.size() < count && floor_ > 0) NextBand();
    return std::span(order_).first(std::min(count, order_.size()));
  }

 private:
  void NextBand() {
    const float above = floor_;
    floor_ = floor_ > 1e-30f ? floor_ / 32.0f : 0.0f;
    const size_t begin = order_.size();
    for (size_t i = 0; i < weights_.size(); ++i)
      if (weights_[i] < above && weights_[i] >= floor_ && weights_[i] > 0) order_.push_back(static_cast<int32_t>(i));
    std::sort(order_.begin() + static_cast<std::ptrdiff_t>(begin), order_.end(), [&](int32_t a, int32_t b) {
      const float wa = weights_[static_cast<size_t>(a)], wb = weights_[static_cast<size_t>(b)];
      return wa != wb ? wa > wb : a < b;
    });
  }

  std::span<const float> weights_;
  std::vector<int32_t> order_;
  float floor_ = 2.0f;  // what is ranked weighs this or more
};

// Sets the weights of ids that are not kept to 0, and the sums of the blocks to what is left; the largest weight is 1.
void Truncate(const SamplingOptions& options, std::span<float> row, std::span<double> sums,
              std::vector<int32_t>* kept) {
  const float least = std::min(options.min_p, 1.0f);
  if (options.top_k > 0 || options.top_p < 1.0f) {
    Ranked ranked(row);
    size_t count = options.top_k > 0 ? static_cast<size_t>(options.top_k) : row.size();
    if (options.top_p < 1.0f) {
      double mass = 0;
      if (options.top_k > 0) {
        for (const int32_t id : ranked.First(count)) mass += static_cast<double>(row[static_cast<size_t>(id)]);
      } else {
        for (const double sum : sums) mass += sum;
      }
      mass *= static_cast<double>(options.top_p);
      double sum = 0;
      size_t used = 0;
      while (used < count && (used == 0 || sum < mass)) {
        const std::span<const int32_t> ids = ranked.First(used + 1);
        if (ids.size() == used) break;
        sum += static_cast<double>(row[static_cast<size_t>(ids[used++])]);
      }
      count = used;
    }
    const std::span<const int32_t> ids = ranked.First(count);
    std::vector<float> weights;
    for (const int32_t id : ids) weights.push_back(row[static_cast<size_t>(id)]);
    std::fill(row.begin(), row.end(), 0.0f);
    for (size_t i = 0; i < ids.size(); ++i) row[static_cast<size_t>(ids[i])] = weights[i];
  }
  for (float& weight : row)
    if (weight < least) weight = 0;
  for (size_t b = 0; b < sums.size(); ++b) sums[b] = BlockSum(Block(row, b * kBlock));
  if (kept == nullptr) return;
  for (size_t i = 0; i < row.size(); ++i)
    if (row[i] > 0) kept->push_back(static_cast<int32_t>(i));
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

  const float largest = Loops().largest(logit_row);
  QUERN_CHECK(std::isfinite(largest), "logits are not finite");
  const float inverse = 1.0f / options.temperature;
  std::vector<double> sums((row.size() + kBlock - 1) / kBlock);
  Loops().weigh(logit_row, largest, inverse, row, sums);
  const bool truncates = options.top_k > 0 || options.top_p < 1.0f || options.min_p > 0.0f;
  if (truncates) Truncate(options, row, sums, kept);
  return DrawInOrder(row, sums, uniform);
}

DrawUniforms SamplingUniforms(const SamplingOptions& options, uint64_t seed, int64_t n) {
  if (options.temperature <= 0.0f) return {.block = -1, .in_block = -1};
  Random random(seed, static_cast<uint64_t>(n));
  const float block = random.UniformFloat();
  return {.block = block, .in_block = random.UniformFloat(), .inverse_temperature = 1.0f / options.temperature};
}

float SamplingUniform(uint64_t seed, int64_t n) { return Random(seed, static_cast<uint64_t>(n)).UniformFloat(); }

}  // namespace quern
