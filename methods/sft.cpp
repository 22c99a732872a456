#include "methods/sft.h"

namespace quern {

void SftObjective::Coefficients(std::span<const LossRow> rows, std::span<const float> /*max_ratio*/, double normaliser,
                                RowCoefficients& out, MethodMetrics& /*metrics*/) const {
  out.b.clear();
  out.c.clear();
  out.a.resize(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    out.a[i] = static_cast<float>(-static_cast<double>(rows[i].weight) / normaliser);
  }
}

}  // namespace quern
