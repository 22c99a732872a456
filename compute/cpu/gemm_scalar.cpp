#include "compute/cpu/gemm_tile.h"
#include "compute/cpu/vector_portable.h"

namespace quern::cpu {

FormatKernels ScalarBf16Kernels() { return TileKernels<PortableWiden, 4, 2>(); }
FormatKernels ScalarFp32Kernels() { return TileKernels<PortableFp32, 4, 2>(); }

}  // namespace quern::cpu
