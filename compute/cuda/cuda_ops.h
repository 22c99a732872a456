#pragma once

#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "compute/cuda/blas.h"
#include "compute/cuda/kernels.h"

namespace quern {

// The GPU's backend: own kernels, products by cuBLASLt. Calls queue work in one stream and return; what they read of
// the host (ids, page tables) has been copied by then. `strict`: products whose rows do not depend on how many there
// are; attention, norms and softmax never do. One caller at a time.
class CudaOps : public Ops {
 public:
  // `pool`: for the host's work (ForEach); null: none. Must outlive the object.
  CudaOps(std::unique_ptr<cuda::Runtime> runtime, std::unique_ptr<cuda::Blas> blas, bool strict,
          ThreadPool* pool = nullptr);
  ~CudaOps() override;

  const char* name() const override { return "cuda"; }
  DeviceMemory* memory() override { return runtime_.get(); }
  DeviceMemory* pool() override { return &runtime_->pool(); }
  void Upload(const TensorView& host, const TensorView& x) override;
  void Download(const TensorView& x, const TensorView& host) override;
  void Copy(const TensorView& x, const TensorView& y) override { runtime_->Copy2D(x, y); }
  DeviceMemory* staging() override { return &runtime_->pinned(); }
  void Wait() override { runtime_->Wait(); }
  Result<bool> Done() override { return runtime_->Done(); }
  void* stream() override { return runtime_->stream(); }
  void* ForkStream() override { return runtime_->Fork(); }
  void JoinStream() override { runtime_->Join(); }
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
  void SwiGlu(const SwiGluArgs& args) override;
  void SwiGluBackward(const SwiGluBackwardArgs& args) override;
  void LogSoftmax(const LogSoftmaxArgs& args) override;
  bool draws() const override { return true; }
  void Draw(const DrawArgs& args) override;
  void LogSoftmaxBackward(const LogSoftmaxBackwardArgs& args) override;
  void MaxRatio(const MaxRatioArgs& args) override;
  void RowScales(const RowScalesArgs& args) override;
  void ScaleRows(const ScaleRowsArgs& args) override;
  void QuerySquares(const QuerySquaresArgs& args) override;
  void KeySquares(const KeySquaresArgs& args) override;
  void CopySlots(const CopySlotsArgs& args) override;
  void GatherRows(const GatherRowsArgs& args) override;
  void ScatterRows(const ScatterRowsArgs& args) override;
  void AdamW(const AdamWArgs& args) override;
  double SquaredNorm(const TensorView& x) override;
  void Lerp(const TensorView& x, float alpha, const TensorView& y) override;
  void Cast(const TensorView& x, const TensorView& y) override;
  void Fill(const TensorView& x, float value) override;
  void Add(const TensorView& x, const TensorView& y) override;
  void ForEach(int64_t count, const std::function<void(int64_t)>& body) override;

  void BeginStep(uint64_t key) override { recorder_.Begin(key); }
  void EndStep() override { recorder_.End(); }

  cuda::Runtime& runtime() { return *runtime_; }
  const cuda::Recorder& recorder() const { return recorder_; }

 private:
  void Multiply(const cuda::Product& product);
  // x itself, or a copy on the device until the scope of scratch_ ends.
  TensorView OnDevice(const TensorView& x);
  void PackFp8(const PackArgs& args);

  std::unique_ptr<cuda::Runtime> runtime_;
  std::unique_ptr<cuda::Blas> blas_;
  bool strict_;
  ThreadPool* pool_;
  cuda::Recorder recorder_;
  cuda::Staging staging_;
  Arena scratch_;
  cuda::Context context_;
};

}  // namespace quern
