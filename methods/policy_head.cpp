#include "methods/policy_head.h"

#include <algorithm>
#include <limits>

namespace quern {

void SingleModelHead::Combine(std::span<const std::span<const float>> model_logits, std::span<float> out) const {
  std::copy(model_logits[0].begin(), model_logits[0].end(), out.begin());
  if (reserved_ >= 0) out[static_cast<size_t>(reserved_)] = -std::numeric_limits<float>::infinity();
}

}  // namespace quern
