#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "methods/training_batch.h"

namespace quern {

// dLoss/d of each row's log p(target), mean log-probability and log p(reserved): all a method tells the kernels. The
// loss itself is the sum over rows of a * log_prob + b * mean_log_prob + c * reserved_log_prob.
struct RowCoefficients {
  std::vector<float> a, b, c;  // one a row; b and c are empty when zero everywhere
};

using MethodMetrics = std::map<std::string, double>;

// What a method optimises. Pure host code; never touches a kernel.
class Objective {
 public:
  virtual ~Objective() = default;
  // The vocabulary id that coefficient c refers to; -1: none.
  virtual int32_t reserved_token() const { return -1; }
  // Whether Coefficients wants, for every row, the maximal ratio of value to behaviour probability (Ops::MaxRatio) of
  // the state that the row's logits belong to.
  virtual bool needs_max_ratio() const { return false; }
  // Where in the stage training is, in [0, 1]; called before each step.
  virtual void SetProgress(double /*progress*/) {}
  // rows: all loss rows of the step; max_ratio: one a row or empty. normaliser: the loss is divided by it (the number
  // of loss tokens of the whole step, over micro-batches). Adds to `metrics` sums that the caller averages over rows.
  virtual void Coefficients(std::span<const LossRow> rows, std::span<const float> max_ratio, double normaliser,
                            RowCoefficients& out, MethodMetrics& metrics) const = 0;
};

}  // namespace quern
