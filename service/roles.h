#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "service/run_directory.h"

namespace quern {

inline constexpr char kCoordinatorRole[] = "coordinator";
inline constexpr char kReplayRole[] = "replay-server";
inline constexpr char kLearnerRole[] = "learner";
inline constexpr char kActorRole[] = "actor";

// Runs one role of a run until its work is done or `stop` is set, in this thread. Everything a role knows comes from
// the run directory and the coordinator.
Status RunRole(const std::string& role, uint32_t index, const Run& run, const std::atomic<bool>& stop);

// Whether a role that left with this error may do better when it is started again: not where the disk is full, a port
// taken or a file missing.
bool WorthAnotherStart(const Status& status);

// The single roles, for RunRole.
Status RunCoordinatorRole(const Run& run, const std::atomic<bool>& stop);
Status RunReplayRole(const Run& run, const std::atomic<bool>& stop);
Status RunLearnerRole(uint32_t rank, const Run& run, const std::atomic<bool>& stop);
Status RunActorRole(uint32_t index, const Run& run, const std::atomic<bool>& stop);

}  // namespace quern
