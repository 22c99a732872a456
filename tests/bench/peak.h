#pragma once

#include "compute/cpu/cpu_features.h"
#include "compute/dtype.h"

namespace quern::bench {

// Runs multiply-adds of the kind MatMul uses on registers for about `seconds` on this thread. Returns floating point
// operations done, or 0 where there is no loop for the instruction set.
double RegisterOnlyFlops(cpu::Isa isa, DType dtype, double seconds);

// The rate of `threads` threads that do so side by side for some milliseconds, GFLOP/s.
double PeakGflops(DType dtype, int64_t threads);

// One call of each loop does this many operations.
double PeakAvx512Bf16(int64_t steps);
double PeakAvx512(int64_t steps);

}  // namespace quern::bench
