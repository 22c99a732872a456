#pragma once

#include "compute/cuda/packed_size.h"
#include "compute/ops.h"

namespace quern {

// Ops that compute nothing and touch no memory: a step that runs on them shows what memory it would take (Arena's peak,
// sizes of tensors). Packed matrices have the sizes of `backend`, which must outlive them, or those of a GPU.
class PlanningOps : public Ops {
 public:
  explicit PlanningOps(Ops& backend, bool gpu = false) : backend_(backend), gpu_(gpu) {}
  const char* name() const override { return "planning"; }
  std::unique_ptr<PackedMatrix> NewPacked(DType dtype, int64_t k, int64_t n) override {
    if (gpu_) return std::make_unique<OnGpu>(dtype, k, n);
    return backend_.NewPacked(dtype, k, n);
  }
  void Pack(const PackArgs&) override {}
  void Quantize(const QuantizeArgs&) override {}
  void Dequantize(const DequantizeArgs&) override {}
  void ColumnAmax(const ColumnAmaxArgs&) override {}
  void MatMul(const MatMulArgs&) override {}
  void MatMulGradWeight(const MatMulGradWeightArgs&) override {}
  void BiasBackward(const BiasBackwardArgs&) override {}
  void Embedding(const EmbeddingArgs&) override {}
  void EmbeddingBackward(const EmbeddingBackwardArgs&) override {}
  void RmsNorm(const RmsNormArgs&) override {}
  void RmsNormBackward(const RmsNormBackwardArgs&) override {}
  void Rotary(const RotaryArgs&) override {}
  void RotaryBackward(const RotaryBackwardArgs&) override {}
  void KvWrite(const KvWriteArgs&) override {}
  void Attention(const AttentionArgs&) override {}
  void AttentionBackward(const AttentionBackwardArgs&) override {}
  void SwiGlu(const SwiGluArgs&) override {}
  void SwiGluBackward(const SwiGluBackwardArgs&) override {}
  void LogSoftmax(const LogSoftmaxArgs&) override {}
  void LogSoftmaxBackward(const LogSoftmaxBackwardArgs&) override {}
  void MaxRatio(const MaxRatioArgs&) override {}
  void GatherRows(const GatherRowsArgs&) override {}
  void ScatterRows(const ScatterRowsArgs&) override {}
  void AdamW(const AdamWArgs&) override {}
  double SquaredNorm(const TensorView&) override { return 0; }
  void Lerp(const TensorView&, float, const TensorView&) override {}
  void Cast(const TensorView&, const TensorView&) override {}
  void Fill(const TensorView&, float) override {}
  void ForEach(int64_t, const std::function<void(int64_t)>&) override {}

 private:
  class OnGpu : public PackedMatrix {
   public:
    using PackedMatrix::PackedMatrix;
    int64_t bytes() const override { return cuda::PackedBytes(dtype(), k(), n()); }
  };

  Ops& backend_;
  bool gpu_;
};

}  // namespace quern
