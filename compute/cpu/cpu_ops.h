#pragma once

#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "compute/arena.h"
#include "compute/cpu/cpu_features.h"
#include "compute/ops.h"

namespace quern {

namespace cpu {
struct RowKernels;
struct GemmKernels;
}  // namespace cpu

// The CPU backend. Every kernel exists for AVX-512, for AVX2 with FMA and for plain x86-64; which one runs is chosen
// from the CPU when the object is made (cpu_features.h). A row's result never depends on the other rows of a call or on
// the number of threads. Not thread-safe (one caller at a time); several objects may share a pool.
class CpuOps : public Ops {
 public:
  // `pool` must outlive the object.
  explicit CpuOps(ThreadPool* pool, cpu::Isa isa = cpu::ActiveIsa());

  const char* name() const override { return "cpu"; }
  std::unique_ptr<PackedMatrix> NewPacked(DType dtype, int64_t k, int64_t n) override;
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
  bool draws() const override { return true; }
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
  void ForEach(int64_t count, const std::function<void(int64_t)>& body) override { pool_->ParallelFor(count, body); }

 private:
  // Calls body(begin, end) for consecutive ranges of at most `chunk` covering [0, count).
  template <typename Body>
  void ForChunks(int64_t count, int64_t chunk, const Body& body);
  // Selective Attention: F of every sequence's rows [count, positions in whole pages], from scratch_.
  std::vector<TensorView> SelectRows(const AttentionArgs& args);

  static bool CastsByRows(const OutputCast& cast);
  void CastRows(const OutputCast& cast, const TensorView& output, int64_t begin, int64_t end) const;
  void PackFp8(const PackArgs& args);
  void AdamWFp8(const AdamWArgs& args);

  ThreadPool* pool_;
  const cpu::RowKernels* kernels_;
  const cpu::GemmKernels* gemm_;
  Arena scratch_;
};

std::unique_ptr<Ops> NewCpuOps(ThreadPool* pool);

}  // namespace quern
