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
