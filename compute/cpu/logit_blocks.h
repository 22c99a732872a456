#pragma once

// The softmax of a row of logits by blocks: a block's exponentials are relative to its own largest logit, so that a
// block is read once while it is in the caches, and a row's sums are those of its blocks. LogSoftmax and Draw share
// this: it is one log-probability.

#include <type_traits>

#include "compute/cpu/simd.h"

namespace quern::cpu::QUERN_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

inline float BlockMax(const float* z, int64_t n) {
  F16 max[4];
  for (F16& m : max) m = Set(-kInfinity);
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int64_t j = 0; j < 4; ++j) max[j] = Max(max[j], Load(z + i + j * kLanes));
  for (; i + kLanes <= n; i += kLanes) max[0] = Max(max[0], Load(z + i));
  if (i < n) max[0] = Max(max[0], InRange(0, n - i, Load(z + i, n - i), max[0]));
  return MaxLanes(Max(Max(max[0], max[1]), Max(max[2], max[3])));
}

// What a block's exponents are relative to: a block without a finite logit has no mass, rather than no number.
inline float Origin(float max) { return max == -kInfinity ? 0 : max; }

// The mass of every lane of a block, of e^scaled(logit - origin): four running sums that take its vectors in turn.
// f(i, j, offset, e, sum) for every vector of it, zero beyond the end, with the j-th sum once it holds e.
template <typename Scaled, typename F>
inline F16 LaneMass(const float* z, int64_t n, float origin, Scaled scaled, F f) {
  F16 mass[4] = {Zero(), Zero(), Zero(), Zero()};
  const auto add = [&](int64_t i, int64_t j, F16 offset, F16 e) {
    mass[j] = mass[j] + e;
    f(i, j, offset, e, mass[j]);
  };
  const auto whole = [&](int64_t i, int64_t j) {
    const F16 offset = Load(z + i) - Set(origin);
    add(i, j, offset, Exp(scaled(offset)));
  };
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int64_t j = 0; j < 4; ++j) whole(i + j * kLanes, j);
  int64_t j = 0;
  for (; i + kLanes <= n; i += kLanes) whole(i, j++);
  if (i < n) {
    const F16 offset = Load(z + i, n - i) - Set(origin);
    add(i, j, InRange(0, n - i, offset, Zero()), InRange(0, n - i, Exp(scaled(offset)), Zero()));
  }
  return (mass[0] + mass[1]) + (mass[2] + mass[3]);
}
template <typename F>
inline F16 LaneMass(const float* z, int64_t n, float origin, F f) {
  return LaneMass(
      z, n, origin, [](F16 offset) { return offset; }, f);
}

// The largest logit of a row, given those of its blocks, and the mass relative to it, of blocks' masses of e^(scale
// (logit - max)). masses[b] becomes relative to it as well.
struct RowSums {
  float max = 0;
  float mass = 0;
};
inline RowSums SumRow(const float* maxima, float* masses, int64_t blocks, float scale = 1) {
  RowSums out;
  out.max = BlockMax(maxima, blocks);
  out.mass = SumVectors(blocks, [&](F16 sum, int64_t i, auto lanes) {
    const F16 mass = Load(masses + i, lanes) * Exp((Load(maxima + i, lanes) - Set(out.max)) * Set(scale));
    Store(masses + i, mass, lanes);
    return sum + (std::is_same_v<decltype(lanes), All> ? mass : InRange(0, blocks - i, mass, Zero()));
  });
  return out;
}

}  // namespace
}  // namespace quern::cpu::QUERN_ISA
