#pragma once

#include <vector>

#include "compute/tensor.h"
#include "model/config.h"

namespace quern {

// Inverse frequencies of the head_dim / 2 rotary pairs, after the configuration's scaling (Llama 3.1's rule for
// kLlama3).
std::vector<double> RotaryFrequencies(const ModelConfig& config);

// cos, sin [max_positions, head_dim / 2], fp32 or fp64: of position * frequency, computed in double.
void FillRotaryTables(const ModelConfig& config, const TensorView& cos, const TensorView& sin);

}  // namespace quern
