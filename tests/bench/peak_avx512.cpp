#include <immintrin.h>

#include "tests/bench/peak.h"

namespace quern::bench {

// 16 independent chains hide the latency; the empty assembly keeps the compiler from simplifying them.
double PeakAvx512(int64_t steps) {
  __m512 acc[16], x = _mm512_setzero_ps();
  asm volatile("" : "+v"(x));
  for (__m512& a : acc) a = x;
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 16
    for (__m512& a : acc) {
      a = _mm512_fmadd_ps(x, x, a);
      asm volatile("" : "+v"(a));
    }
  }
  return static_cast<double>(steps) * 16 * 32;
}

double PeakAvx512Bf16(int64_t steps) {
  __m512 acc[16], x = _mm512_setzero_ps();
  asm volatile("" : "+v"(x));
  for (__m512& a : acc) a = x;
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 16
    for (__m512& a : acc) {
      a = _mm512_dpbf16_ps(a, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(x));
      asm volatile("" : "+v"(a));
    }
  }
  return static_cast<double>(steps) * 16 * 64;
}

}  // namespace quern::bench
