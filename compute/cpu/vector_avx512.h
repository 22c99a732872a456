#pragma once

#include <immintrin.h>

#include <cstdint>

// Vector types of gemm_tile.h for AVX-512. Internal linkage: see there.

namespace quern::cpu {
namespace {

struct Avx512Base {
  using Acc = __m512;
  static constexpr int kLanes = 16;
  static Acc Zero() { return _mm512_setzero_ps(); }
  static Acc Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, Acc x) { _mm512_storeu_ps(p, x); }
  static Acc Add(Acc x, Acc y) { return _mm512_add_ps(x, y); }
  // The rounding of Bf16(float), subnormals and NaN included; the conversion instruction would flush subnormals.
  static void StoreBf16(uint16_t* p, Acc x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i out = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(out));
  }
};

// Sixteen words of E4M3 codes as bf16 pairs where no code is NaN and every value is a normal number.
struct Avx512Codes {
  __m512i exponents;  // what the columns add to the exponents' field

  Avx512Codes() = default;
  explicit Avx512Codes(const float* scales) {
    // 2^s: (s + 127) << 23 becomes (s + 120) << 7, twice.
    const __m512i s = _mm512_sub_epi32(_mm512_srli_epi32(_mm512_loadu_si512(scales), 23), _mm512_set1_epi32(7));
    const __m512i low = _mm512_and_si512(_mm512_slli_epi32(s, 7), _mm512_set1_epi32(0xffff));
    exponents = _mm512_or_si512(low, _mm512_slli_epi32(low, 16));
  }
  __m512i Decode(const uint16_t* p) const { return Decode(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  __m512i Decode(__m256i codes) const {
    const __m512i code = _mm512_cvtepu8_epi16(codes);
    const __m512i magnitude = _mm512_and_si512(code, _mm512_set1_epi16(0x7f));
    // bf16 of m 2^-9 less the exponent that all values are given, for m in 0 ... 7.
    constexpr int kLess = 120 << 7;
    const auto entry = [](int bits) { return static_cast<int16_t>(bits - kLess); };
    const __m512i subnormals = _mm512_broadcast_i32x4(_mm_setr_epi16(
        0, entry(0x3b00), entry(0x3b80), entry(0x3bc0), entry(0x3c00), entry(0x3c20), entry(0x3c40), entry(0x3c60)));
    const __mmask32 subnormal = _mm512_testn_epi16_mask(code, _mm512_set1_epi16(0x78));
    const __m512i bits =
        _mm512_mask_permutexvar_epi16(_mm512_slli_epi16(magnitude, 4), subnormal, magnitude, subnormals);
    const __mmask32 some = _mm512_test_epi16_mask(magnitude, magnitude);
    const __m512i value = _mm512_maskz_add_epi16(some, bits, exponents);
    return _mm512_ternarylogic_epi32(value, _mm512_slli_epi16(code, 8), _mm512_set1_epi16(-0x8000), 0xf8);  // a | b & c
  }
};

template <int kPanelCols>
void DecodeE4M3Avx512(const uint16_t* codes, int64_t words, const float* scales, uint32_t* out) {
  constexpr int kVecs = kPanelCols / 16;
  static_assert(kVecs == 2 || kVecs == 3);
  const Avx512Codes columns[3] = {Avx512Codes(scales), Avx512Codes(scales + 16),
                                  Avx512Codes(scales + (kVecs == 3 ? 32 : 0))};
  for (int64_t w = 0; w < words; ++w) {
    for (int v = 0; v < kVecs; ++v) _mm512_storeu_si512(out + v * 16, columns[v].Decode(codes + v * 16));
    __builtin_prefetch(codes + 16 * kPanelCols);
    codes += kPanelCols;
    out += kPanelCols;
  }
}

struct Avx512Fp32 : Avx512Base {
  using A = __m512;
  using B = __m512;
  static constexpr int kHalves = 1;
  static B LoadB(const uint32_t* p, int) { return _mm512_loadu_ps(reinterpret_cast<const float*>(p)); }
  static A BroadcastA(const uint8_t* p) { return _mm512_set1_ps(*reinterpret_cast<const float*>(p)); }
  static A BroadcastHalfWord(const uint8_t*) { return _mm512_setzero_ps(); }
  static Acc MulAdd(A a, B b, Acc acc) { return _mm512_fmadd_ps(a, b, acc); }
};

// bf16 pairs of b become two fp32 vectors: the first of each pair by a shift, the second by a mask.
struct Avx512Widen : Avx512Fp32 {
  static constexpr int kHalves = 2;
  static B LoadB(const uint32_t* p, int half) {
    const __m512i words = _mm512_loadu_si512(p);
    return _mm512_castsi512_ps(half == 0 ? _mm512_slli_epi32(words, 16)
                                         : _mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
};

}  // namespace
}  // namespace quern::cpu
