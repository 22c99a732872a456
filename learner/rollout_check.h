#pragma once

#include <map>
#include <string>
#include <vector>

#include "learner/trainer.h"
#include "proto/coordinator.pb.h"
#include "proto/record.pb.h"
#include "replay/replay.h"

namespace quern {

// Log-probabilities that actors stored against those that the learner computes with the same weights (NUM-1).
struct RolloutDifference {
  double largest = 0;  // NaN where either side has one
  double sum = 0;
  double tokens = 0;
  std::string worst;  // uid of the record with the largest

  double mean() const { return tokens > 0 ? sum / tokens : 0; }
  void Add(const RolloutDifference& other);
};

// A few records that the weights `last` wrote, by the content hash of the policy's first model: alone ("") or with
// another of `known` (Q-SFT's pair). Looked for among all records and among those without `without_tags`, so that
// evaluations do not hide the others. Left out: what was sampled under a compression, and scripted play.
Result<std::map<std::string, std::vector<v1::Trajectory>>> FindRollouts(Replay& replay, const v1::WeightVersion& last,
                                                                        const std::vector<v1::WeightVersion>& known,
                                                                        const std::vector<std::string>& without_tags,
                                                                        Deadline deadline);

// Recomputes `records`, all of one policy, whose last model's weights the trainer has. `behaviour`: the first model of
// policies of two (Q-SFT), whose record says beta and rule, `q_sft` the rest; else null. `reserved`: an id that the
// policy never takes, -1: none. Records that are longer than the trainer's positions are left out.
RolloutDifference CompareRollouts(Ops& ops, const Trainer& trainer, const Weights* behaviour, const QSftOptions& q_sft,
                                  int32_t reserved, const std::vector<v1::Trajectory>& records);

}  // namespace quern
