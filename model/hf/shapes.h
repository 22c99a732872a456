#pragma once

#include <vector>

#include "model/parameters.h"

namespace quern {

// The shape Hugging Face files give a weight: norms and biases, which take no weight decay, are vectors.
inline std::vector<int64_t> HfShape(const ParameterInfo& parameter) {
  if (!parameter.decay) return {parameter.cols};
  return {parameter.rows, parameter.cols};
}

}  // namespace quern
