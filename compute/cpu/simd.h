#pragma once

// Sixteen floats at a time, for kernels that are compiled once per instruction set (QUERN_ISA names the namespace). The
// lane structure and the order of every reduction are the same everywhere, so AVX-512 and AVX2 give equal bits; plain
// x86-64 has no fused multiply-add and differs in rounding. bf16 values are uint16_t here. Everything is in an unnamed
// namespace: a copy compiled for one instruction set must never be linked into another.

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace quern::cpu::QUERN_ISA {
namespace {

constexpr int64_t kLanes = 16;
struct All {};  // in place of a lane count: all sixteen

#if defined(__AVX512F__)

constexpr int kAccumulators = 16;  // F16 accumulators that fit in registers beside their operands

struct F16 {
  __m512 v;
};

inline __mmask16 FirstLanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline F16 Zero() { return {_mm512_setzero_ps()}; }
inline F16 Set(float x) { return {_mm512_set1_ps(x)}; }
inline F16 Load(const float* p, All = {}) { return {_mm512_loadu_ps(p)}; }
inline F16 Load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(FirstLanes(n), p)}; }
inline F16 Widen(__m256i bits) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))}; }
inline F16 Load(const uint16_t* p, All = {}) { return Widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline F16 Load(const uint16_t* p, int64_t n) { return Widen(_mm256_maskz_loadu_epi16(FirstLanes(n), p)); }
inline void Store(float* p, F16 a, All = {}) { _mm512_storeu_ps(p, a.v); }
inline void Store(float* p, F16 a, int64_t n) { _mm512_mask_storeu_ps(p, FirstLanes(n), a.v); }
inline __m256i Narrow(F16 a) {  // as Bf16(float): nearest even, NaN stays NaN, subnormals kept
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  rounded =
      _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
inline void Store(uint16_t* p, F16 a, All = {}) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), Narrow(a)); }
inline void Store(uint16_t* p, F16 a, int64_t n) { _mm256_mask_storeu_epi16(p, FirstLanes(n), Narrow(a)); }
inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 Fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }    // a * b + c
inline F16 Fnma(F16 a, F16 b, F16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a * b
inline F16 Max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }                  // b when either is NaN
inline F16 Min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F16 Sqrt(F16 a) { return {_mm512_sqrt_ps(a.v)}; }
// Lane by lane: x < y ? a : b.
inline F16 IfLess(F16 x, F16 y, F16 a, F16 b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), b.v, a.v)};
}
// Lanes [begin, end) of a, the others of b. 0 <= begin, end <= 16.
inline F16 InRange(int64_t begin, int64_t end, F16 a, F16 b) {
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(FirstLanes(end) & ~FirstLanes(begin)), b.v, a.v)};
}
inline F16 RoundEven(F16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// 2^a for whole a in [-126, 127].
inline F16 PowerOfTwo(F16 a) {
  const __m512i n = _mm512_cvtps_epi32(a.v);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23))};
}
inline void Lower8(F16 a, __m256* low, __m256* high) {
  *low = _mm512_castps512_ps256(a.v);
  *high = _mm512_extractf32x8_ps(a.v, 1);
}

#elif defined(__AVX2__)

constexpr int kAccumulators = 4;

struct F16 {
  __m256 lo, hi;
};

alignas(64) constexpr int32_t kMaskTable[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
struct LaneMask {
  __m256i lo, hi;
};
inline LaneMask FirstLanes(int64_t n) {
  const int32_t* p = kMaskTable + 16 - n;
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
inline F16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F16 Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 Load(const float* p, All = {}) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline F16 Load(const float* p, int64_t n) {
  const LaneMask mask = FirstLanes(n);
  return {_mm256_maskload_ps(p, mask.lo), _mm256_maskload_ps(p + 8, mask.hi)};
}
inline __m256 Widen8(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline F16 Load(const uint16_t* p, All = {}) { return {Widen8(p), Widen8(p + 8)}; }
inline F16 Load(const uint16_t* p, int64_t n) {
  uint16_t all[kLanes] = {};
  std::memcpy(all, p, static_cast<size_t>(n) * 2);
  return Load(all);
}
inline void Store(float* p, F16 a, All = {}) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline void Store(float* p, F16 a, int64_t n) {
  const LaneMask mask = FirstLanes(n);
  _mm256_maskstore_ps(p, mask.lo, a.lo);
  _mm256_maskstore_ps(p + 8, mask.hi, a.hi);
}
inline __m256i Round8(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
inline void Store(uint16_t* p, F16 a, All = {}) {
  const __m256i packed = _mm256_packus_epi32(Round8(a.lo), Round8(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline void Store(uint16_t* p, F16 a, int64_t n) {
  uint16_t all[kLanes];
  Store(all, a);
  std::memcpy(p, all, static_cast<size_t>(n) * 2);
}
inline F16 operator+(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F16 Fma(F16 a, F16 b, F16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline F16 Fnma(F16 a, F16 b, F16 c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
inline F16 Max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F16 Min(F16 a, F16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F16 Sqrt(F16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
inline F16 IfLess(F16 x, F16 y, F16 a, F16 b) {
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, y.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, y.hi, _CMP_LT_OQ))};
}
inline F16 InRange(int64_t begin, int64_t end, F16 a, F16 b) {
  const LaneMask first = FirstLanes(begin), last = FirstLanes(end);
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(_mm256_andnot_si256(first.lo, last.lo))),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(_mm256_andnot_si256(first.hi, last.hi)))};
}
inline F16 RoundEven(F16 a) {
  return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline __m256 PowerOfTwo8(__m256 a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127)), 23));
}
inline F16 PowerOfTwo(F16 a) { return {PowerOfTwo8(a.lo), PowerOfTwo8(a.hi)}; }
inline void Lower8(F16 a, __m256* low, __m256* high) {
  *low = a.lo;
  *high = a.hi;
}

#else

constexpr int kAccumulators = 4;

struct F16 {
  float v[kLanes];
};

template <typename F>
inline F16 PerLane(F f) {
  F16 out;
  for (int64_t i = 0; i < kLanes; ++i) out.v[i] = f(i);
  return out;
}
inline float FloatOf(uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline uint32_t BitsOf(float x) {
  uint32_t out;
  std::memcpy(&out, &x, 4);
  return out;
}
inline float ToFloat(float x) { return x; }
inline float ToFloat(uint16_t x) { return FloatOf(uint32_t{x} << 16); }
inline void Put(float* p, float x) { *p = x; }
inline void Put(uint16_t* p, float x) {
  const uint32_t bits = BitsOf(x);
  *p = static_cast<uint16_t>(x != x ? (bits | 0x400000u) >> 16 : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline F16 Zero() { return {}; }
inline F16 Set(float x) {
  return PerLane([&](int64_t) { return x; });
}
template <typename T>
inline F16 Load(const T* p, All = {}) {
  return PerLane([&](int64_t i) { return ToFloat(p[i]); });
}
template <typename T>
inline F16 Load(const T* p, int64_t n) {
  return PerLane([&](int64_t i) { return i < n ? ToFloat(p[i]) : 0.0f; });
}
template <typename T>
inline void Store(T* p, F16 a, All = {}) {
  for (int64_t i = 0; i < kLanes; ++i) Put(p + i, a.v[i]);
}
template <typename T>
inline void Store(T* p, F16 a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) Put(p + i, a.v[i]);
}
inline F16 operator+(F16 a, F16 b) {
  return PerLane([&](int64_t i) { return a.v[i] + b.v[i]; });
}
inline F16 operator-(F16 a, F16 b) {
  return PerLane([&](int64_t i) { return a.v[i] - b.v[i]; });
}
inline F16 operator*(F16 a, F16 b) {
  return PerLane([&](int64_t i) { return a.v[i] * b.v[i]; });
}
inline F16 operator/(F16 a, F16 b) {
  return PerLane([&](int64_t i) { return a.v[i] / b.v[i]; });
}
inline F16 Fma(F16 a, F16 b, F16 c) { return a * b + c; }
inline F16 Fnma(F16 a, F16 b, F16 c) { return c - a * b; }
inline F16 Max(F16 a, F16 b) {
  return PerLane([&](int64_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F16 Min(F16 a, F16 b) {
  return PerLane([&](int64_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F16 Sqrt(F16 a) {
  return PerLane([&](int64_t i) { return __builtin_sqrtf(a.v[i]); });
}
inline F16 IfLess(F16 x, F16 y, F16 a, F16 b) {
  return PerLane([&](int64_t i) { return x.v[i] < y.v[i] ? a.v[i] : b.v[i]; });
}
inline F16 InRange(int64_t begin, int64_t end, F16 a, F16 b) {
  return PerLane([&](int64_t i) { return i >= begin && i < end ? a.v[i] : b.v[i]; });
}
inline F16 RoundEven(F16 a) {  // |a| < 2^22
  return PerLane([&](int64_t i) { return (a.v[i] + 0x1.8p23f) - 0x1.8p23f; });
}
inline F16 PowerOfTwo(F16 a) {
  return PerLane([&](int64_t i) { return FloatOf(static_cast<uint32_t>(static_cast<int32_t>(a.v[i]) + 127) << 23); });
}

#endif

// Lanes are folded in halves: 8, 4, 2, 1.
#if defined(__AVX2__)
inline float SumLanes(F16 a) {
  __m256 low, high;
  Lower8(a, &low, &high);
  low = _mm256_add_ps(low, high);
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float MaxLanes(F16 a) {
  __m256 low, high;
  Lower8(a, &low, &high);
  low = _mm256_max_ps(low, high);
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
#else
inline float SumLanes(F16 a) {
  for (int64_t half = 8; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  return a.v[0];
}
inline float MaxLanes(F16 a) {
  float out = a.v[0];
  for (int64_t i = 1; i < kLanes; ++i) out = a.v[i] > out ? a.v[i] : out;
  return out;
}
#endif

// e^x within 2 ulp for x <= 88.37 (larger x give e^88.37); 0 below -87.33, where the result would be subnormal; NaN
// stays NaN. Range reduction by Cody & Waite, polynomial of degree 7 as in Cephes expf.
inline F16 Exp(F16 x) {
  const F16 lowest = Set(-87.33f);
  const F16 clamped = Min(Set(88.37f), Max(lowest, x));
  const F16 n = RoundEven(clamped * Set(1.44269504f));
  F16 r = Fnma(n, Set(0.693145751953125f), clamped);
  r = Fnma(n, Set(1.42860677e-6f), r);
  F16 p = Set(1.9875691500e-4f);
  p = Fma(p, r, Set(1.3981999507e-3f));
  p = Fma(p, r, Set(8.3334519073e-3f));
  p = Fma(p, r, Set(4.1665795894e-2f));
  p = Fma(p, r, Set(1.6666665459e-1f));
  p = Fma(p, r, Set(5.0000001201e-1f));
  p = Fma(p, r * r, r) + Set(1.0f);
  return IfLess(x, lowest, Zero(), p * PowerOfTwo(n));
}
inline float ExpOne(float x) { return MaxLanes(Exp(Set(x))); }  // one value, the same bits as in a vector

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
