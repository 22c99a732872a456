#include "compute/cpu/kernels.h"

namespace quern::cpu::QUERN_ISA {

const RowKernels kRowKernels = {
    .bias_backward_columns = BiasBackwardColumns,
    .embedding = Embedding,
    .embedding_backward_columns = EmbeddingBackwardColumns,
    .rms_norm = RmsNorm,
    .rms_norm_backward = RmsNormBackward,
    .rotary = Rotary,
    .rotary_backward = RotaryBackward,
    .kv_write = KvWrite,
    .attention = Attention,
    .select = Select,
    .live = Live,
    .attention_backward = AttentionBackward,
    .swiglu = SwiGlu,
    .swiglu_backward = SwiGluBackward,
    .log_softmax = LogSoftmax,
    .draw_in_block = DrawInBlock,
    .draw_block = DrawBlock,
    .log_softmax_backward = LogSoftmaxBackward,
    .max_ratio = MaxRatio,
    .adamw = AdamW,
    .adamw_amax = AdamWAmax,
    .adamw_fp8 = AdamWFp8,
    .row_amax = RowAmax,
    .column_amax = ColumnAmax,
    .quantize_row = QuantizeRow,
    .dequantize = Dequantize,
    .squared_norm = SquaredNorm,
    .lerp = Lerp,
    .cast = Cast,
};

}  // namespace quern::cpu::QUERN_ISA
