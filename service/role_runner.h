#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "service/run_directory.h"

namespace quern {

struct RoleExit {
  std::string role;
  uint32_t index = 0;
  bool clean = false;
  std::string reason;     // of an unclean exit, one line: "exit code 1: disk full", "killed by signal 9 (Killed)"
  std::string log;        // its log file; empty for threads
  bool hopeless = false;  // it would end in the same way again
};

// Starts roles and hears of their ends. One caller.
class RoleRunner {
 public:
  virtual ~RoleRunner() = default;  // kills what still runs
  virtual Status Start(const std::string& role, uint32_t index) = 0;
  // Roles that ended since the last call.
  virtual std::vector<RoleExit> Poll() = 0;
  // How many of a role run.
  virtual int Running(const std::string& role) = 0;
  // Asks all of a role to leave (SIGTERM), or ends them at once (SIGKILL; threads cannot be killed: they are asked).
  virtual void Ask(const std::string& role) = 0;
  virtual void Kill(const std::string& role) = 0;
};

// Child processes of this binary, `quern ROLE --job RUN --index I`, each in its own process group so that a terminal's
// Ctrl-C reaches the supervisor alone, logging to RUN/logs/ROLE-I.ATTEMPT.log, asked to leave when the supervisor dies.
// To be used from one thread that lives as long as the children.
std::unique_ptr<RoleRunner> NewProcessRunner(const Run& run);

// Threads of this process, for a debugger.
std::unique_ptr<RoleRunner> NewThreadRunner(const Run& run);

}  // namespace quern
