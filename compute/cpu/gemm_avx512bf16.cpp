#include <cstring>

#include "compute/cpu/gemm_tile.h"
#include "compute/cpu/vector_avx512.h"

namespace quern::cpu {

namespace {

struct Avx512Dot : Avx512Base {
  using A = __m512bh;
  using B = __m512bh;
  static constexpr int kHalves = 1;
  static B LoadB(const uint32_t* p, int) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
  static A BroadcastA(const uint8_t* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(word));
  }
  static A BroadcastHalfWord(const uint8_t* p) {
    uint16_t low;
    std::memcpy(&low, p, 2);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(low));
  }
  // Flushes subnormals to zero, as the products themselves do.
  static void StoreBf16(uint16_t* p, Acc x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  }
  static Acc MulAdd(A a, B b, Acc acc) { return _mm512_dpbf16_ps(acc, a, b); }
};

struct Avx512DotCodes : Avx512Dot {
  using Scale = Avx512Codes;
  static Scale LoadScale(const float* p) { return Avx512Codes(p); }
  static B LoadB(const uint16_t* p, int, const Scale& scale) { return reinterpret_cast<__m512bh>(scale.Decode(p)); }
  static void StoreB(uint32_t* p, B b) { _mm512_storeu_si512(p, reinterpret_cast<__m512i>(b)); }
};

}  // namespace

FormatKernels Avx512DotBf16Kernels() {
  FormatKernels kernels = TileKernels<Avx512Dot, 8, 3>();
  kernels.decode_plain = &DecodeE4M3Avx512<48>;
  kernels.code_block = &BlockOf<Avx512DotCodes, 8, 3, ALayout::kRows>;
  return kernels;
}

}  // namespace quern::cpu
