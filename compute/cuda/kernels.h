#pragma once

// What CudaOps (cuda_ops.h) launches. Every function queues its kernels and returns; arguments have been checked.

#include "compute/arena.h"
#include "compute/cuda/recorder.h"
#include "compute/cuda/staging.h"
#include "compute/ops.h"

namespace quern::cuda {

struct Context {
  Runtime& runtime;
  Staging& staging;
  Arena& scratch;  // on the device; given back, in the order of the stream, when an operation has been queued
  Queue stream() const { return {runtime.stream(), runtime.recorder()}; }
};

// elementwise.cu
void Embedding(Context& context, const EmbeddingArgs& args);
void EmbeddingBackward(Context& context, const EmbeddingBackwardArgs& args);
bool SwiGlu(Context& context, const SwiGluArgs& args);  // false: but for the cast
void SwiGluBackward(Context& context, const SwiGluBackwardArgs& args);
void GatherRows(Context& context, const GatherRowsArgs& args);
void ScatterRows(Context& context, const ScatterRowsArgs& args);
void Lerp(Context& context, const TensorView& x, float alpha, const TensorView& y);
void Cast(Context& context, const TensorView& x, const TensorView& y);
void Fill(Context& context, const TensorView& x, float value);
void RowScales(Context& context, const RowScalesArgs& args);
void ScaleRows(Context& context, const ScaleRowsArgs& args);
void Transpose(Context& context, const TensorView& x, const TensorView& y);  // bytes or 16-bit elements

// reduce.cu
void BiasBackward(Context& context, const BiasBackwardArgs& args);
void ColumnAmax(Context& context, const ColumnAmaxArgs& args);
double SquaredNorm(Context& context, const TensorView& x);
// out [1, n] += the sums of partials' [rows, n] columns, in row order.
void AddPartials(Context& context, const TensorView& partials, const TensorView& out);

// norm.cu
bool RmsNorm(Context& context, const RmsNormArgs& args);  // false: but for the cast
void RmsNormBackward(Context& context, const RmsNormBackwardArgs& args);

// rotary.cu
bool Rotary(Context& context, const RotaryArgs& args);  // false: but for the pages
void RotaryBackward(Context& context, const RotaryBackwardArgs& args);

// softmax.cu
void LogSoftmax(Context& context, const LogSoftmaxArgs& args);
// logits[ids[row]] - logsumexp, given ids on the device; NaN for an id below 0.
void LogProbs(Context& context, const TensorView& logits, const TensorView& ids, const TensorView& log_prob);
void LogSoftmaxBackward(Context& context, const LogSoftmaxBackwardArgs& args);
void MaxRatio(Context& context, const MaxRatioArgs& args);

// quantize.cu
void Quantize(Context& context, const QuantizeArgs& args);
void Dequantize(Context& context, const DequantizeArgs& args);
// scale[i] = the power of two for amax[i], or its inverse.
void ScalesFor(Context& context, const TensorView& amax, const Fp8Format& format, bool inverse,
               const TensorView& scale);
// scale[i] = one / columns[i].
void DivideScale(Context& context, const TensorView& one, const TensorView& columns, const TensorView& scale);

// pruning.cu
void QuerySquares(Context& context, const QuerySquaresArgs& args);
void KeySquares(Context& context, const KeySquaresArgs& args);
void CopySlots(Context& context, const CopySlotsArgs& args);

// draw.cu: ids, given the logits.
void DrawIds(Context& context, const DrawArgs& args, const TensorView& logits);

// adamw.cu
void AdamW(Context& context, const AdamWArgs& args);

// attention.cu and its neighbours
void KvWrite(Context& context, const KvWriteArgs& args);
void Attention(Context& context, const AttentionArgs& args);
void AttentionBackward(Context& context, const AttentionBackwardArgs& args);

}  // namespace quern::cuda
