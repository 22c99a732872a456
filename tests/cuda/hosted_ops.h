#pragma once

#include <map>
#include <memory>
#include <vector>

#include "compute/ops.h"

namespace quern {

// A device's backend for tests that hold everything in the host's memory: each call copies what its views cover to the
// device, padding between rows included, and afterwards all of it back. Views that begin at the same address share
// memory there too.
class HostedOps : public Ops {
 public:
  explicit HostedOps(std::unique_ptr<Ops> device) : device_(std::move(device)) {}

  const char* name() const override { return device_->name(); }
  std::unique_ptr<PackedMatrix> NewPacked(DType dtype, int64_t k, int64_t n) override {
    return device_->NewPacked(dtype, k, n);
  }
  void Pack(const PackArgs& args) override;
  void Quantize(const QuantizeArgs& args) override;
  void Dequantize(const DequantizeArgs& args) override;
  void ColumnAmax(const ColumnAmaxArgs& args) override;
  void MatMul(const MatMulArgs& args) override;
  void MatMulGradWeight(const MatMulGradWeightArgs& args) override;
  void BiasBackward(const BiasBackwardArgs& args) override;
  void Embedding(const EmbeddingArgs& args) override;
  void EmbeddingBackward(const EmbeddingBackwardArgs& args) override;
  void RmsNorm(const RmsNormArgs& args) override;
  void RmsNormBackward(const RmsNormBackwardArgs& args) override;
  void Rotary(const RotaryArgs& args) override;
  void RotaryBackward(const RotaryBackwardArgs& args) override;
  void KvWrite(const KvWriteArgs& args) override;
  void Attention(const AttentionArgs& args) override;
  void AttentionBackward(const AttentionBackwardArgs& args) override;
  void SwiGlu(const SwiGluArgs& args) override;
  void SwiGluBackward(const SwiGluBackwardArgs& args) override;
  void LogSoftmax(const LogSoftmaxArgs& args) override;
  void LogSoftmaxBackward(const LogSoftmaxBackwardArgs& args) override;
  void MaxRatio(const MaxRatioArgs& args) override;
  void GatherRows(const GatherRowsArgs& args) override;
  void ScatterRows(const ScatterRowsArgs& args) override;
  void AdamW(const AdamWArgs& args) override;
  double SquaredNorm(const TensorView& x) override;
  void Lerp(const TensorView& x, float alpha, const TensorView& y) override;
  void Cast(const TensorView& x, const TensorView& y) override;
  void Fill(const TensorView& x, float value) override;

 private:
  class Mirror;
  std::unique_ptr<Ops> device_;
};

}  // namespace quern
