#pragma once

#include "compute/ops.h"

namespace quern {

// What every backend asks of its arguments; failures are CHECKs that name the argument.
void CheckArgs(const BiasBackwardArgs& args);
void CheckArgs(const EmbeddingArgs& args);
void CheckArgs(const EmbeddingBackwardArgs& args);
void CheckArgs(const RmsNormArgs& args);
void CheckArgs(const RmsNormBackwardArgs& args);
void CheckArgs(const RotaryArgs& args);
void CheckArgs(const RotaryBackwardArgs& args);
void CheckArgs(const KvWriteArgs& args);
void CheckArgs(const AttentionArgs& args);
void CheckArgs(const AttentionBackwardArgs& args);
void CheckArgs(const SwiGluArgs& args);
void CheckArgs(const SwiGluBackwardArgs& args);
void CheckArgs(const LogSoftmaxArgs& args);
void CheckArgs(const DrawArgs& args);
void CheckArgs(const LogSoftmaxBackwardArgs& args);
void CheckArgs(const MaxRatioArgs& args);
void CheckArgs(const RowScalesArgs& args);
void CheckArgs(const ScaleRowsArgs& args);
void CheckArgs(const QuerySquaresArgs& args);
void CheckArgs(const KeySquaresArgs& args);
void CheckArgs(const CopySlotsArgs& args);

// Of a cast of x: every argument but x.
void CheckCast(const TensorView& x, const QuantizeArgs& args);

// fp32 or bf16.
bool IsAct(const TensorView& view);
void CheckAct(const TensorView& view, int64_t rows, int64_t cols, const char* what);
void CheckAcc(const TensorView& view, int64_t rows, int64_t cols, const char* what);
// "bf16 [3, 4]".
std::string Shape(const TensorView& view);

}  // namespace quern
