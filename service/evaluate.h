#pragma once

#include <atomic>
#include <functional>
#include <memory>

#include "actors/served_model.h"
#include "proto/coordinator.pb.h"
#include "service/run_directory.h"

namespace quern {

// The models of a policy, loaded, and how they combine. `ops` must outlive it.
Result<std::shared_ptr<const Policy>> LoadPolicy(Ops& ops, const v1::PolicySpec& spec, const Recipe& precision);

struct Evaluation {
  uint64_t episodes = 0;
  double mean_return = 0;
  double std_error = 0;  // of the mean
  double success_rate = 0;
  double mean_turns = 0;
  double mean_tokens = 0;  // an episode, the agent's own
};

// Plays the run's environment, or that of one of evaluate.sets, in this process with all cores; stores nothing. Equal
// arguments give equal numbers. `device`: empty: the job's.
Result<Evaluation> EvaluatePolicy(const Run& run, const v1::PolicySpec& policy, uint64_t episodes, uint64_t seed,
                                  const std::function<void(uint64_t done)>& progress, const std::atomic<bool>& stop,
                                  const std::string& set = {}, const std::string& device = {});

}  // namespace quern
