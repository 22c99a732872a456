#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "learner/checkpoints.h"
#include "learner/mixture.h"
#include "learner/trainer.h"

namespace quern {

// A train stage between two steps, beside what its trainer holds.
struct StageState {
  int64_t step = 0;  // steps taken
  int64_t tokens = 0;
  double seconds = 0;
  std::map<std::string, double> metrics;  // of what came before the first step
  MixtureState mixture;
  Mixture::Progress progress;
};

// Writes it and the trainer's state (Trainer::CollectState must have been called) as the checkpoint of state.step.
Status SaveStage(StageCheckpoints& checkpoints, Ops& ops, Trainer& trainer, const StageState& state);
// From the newest whole checkpoint; also makes the trainer what it was. Nothing where there is none.
Result<std::optional<StageState>> LoadStage(StageCheckpoints& checkpoints, Ops& ops, Trainer& trainer);

}  // namespace quern
