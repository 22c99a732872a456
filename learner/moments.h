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

// AdamW's moments of the parameters [first, last) of a layout, in its order. Not thread-safe.
class Moments {
 public:
  // acc: dtype of moments that are not FP8.
  Moments(Ops& ops, const ParameterLayout& layout, DType acc, const OptimizerMemory& memory, size_t first, size_t last);
  Moments(Ops& ops, const ParameterLayout& layout, DType acc, const OptimizerMemory& memory)  // of all
      : Moments(ops, layout, acc, memory, 0, layout.parameters().size()) {}

  void Clear();
  // One step of all weights. `common` has the rates, the gradients' scale, the step and a seed that the step's random
  // rounding is made from; weight decay for matrices only.
  void Step(const AdamWArgs& common, const Parameters& parameters, const Parameters& gradients);
  // A run of neighbours in one of the arrays that the moments of a whole layout are.
  struct Run {
    std::string array;
    int64_t begin = 0;
    TensorView values;  // one row, the bytes as they are
  };
  // What there is of them here: every array as one run where all parameters are here, else the same runs for every
  // [first, last).
  std::vector<Run> State();
  // The arrays' names, dtypes and sizes, whatever is here.
  struct Array {
    std::string name;
    DType dtype = DType::kF32;
    int64_t size = 0;
  };
  std::vector<Array> Arrays() const;
  int64_t bytes() const { return first_.bytes() + second_.bytes() + scales_.bytes() + vectors_.bytes(); }

 private:
  // Weights of one call of the optimizer: a run of neighbours, or one matrix with FP8 moments.
  struct Part {
    int64_t begin = 0, count = 0;  // elements of the layout
    bool decay = false;
    int64_t vectors = -1;  // FP8, not a matrix: first element of the layout's vectors
    int64_t scales = 0;    // FP8, a matrix: its first scale of the layout's
    int64_t blocks = 0;
  };

  struct Extent {
    int64_t elements = 0, scales = 0, vectors = 0;
  };
  // Of the first `count` parameters.
  static Extent ExtentOf(const ParameterLayout& layout, const OptimizerMemory& memory, size_t count);

  Ops& ops_;
  OptimizerMemory memory_;
  Extent begin_, all_;  // before what is here; of the layout
  std::vector<Part> parts_;
  Tensor first_, second_;  // [1, elements]; FP8: the places of norms and biases are not used
  Tensor scales_;          // FP8: [2, blocks], of the first and of the second moments
  Tensor vectors_;         // FP8: [2, elements of norms and biases]
};

}  // namespace quern
