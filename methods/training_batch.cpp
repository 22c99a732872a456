#include "methods/training_batch.h"

#include "base/check.h"

namespace quern {

std::vector<float> NormaliseRewards(const std::vector<float>& turn_rewards, double min_return, double max_return) {
  QUERN_CHECK(max_return > min_return);
  const double range = max_return - min_return;
  std::vector<float> out;
  out.reserve(turn_rewards.size());
  for (size_t i = 0; i < turn_rewards.size(); ++i) {
    const double end = i + 1 == turn_rewards.size() ? -min_return : 0.0;
    out.push_back(static_cast<float>((static_cast<double>(turn_rewards[i]) + end) / range));
  }
  return out;
}

}  // namespace quern
