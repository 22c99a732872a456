#pragma once

#include <atomic>
#include <string>

#include "base/status.h"
#include "service/run_directory.h"

namespace quern {

struct SupervisorOptions {
  bool in_process = false;
  bool terminal = false;                         // draw a live table
  const std::atomic<int>* interrupts = nullptr;  // 1: stop in order; 2: at once
};

struct JobOutcome {
  std::string state;        // succeeded | failed | cancelled
  std::string error;        // one line, of failed
  std::string result_json;  // empty unless the job came to its end
};

// Starts every role of a run, restarts roles that die, shows progress, and stops all roles in an order that loses
// nothing: actors, learner, replay, coordinator. Returns when no role is left.
JobOutcome SuperviseRun(const Run& run, const SupervisorOptions& options);

}  // namespace quern
