#pragma once

#include <cstdint>

#include "compute/dtype.h"

namespace quern::cuda {

// Of FP8 products: strides, inner and output dimensions.
constexpr int64_t kFp8Multiple = 16;

constexpr int64_t RoundUp(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// What a packed matrix takes on the device. FP8 has the scale of every output.
inline int64_t PackedBytes(DType dtype, int64_t k, int64_t n) {
  if (!IsFp8(dtype)) return n * k * DTypeSize(dtype);
  return RoundUp(n, kFp8Multiple) * (RoundUp(k, kFp8Multiple) + int64_t{sizeof(float)});
}

// What every CudaOps holds beside tensors: the first block of its temporaries, and the products' workspace.
constexpr int64_t kScratchBlock = int64_t{64} << 20;
constexpr int64_t kProductWorkspace = int64_t{32} << 20;

}  // namespace quern::cuda
