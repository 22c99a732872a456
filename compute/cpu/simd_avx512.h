#pragma once

// Sixteen floats in one 512-bit register. Included by simd.h only, which says what the functions promise.

#include <immintrin.h>

#include <cstdint>

namespace quern::cpu::QUERN_ISA {
namespace {

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
// x < least ? 0 : a 2^n for whole n; n in [-126, 127] where x >= least.
inline F16 ScaleUnlessLess(F16 x, F16 least, F16 a, F16 n) {
  return {_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x.v, least.v, _CMP_NLT_UQ), a.v, n.v)};
}
inline void Halves(F16 a, __m256* low, __m256* high) {
  *low = _mm512_castps512_ps256(a.v);
  *high = _mm512_extractf32x8_ps(a.v, 1);
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
