#pragma once

#include <cstdint>
#include <vector>

#include "model/token_batch.h"

namespace quern {

// One token written by the agent, seen from the loss: the logits of row `row` predict `target`.
struct LossRow {
  int64_t row = 0;  // row of the batch whose logits predict the token (the row before the token's own)
  int32_t target = 0;
  int64_t next = -1;         // index among the loss rows of the agent's next token in the same episode; -1 at its end
  bool closes_turn = false;  // the last token of an utterance
  float reward = 0;          // scaled reward paid with this token (RewardScale); zero inside a turn
  float discount = 1;        // of the value that follows, apart from gamma (RewardScale::kExponential)
  bool has_target = true;    // false: the episode was cut off here and nothing is known of what would have followed
  float weight = 1;          // weight of this token's loss
  uint8_t data_class = 0;    // whose share of the loss it counts to, where a batch mixes classes of data
};

// Packed episodes and where their loss lies.
struct TrainingBatch {
  TokenBatch tokens;
  std::vector<LossRow> rows;
  int64_t episodes = 0;
  std::vector<float> behaviour_log_probs = {};  // by loss row: stored by who sampled the token; NaN where nobody did
  std::vector<uint64_t> versions = {};          // of the newest weights that wrote an episode; 0: scripted, untrained
};

// How an episode's rewards become targets in [0, 1] without changing what comes first and what second: the value of a
// state depends on what is still to come only, so that values of different episodes stitch together, and is paid at the
// end.
struct RewardScale {
  enum class Kind {
    kLinear,       // return R -> (R - min) / (max - min): each turn pays r / (max - min), the end -min / (max - min)
    kExponential,  // R -> exp((R - max) / temperature) for costs (r <= 0): the end pays 1, each cost is a discount.
                   // Keeps its contrast over long episodes, where kLinear's steps are 1 / (max - min) each
  };
  Kind kind = Kind::kLinear;
  double min_return = 0;   // kLinear
  double max_return = 1;   // kLinear
  double temperature = 1;  // kExponential, in units of reward
};

struct ScaledReward {
  float reward = 0;
  float discount = 1;
};

// One entry a turn. `ended`: the last turn ended the episode; otherwise nothing is paid for an end.
std::vector<ScaledReward> ScaleRewards(const std::vector<float>& turn_rewards, bool ended, const RewardScale& scale);

}  // namespace quern
