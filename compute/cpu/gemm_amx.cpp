#include "compute/cpu/gemm_amx_tile.h"
#include "compute/cpu/vector_avx512.h"

namespace quern::cpu {

namespace {

// Written as assembly with whole-memory operands: GCC 12's intrinsics tell the optimiser of only 8 of the
// configuration's 64 bytes and of no memory read or written by tile loads and stores.
struct HardwareTiles {
  static void Configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config) : "memory"); }
  static void Release() { asm volatile("tilerelease" : : : "memory"); }
  template <int t>
  static void Zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(t));
  }
  template <int t>
  static void Load(const void* from, int64_t row_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(t) : "memory");
  }
  template <int t>
  static void Store(void* to, int64_t row_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "i"(t) : "memory");
  }
  template <int c, int a, int b>
  static void Dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
};

}  // namespace

FormatKernels AmxBf16Kernels() {
  FormatKernels kernels = AmxKernels<HardwareTiles, Avx512Base>();
  kernels.decode_plain = &DecodeE4M3Avx512<kAmxPanelCols>;
  return kernels;
}

}  // namespace quern::cpu
