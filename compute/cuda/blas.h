#pragma once

#include <memory>
#include <string>
#include <type_traits>

#include "compute/cuda/runtime.h"

namespace quern::cuda {

// d[T, n] = a[T, k] b, by rows: what every product of Ops comes down to. fp32 sums.
struct Product {
  int64_t rows = 0, n = 0, k = 0;  // T, n, k
  // a: [rows, k], or with a_transposed [k, rows].
  const void* a = nullptr;
  DType a_dtype = DType::kBf16;
  int64_t a_stride = 0;
  bool a_transposed = false;
  // b: [n, k], or with b_transposed [k, n].
  const void* b = nullptr;
  DType b_dtype = DType::kBf16;
  int64_t b_stride = 0;
  bool b_transposed = false;
  void* d = nullptr;
  DType d_dtype = DType::kBf16;
  int64_t d_stride = 0;
  bool accumulate = false;
  const void* bias = nullptr;      // [n]
  DType bias_dtype = DType::kF32;  // d's; bf16 with FP8 operands
  // FP8 operands: one scale, or one a row of a / an output of b.
  const float* a_scale = nullptr;
  bool a_scale_rows = false;
  const float* b_scale = nullptr;
  bool b_scale_outputs = false;
};
static_assert(std::is_trivially_copyable_v<Product>);

// Matrix products: cuBLASLt's (blas_lt.cpp), or plain loops beside the emulator.
class Blas {
 public:
  virtual ~Blas() = default;
  // FP8 operands, both with k contiguous; strides, k and n multiples of 16, data aligned to 16 bytes.
  virtual bool has_fp8() const = 0;
  // Whether FP8 operands may have a scale a row and an output (both or neither); else only one each.
  virtual bool has_row_scales() const = 0;
  // `strict`: one algorithm whatever `rows`, so that a row's result does not depend on how many there are.
  virtual void Multiply(const Product& product, bool strict) = 0;
};

struct BlasResult {
  std::unique_ptr<Blas> blas;
  std::string error;  // when there is none: one line
};
BlasResult NewBlas(Runtime& runtime);

}  // namespace quern::cuda
