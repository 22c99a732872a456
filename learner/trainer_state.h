#pragma once

#include <span>
#include <vector>

#include "learner/checkpoints.h"
#include "learner/trainer.h"

namespace quern {

// What Trainer::State() names as checkpoints hold it: the arrays themselves where they are in the host's memory, else
// copies of them there. Both must outlive it.
class TrainerState {
 public:
  TrainerState(Ops& ops, Trainer& trainer);

  std::span<const CheckpointArray> arrays() const { return arrays_; }
  void Read();   // copies become what the trainer has
  void Write();  // the trainer gets what the copies have

 private:
  Ops& ops_;
  std::vector<std::pair<std::string, TensorView>> state_;
  std::vector<Tensor> copies_;  // none where the host computes
  std::vector<CheckpointArray> arrays_;
};

}  // namespace quern
