#pragma once

#include <vector>

#include "compute/ops.h"
#include "methods/objective.h"
#include "model/transformer.h"

namespace quern {

// Between the hidden states and a method: projects the loss rows chunk by chunk, so that logits never exist whole, with
// the same head and the same log-probability op that the sampler uses.
class LossHead {
 public:
  LossHead(Ops& ops, const Transformer& transformer);

  struct Result {
    double loss = 0;               // sum over rows of a * log_prob + b * mean + c * reserved
    double log_prob_sum = 0;       // of the targets
    double entropy_sum = 0;        // of the rows' distributions, in nats
    std::vector<float> log_probs;  // one a row
  };

  // Largest ratio of value to behaviour probability over the behaviour's support at every loss row (Ops::MaxRatio).
  // *_hidden: [T, D] of the two models.
  std::vector<float> MaxRatios(const Weights& behaviour, const TensorView& behaviour_hidden, const Weights& value,
                               const TensorView& value_hidden, std::span<const LossRow> rows, float epsilon,
                               float top_p, int32_t reserved, Arena& arena) const;

  // Log-probabilities and statistics only.
  Result Score(const Weights& weights, const TensorView& hidden, std::span<const LossRow> rows, Arena& arena) const;

  // Statistics, loss, and backward through the head: adds to the head's gradient and writes dhidden [T, D] (acc; zero
  // for rows without a loss).
  Result ForwardBackward(const Weights& weights, const TensorView& hidden, std::span<const LossRow> rows,
                         const RowCoefficients& coefficients, int32_t reserved, const TensorView& dhidden,
                         Parameters& gradients, Arena& arena) const;

 private:
  int64_t ChunkRows() const;
  Ops& ops_;
  const Transformer& transformer_;
};

}  // namespace quern
