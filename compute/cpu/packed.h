#pragma once

#include <cstdint>

#include "compute/ops.h"

namespace quern::cpu {

struct GemmKernels;

// A weight as panels of `panel_cols` outputs: [panel][k word][column], 32-bit words. A word is one fp32 value, or the
// bf16 pair (k, k + 1) with k in the low half. Missing columns and the tail of k are zero. Panels start on cache lines.
// An FP8 matrix holds its values, which are bf16 values.
class CpuPackedMatrix : public PackedMatrix {
 public:
  CpuPackedMatrix(const GemmKernels& kernels, DType dtype, int64_t k, int64_t n);

  int64_t bytes() const override { return storage_.bytes(); }
  const GemmKernels& kernels() const { return *kernels_; }
  DType value_dtype() const { return IsFp8(dtype()) ? DType::kBf16 : dtype(); }
  int64_t panel_cols() const { return panel_cols_; }
  int64_t panels() const { return panels_; }
  int64_t k_words() const { return k_words_; }
  uint32_t* Panel(int64_t panel) const { return storage_.Row<uint32_t>(panel); }

 private:
  const GemmKernels* kernels_;
  int64_t panel_cols_;
  int64_t panels_;
  int64_t k_words_;
  Tensor storage_;
};

}  // namespace quern::cpu
