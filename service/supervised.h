#pragma once

#include <atomic>

namespace quern {

// In a role's environment: the process id of the supervisor that started it.
inline constexpr char kSupervisorVariable[] = "QUERN_SUPERVISOR";

// Signals of a role's process: SIGTERM and SIGINT ask it to leave (the returned flag); if it has not left after 30 s it
// dies. When the supervisor dies, however it does, the role is asked to leave as well, within 5 s.
const std::atomic<bool>& InstallRoleSignals();

// Signals of `quern run`: counts Ctrl-C, SIGTERM and SIGHUP.
const std::atomic<int>& InstallSupervisorSignals();

}  // namespace quern
