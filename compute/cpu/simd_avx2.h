#pragma once

// Sixteen floats in two 256-bit registers. Included by simd.h only, which says what the functions promise.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace quern::cpu::QUERN_ISA {
namespace {

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
inline __m256 ScaleUnlessLess8(__m256 x, __m256 least, __m256 a, __m256 n) {
  const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_andnot_ps(_mm256_cmp_ps(x, least, _CMP_LT_OQ), _mm256_mul_ps(a, _mm256_castsi256_ps(bits)));
}
inline F16 ScaleUnlessLess(F16 x, F16 least, F16 a, F16 n) {
  return {ScaleUnlessLess8(x.lo, least.lo, a.lo, n.lo), ScaleUnlessLess8(x.hi, least.hi, a.hi, n.hi)};
}
inline void Halves(F16 a, __m256* low, __m256* high) {
  *low = a.lo;
  *high = a.hi;
}

// Lanes are folded in halves: 8, 4, 2, 1.
inline float SumLanes(F16 a) {
  __m256 low, high;
  Halves(a, &low, &high);
  low = _mm256_add_ps(low, high);
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float MaxLanes(F16 a) {
  __m256 low, high;
  Halves(a, &low, &high);
  low = _mm256_max_ps(low, high);
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

}  // namespace
}  // namespace quern::cpu::QUERN_ISA
