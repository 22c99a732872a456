#pragma once

// Sixteen floats at a time, for kernels that are compiled once per instruction set (QUERN_ISA names the namespace). The
// lane structure and the order of every reduction are the same everywhere, so AVX-512 and AVX2 give equal bits; plain
// x86-64 has no fused multiply-add and differs in rounding. bf16 values are uint16_t here. Everything is in an unnamed
// namespace: a copy compiled for one instruction set must never be linked into another.

#include <cstdint>
#include <cstring>

namespace quern::cpu::QUERN_ISA {
namespace {

constexpr int64_t kLanes = 16;
struct All {};  // in place of a lane count: all sixteen

}  // namespace
}  // namespace quern::cpu::QUERN_ISA

#if defined(__AVX512F__)
#include "compute/cpu/simd_avx512.h"
#elif defined(__AVX2__)
#include "compute/cpu/simd_avx2.h"
#else
#include "compute/cpu/simd_scalar.h"
#endif

namespace quern::cpu::QUERN_ISA {
namespace {

// e^x within 1 ulp for x <= 88.37; 0 below -87.33, where the result would be subnormal; NaN stays NaN. Range reduction
// by Cody & Waite, then the polynomial of degree 6 with the least largest relative error among those that begin 1 + r.
inline F16 Exp(F16 x) {
  const F16 n = RoundEven(x * Set(1.44269504f));
  F16 r = Fnma(n, Set(0.693145751953125f), x);
  r = Fnma(n, Set(1.42860677e-6f), r);
  F16 p = Set(1.383832423e-3f);
  p = Fma(p, r, Set(8.369165473e-3f));
  p = Fma(p, r, Set(4.166810215e-2f));
  p = Fma(p, r, Set(1.666651666e-1f));
  p = Fma(p, r, Set(4.999999404e-1f));
  p = Fma(p, r * r, r) + Set(1.0f);
  return ScaleUnlessLess(x, Set(-87.33f), p, n);
}

// f(i, lanes) for i = 0, 16, ...: `lanes` is All{} and, for what is left at the end, a number.
template <typename F>
inline void ForVectors(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, All{});
  if (i < n) f(i, n - i);
}

// Sum over [0, n) of what f(sum, i, lanes) adds to its argument, with four running sums. f must add zero in lanes
// beyond the end. The order depends on n alone.
template <typename F>
inline float SumVectors(int64_t n, F f) {
  F16 sums[4] = {Zero(), Zero(), Zero(), Zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int64_t j = 0; j < 4; ++j) sums[j] = f(sums[j], i + j * kLanes, All{});
  for (; i + kLanes <= n; i += kLanes) sums[0] = f(sums[0], i, All{});
  if (i < n) sums[1] = f(sums[1], i, n - i);
  return SumLanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace
}  // namespace quern::cpu::QUERN_ISA
