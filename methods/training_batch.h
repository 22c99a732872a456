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
  float reward = 0;          // normalised reward paid when this token closes its turn (see NormaliseRewards)
  float weight = 1;          // weight of this token's loss
};

// Packed episodes and where their loss lies.
struct TrainingBatch {
  TokenBatch tokens;
  std::vector<LossRow> rows;
  int64_t episodes = 0;
};

// Rescales the rewards of one episode's turns so that its return lies in [0, 1], without changing which policy is
// optimal even when episodes differ in length: every turn is paid r / (max - min), the last one also -min / (max -
// min). The value of a state then depends on what is still to come only, so values of different episodes stitch
// together.
std::vector<float> NormaliseRewards(const std::vector<float>& turn_rewards, double min_return, double max_return);

}  // namespace quern
