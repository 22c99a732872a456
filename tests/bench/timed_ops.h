#pragma once

#include <map>
#include <string>

#include "compute/ops.h"

namespace quern::bench {

// Passes every call on and keeps the time it took, by operation; products are told apart by their shape.
class TimedOps : public Ops {
 public:
  struct Entry {
    double seconds = 0;
    double cpu_seconds = 0;  // of all threads
    int64_t calls = 0;
    double flops = 0;  // of products
  };

  explicit TimedOps(Ops& ops) : ops_(ops) {}
  const std::map<std::string, Entry>& entries() const { return entries_; }
  void Clear() { entries_.clear(); }
  // A table, dearest first, of the time per `units` of something, of which there were `count`. seconds, cpu_seconds:
  // what the whole took, whose rest is printed as well.
  void Print(const char* units, double count, double seconds, double cpu_seconds) const;

  const char* name() const override { return ops_.name(); }
  std::unique_ptr<PackedMatrix> NewPacked(DType dtype, int64_t k, int64_t n) override {
    return ops_.NewPacked(dtype, k, n);
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
  void RotaryAttention(const RotaryArgs& rotary, const AttentionArgs& attention) override;
  void SwiGlu(const SwiGluArgs& args) override;
  void SwiGluBackward(const SwiGluBackwardArgs& args) override;
  void LogSoftmax(const LogSoftmaxArgs& args) override;
  bool draws() const override { return ops_.draws(); }
  void Draw(const DrawArgs& args) override;
  void LogSoftmaxBackward(const LogSoftmaxBackwardArgs& args) override;
  void MaxRatio(const MaxRatioArgs& args) override;
  void GatherRows(const GatherRowsArgs& args) override;
  void ScatterRows(const ScatterRowsArgs& args) override;
  void AdamW(const AdamWArgs& args) override;
  double SquaredNorm(const TensorView& x) override;
  void Lerp(const TensorView& x, float alpha, const TensorView& y) override;
  void Cast(const TensorView& x, const TensorView& y) override;
  void Fill(const TensorView& x, float value) override;
  void ForEach(int64_t count, const std::function<void(int64_t)>& body) override;

 private:
  template <typename Call>
  void Time(const std::string& operation, double flops, const Call& call);

  Ops& ops_;
  std::map<std::string, Entry> entries_;
};

}  // namespace quern::bench
