#include "methods/training_batch.h"

#include <cmath>

#include "base/check.h"

namespace quern {

std::vector<ScaledReward> ScaleRewards(const std::vector<float>& turn_rewards, bool ended, const RewardScale& scale) {
  std::vector<ScaledReward> out;
  out.reserve(turn_rewards.size());
  for (size_t i = 0; i < turn_rewards.size(); ++i) {
    const bool end = ended && i + 1 == turn_rewards.size();
    const auto reward = static_cast<double>(turn_rewards[i]);
    if (scale.kind == RewardScale::Kind::kExponential) {
      const auto factor = static_cast<float>(std::exp(reward / scale.temperature));
      out.push_back({end ? factor : 0.0f, factor});
      continue;
    }
    const double range = scale.max_return - scale.min_return;
    QUERN_CHECK(range > 0);
    out.push_back({static_cast<float>((reward + (end ? -scale.min_return : 0.0)) / range), 1.0f});
  }
  return out;
}

}  // namespace quern
