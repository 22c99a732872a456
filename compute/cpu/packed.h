#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "compute/ops.h"

namespace quern::cpu {

struct GemmKernels;

// A weight as panels of `panel_cols` outputs: [panel][k word][column], 32-bit words. A word is one fp32 value, or the
// bf16 pair (k, k + 1) with k in the low half. Missing columns and the tail of k are zero. Panels start on cache lines.
// An E4M3 matrix holds words of 16 bits, the codes of (k, k + 1) with k's in the low byte, and a scale for each column;
// products decode them to bf16 words, which is exact. Another FP8 matrix holds its values, which are bf16 values.
class CpuPackedMatrix : public PackedMatrix {
 public:
  CpuPackedMatrix(const GemmKernels& kernels, DType dtype, int64_t k, int64_t n);

  int64_t bytes() const override { return storage_.bytes() + scales_.bytes(); }
  const GemmKernels& kernels() const { return *kernels_; }
  DType value_dtype() const { return IsFp8(dtype()) ? DType::kBf16 : dtype(); }
  int64_t panel_cols() const { return panel_cols_; }
  int64_t panels() const { return panels_; }
  int64_t k_words() const { return k_words_; }
  uint32_t* Panel(int64_t panel) const { return storage_.Row<uint32_t>(panel); }
  bool has_codes() const { return dtype() == DType::kE4M3; }
  uint16_t* Codes(int64_t panel) const { return storage_.Row<uint16_t>(panel); }
  float* scales() const { return scales_.Row<float>(0); }  // of whole panels' columns
  // FormatKernels::decode_plain may be used.
  bool plain() const { return plain_; }
  void set_plain(bool plain) { plain_ = plain; }

 private:
  const GemmKernels* kernels_;
  int64_t panel_cols_;
  int64_t panels_;
  int64_t k_words_;
  Tensor storage_;
  Tensor scales_;
  bool plain_ = false;
};

// Packs codes [n, k] ([k, n] with `transposed`) that stand for code * scales[output].
void PackCodes(const TensorView& codes, const float* scales, bool transposed, CpuPackedMatrix& out, ThreadPool& pool);

}  // namespace quern::cpu
