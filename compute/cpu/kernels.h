#pragma once

#include <cstdint>

#include "compute/cpu/cpu_features.h"
#include "compute/ops.h"

namespace quern::cpu {

// Rows [begin, end) of one sequence for one KV head and the query heads that share it.
struct AttentionTask {
  const SequenceRows* sequence = nullptr;
  int64_t kv_head = 0;
  int64_t begin = 0;
  int64_t end = 0;
  float* scratch = nullptr;  // AttentionScratch floats
  // Selective Attention: F of the sequence's rows [count, penalty_stride], from position 0; null otherwise.
  const float* penalties = nullptr;
  int64_t penalty_stride = 0;
  // Null, or the task whose keys and values are asked for meanwhile.
  const AttentionTask* next = nullptr;
};

// Selective Attention: F of all rows of one sequence at the positions of one page, which depends on nothing else.
struct SelectTask {
  const SequenceRows* sequence = nullptr;
  int64_t page = 0;
  float* penalties = nullptr;  // as above
  int64_t penalty_stride = 0;
  float* scratch = nullptr;  // SelectScratch floats
};

// With args.selective the tasks of a sequence run one after the other, KV head 0 last.
struct AttentionBackwardTask {
  const SequenceRows* sequence = nullptr;
  int64_t kv_head = 0;
  float* scratch = nullptr;  // AttentionBackwardScratch floats
  float* shared = nullptr;   // SelectiveBackwardScratch floats, kept between the tasks of a sequence
  float* dgain = nullptr;    // selective: set to the sequence's share of args.dgain by its last task
};

// Largest magnitudes of the updated moments.
struct MomentAmax {
  float m = 0, v = 0;
};

int64_t AttentionScratch(const AttentionArgs& args, int64_t last_position);
int64_t SelectScratch(const AttentionArgs& args);
int64_t SelectiveBackwardScratch(int64_t count);
// Applies args.budget to the rows of a sequence: what is evicted gets an infinite penalty here and in its selection.
void EvictRows(const AttentionArgs& args, const SequenceRows& sequence, float* penalties, int64_t stride);
int64_t AttentionBackwardScratch(const AttentionBackwardArgs& args, int64_t count);

// One block of a row's logits, and what was drawn from it.
struct BlockDraw {
  float max = 0;
  float mass = 0;     // of e^(logit - max)
  float weight = 0;   // of e^((logit - max) / temperature)
  float logit = 0;    // of what was drawn
  int32_t index = 0;  // in the block
};

inline int64_t LogSoftmaxScratch(int64_t vocabulary) { return 5 * LogitBlocks(vocabulary); }

// Everything but the matrix products, for one instruction set. Sizes and dtypes were checked by CpuOps. [begin, end)
// are rows, or columns where the name says so, or elements of flat buffers.
struct RowKernels {
  void (*bias_backward_columns)(const BiasBackwardArgs& args, int64_t begin, int64_t end);
  void (*embedding)(const EmbeddingArgs& args, int64_t begin, int64_t end);
  void (*embedding_backward_columns)(const EmbeddingBackwardArgs& args, int64_t begin, int64_t end);
  void (*rms_norm)(const RmsNormArgs& args, int64_t begin, int64_t end);
  // The rows' share of dweight is added to `dweight`, [D].
  void (*rms_norm_backward)(const RmsNormBackwardArgs& args, int64_t begin, int64_t end, float* dweight);
  void (*rotary)(const RotaryArgs& args, int64_t begin, int64_t end);
  // The rows' share of dq_norm and dk_norm is added to the first two rows of `dnorms`, [3, head_dim]; the third is
  // scratch.
  void (*rotary_backward)(const RotaryBackwardArgs& args, int64_t begin, int64_t end, float* dnorms);
  // KV heads [first_head, end_head)
  void (*kv_write)(const KvWriteArgs& args, const SequenceRows& sequence, int64_t begin, int64_t end,
                   int64_t first_head, int64_t end_head);
  void (*attention)(const AttentionArgs& args, const AttentionTask& task);
  void (*select)(const AttentionArgs& args, const SelectTask& task);
  // position + 1 - sum over [0, position] of min(penalty, tau) / tau
  float (*live)(const float* penalties, int64_t position, float tau);
  void (*attention_backward)(const AttentionBackwardArgs& args, const AttentionBackwardTask& task);
  void (*swiglu)(const SwiGluArgs& args, int64_t begin, int64_t end);
  void (*swiglu_backward)(const SwiGluBackwardArgs& args, int64_t begin, int64_t end);
  void (*log_softmax)(const LogSoftmaxArgs& args, int64_t begin, int64_t end, float* scratch);  // LogSoftmaxScratch
  // From `n` logits.
  void (*draw_in_block)(const float* logits, int64_t n, const DrawUniforms& by, BlockDraw& out);
  // Which of a row's blocks, -1 where none has mass; and the row's logsumexp. scratch: two floats a block.
  int64_t (*draw_block)(const BlockDraw* draws, int64_t blocks, const DrawUniforms& by, float* scratch, float* lse);
  void (*log_softmax_backward)(const LogSoftmaxBackwardArgs& args, int64_t begin, int64_t end);
  void (*max_ratio)(const MaxRatioArgs& args, int64_t row, float* scratch);  // scratch: V floats
  void (*adamw)(const AdamWArgs& args, int64_t begin, int64_t end);
  void (*adamw_amax)(const AdamWArgs& args, int64_t begin, int64_t end, MomentAmax* amax);
  void (*adamw_fp8)(const AdamWArgs& args, int64_t begin, int64_t end, const MomentAmax& amax);
  // Magnitudes are fp32 bits, so that NaN is the largest.
  uint32_t (*row_amax)(const TensorView& x, const TensorView& column_scale, int64_t row);
  void (*column_amax)(const ColumnAmaxArgs& args, int64_t begin, int64_t end);  // columns
  // One row with the factor before the cast; adds to counts[0], saturated, and counts[1], flushed.
  void (*quantize_row)(const QuantizeArgs& args, int64_t row, float factor, int32_t* counts);
  void (*dequantize)(const DequantizeArgs& args, int64_t begin, int64_t end);
  double (*squared_norm)(const float* x, int64_t count);
  void (*lerp)(const TensorView& x, float alpha, const TensorView& y, int64_t begin, int64_t end);
  void (*cast)(const TensorView& x, const TensorView& y, int64_t begin, int64_t end);  // fp32 and bf16
};

const RowKernels& RowKernelsFor(Isa isa);

}  // namespace quern::cpu

#ifdef QUERN_ISA
namespace quern::cpu::QUERN_ISA {

void BiasBackwardColumns(const BiasBackwardArgs& args, int64_t begin, int64_t end);
void Embedding(const EmbeddingArgs& args, int64_t begin, int64_t end);
void EmbeddingBackwardColumns(const EmbeddingBackwardArgs& args, int64_t begin, int64_t end);
void RmsNorm(const RmsNormArgs& args, int64_t begin, int64_t end);
void RmsNormBackward(const RmsNormBackwardArgs& args, int64_t begin, int64_t end, float* dweight);
void Rotary(const RotaryArgs& args, int64_t begin, int64_t end);
void RotaryBackward(const RotaryBackwardArgs& args, int64_t begin, int64_t end, float* dnorms);
void KvWrite(const KvWriteArgs& args, const SequenceRows& sequence, int64_t begin, int64_t end, int64_t first_head,
             int64_t end_head);
void Attention(const AttentionArgs& args, const AttentionTask& task);
void Select(const AttentionArgs& args, const SelectTask& task);
float Live(const float* penalties, int64_t position, float tau);
void AttentionBackward(const AttentionBackwardArgs& args, const AttentionBackwardTask& task);
void SwiGlu(const SwiGluArgs& args, int64_t begin, int64_t end);
void SwiGluBackward(const SwiGluBackwardArgs& args, int64_t begin, int64_t end);
void LogSoftmax(const LogSoftmaxArgs& args, int64_t begin, int64_t end, float* scratch);
void DrawInBlock(const float* logits, int64_t n, const DrawUniforms& by, BlockDraw& out);
int64_t DrawBlock(const BlockDraw* draws, int64_t blocks, const DrawUniforms& by, float* scratch, float* lse);
void LogSoftmaxBackward(const LogSoftmaxBackwardArgs& args, int64_t begin, int64_t end);
void MaxRatio(const MaxRatioArgs& args, int64_t row, float* scratch);
void AdamW(const AdamWArgs& args, int64_t begin, int64_t end);
void AdamWAmax(const AdamWArgs& args, int64_t begin, int64_t end, MomentAmax* amax);
void AdamWFp8(const AdamWArgs& args, int64_t begin, int64_t end, const MomentAmax& amax);
uint32_t RowAmax(const TensorView& x, const TensorView& column_scale, int64_t row);
void ColumnAmax(const ColumnAmaxArgs& args, int64_t begin, int64_t end);
void QuantizeRow(const QuantizeArgs& args, int64_t row, float factor, int32_t* counts);
void Dequantize(const DequantizeArgs& args, int64_t begin, int64_t end);
double SquaredNorm(const float* x, int64_t count);
void Lerp(const TensorView& x, float alpha, const TensorView& y, int64_t begin, int64_t end);
void Cast(const TensorView& x, const TensorView& y, int64_t begin, int64_t end);

extern const RowKernels kRowKernels;

}  // namespace quern::cpu::QUERN_ISA
#endif
