#pragma once

#include <memory>

#include "compute/ops.h"

namespace quern {

// The oracle: every operation straight from its formula, in double, one loop at a time. Views may be fp64, fp32, bf16
// or fp16 anywhere; packed matrices hold doubles, rounded first to the dtype they are made with; pages may be fp64.
// Slow.
std::unique_ptr<Ops> NewReferenceOps();

// Element access with a change of dtype, for tests too.
double GetElement(const TensorView& view, int64_t row, int64_t col);
void SetElement(const TensorView& view, int64_t row, int64_t col, double value);

}  // namespace quern
