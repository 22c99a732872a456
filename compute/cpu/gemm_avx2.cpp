#include <immintrin.h>

#include "compute/cpu/gemm_tile.h"

namespace quern::cpu {

namespace {

struct Avx2Fp32 {
  using Acc = __m256;
  using A = __m256;
  using B = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kHalves = 1;
  static Acc Zero() { return _mm256_setzero_ps(); }
  static Acc Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, Acc x) { _mm256_storeu_ps(p, x); }
  static Acc Add(Acc x, Acc y) { return _mm256_add_ps(x, y); }
  static B LoadB(const uint32_t* p, int) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static A BroadcastA(const uint8_t* p) { return _mm256_broadcast_ss(reinterpret_cast<const float*>(p)); }
  static A BroadcastHalfWord(const uint8_t*) { return _mm256_setzero_ps(); }
  static Acc MulAdd(A a, B b, Acc acc) { return _mm256_fmadd_ps(a, b, acc); }
  // The rounding of Bf16(float), NaN included.
  static void StoreBf16(uint16_t* p, Acc x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i out = _mm256_blendv_epi8(rounded, quiet, nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(out, out), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
};

struct Avx2Widen : Avx2Fp32 {
  static constexpr int kHalves = 2;
  static B LoadB(const uint32_t* p, int half) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_castsi256_ps(half == 0 ? _mm256_slli_epi32(words, 16)
                                         : _mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
};

}  // namespace

// 12 accumulators, 2 vectors of b and one of a: 15 of 16 registers.
FormatKernels Avx2Bf16Kernels() { return TileKernels<Avx2Widen, 6, 2>(); }
FormatKernels Avx2Fp32Kernels() { return TileKernels<Avx2Fp32, 6, 2>(); }

}  // namespace quern::cpu
