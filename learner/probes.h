#pragma once

#include <functional>
#include <map>
#include <string>

#include "learner/heldout.h"
#include "learner/mixture.h"
#include "learner/trainer.h"

namespace quern {

// Small trainings by which the controller learns what it needs.
struct ProbeContext {
  Trainer* trainer = nullptr;
  OptimizerOptions optimizer;  // its max_steps is replaced
  DrawOptions draw;            // of the stage
  int64_t batch_size = 0;
  const HeldoutSet* heldout = nullptr;
  std::function<Status()> reset;                             // the untrained model's weights into the trainer
  std::function<Status(const std::string& activity)> alive;  // called every step
};

// Each probe passes over its records as often as one of the largest of mixture.probe_sizes does in mixture.probe_steps.
// Fills in state.sigma2d and state.c2 where the options do not give them: e(n) of real data alone at several n is
// fitted by sigma2d / n + e0, and c2 of a class is the held-out loss of a probe on that class alone minus that of a
// real-only probe on as many records. Metrics: probe_CLASS_N (losses), sigma2d, e0, c2_CLASS.
Status MeasureMixture(const ProbeContext& context, const MixtureOptions& options, const DataSummary& data,
                      MixtureState& state, std::map<std::string, double>& metrics);

}  // namespace quern
