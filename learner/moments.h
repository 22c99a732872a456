#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "compute/ops.h"
#include "model/parameters.h"

namespace quern {

// What an optimizer keeps of every weight; one for a whole job.
struct OptimizerMemory {
  // Moments of the matrices in FP8: the first in E4M3, the second in E5M2, rounded stochastically: 2 bytes a weight.
  // Norms and biases keep fp32 moments.
  bool fp8_moments = false;
  int64_t block = 0;          // elements that share a scale of FP8 moments; 0: a whole matrix
  bool bf16_masters = false;  // master weights in bf16, rounded stochastically; else fp32
};

// AdamW's moments of every weight of a layout. Not thread-safe.
class Moments {
 public:
  // acc: dtype of moments that are not FP8.
  Moments(Ops& ops, const ParameterLayout& layout, DType acc, const OptimizerMemory& memory);

  void Clear();
  // One step of all weights. `common` has the rates, the gradients' scale, the step and a seed that the step's random
  // rounding is made from; weight decay for matrices only.
  void Step(const AdamWArgs& common, const Parameters& parameters, const Parameters& gradients);
  // Every array by name, the bytes as they are.
  std::vector<std::pair<std::string, TensorView>> State();
  int64_t bytes() const { return first_.bytes() + second_.bytes() + scales_.bytes() + vectors_.bytes(); }

 private:
  // Weights of one call of the optimizer: a run of neighbours, or one matrix with FP8 moments.
  struct Part {
    int64_t begin = 0, count = 0;  // elements of the layout
    bool decay = false;
    int64_t vectors = -1;  // FP8, not a matrix: first element in vectors_
    int64_t scales = 0;    // FP8, a matrix: its first scale
    int64_t blocks = 0;
  };

  Ops& ops_;
  OptimizerMemory memory_;
  std::vector<Part> parts_;
  Tensor first_, second_;  // [1, size]; FP8: the places of norms and biases are not used
  Tensor scales_;          // FP8: [2, blocks], of the first and of the second moments
  Tensor vectors_;         // FP8: [2, elements of norms and biases]
};

}  // namespace quern
