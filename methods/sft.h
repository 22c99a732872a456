#pragma once

#include "methods/objective.h"

namespace quern {

// Supervised fine-tuning: cross-entropy on the agent's tokens. Filtered SFT is the same objective on the episodes with
// the highest returns; the filter is the sampler's (SampleRequest.top_fraction).
class SftObjective : public Objective {
 public:
  void Coefficients(std::span<const LossRow> rows, std::span<const float> max_ratio, double normaliser,
                    RowCoefficients& out, MethodMetrics& metrics) const override;
};

}  // namespace quern
