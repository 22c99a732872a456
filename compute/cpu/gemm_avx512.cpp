#include "compute/cpu/gemm_tile.h"
#include "compute/cpu/vector_avx512.h"

namespace quern::cpu {

// 24 accumulators, 3 vectors of b and one of a: 28 of 32 registers.
FormatKernels Avx512Bf16Kernels() {
  FormatKernels kernels = TileKernels<Avx512Widen, 8, 3>();
  kernels.decode_plain = &DecodeE4M3Avx512<48>;
  return kernels;
}
FormatKernels Avx512Fp32Kernels() { return TileKernels<Avx512Fp32, 8, 3>(); }

}  // namespace quern::cpu
