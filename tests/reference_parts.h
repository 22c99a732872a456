#pragma once

#include "compute/ops.h"
#include "tests/reference_ops.h"

// What the parts of the reference backend share.
namespace quern::reference {

inline double Get(const TensorView& view, int64_t row, int64_t col) { return GetElement(view, row, col); }
inline void Set(const TensorView& view, int64_t row, int64_t col, double value) { SetElement(view, row, col, value); }
inline void AddTo(const TensorView& view, int64_t row, int64_t col, double value) {
  SetElement(view, row, col, GetElement(view, row, col) + value);
}

class Packed : public PackedMatrix {
 public:
  Packed(DType dtype, int64_t k, int64_t n) : PackedMatrix(dtype, k, n), values(DType::kF64, k, n) {}
  int64_t bytes() const override { return values.bytes(); }
  Tensor values;  // [k, n]
};

// Attention over pages, its backward pass and Selective Attention: reference_attention.cpp.
void KvWrite(const KvWriteArgs& args);
void Attention(const AttentionArgs& args);
void AttentionBackward(const AttentionBackwardArgs& args);

// FP8: reference_fp8.cpp.
void Quantize(const QuantizeArgs& args);
void Dequantize(const DequantizeArgs& args);
void ColumnAmax(const ColumnAmaxArgs& args);
void PackFp8(const PackArgs& args, Packed& out);
// The optimizer with FP8 moments; `ops` takes the step between decoding and encoding.
void AdamWFp8(Ops& ops, const AdamWArgs& args);

}  // namespace quern::reference
