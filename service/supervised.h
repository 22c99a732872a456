#pragma once

#include <atomic>
#include <string>

namespace quern {

// In a role's environment: the process id of the supervisor that started it.
inline constexpr char kSupervisorVariable[] = "QUERN_SUPERVISOR";

// Open in a role that a supervisor started: a file in memory for the reason why the role leaves.
inline constexpr int kLastWordsFd = 3;

// Tells the supervisor, if there is one, why this role leaves, even when no log can be written.
void LeaveLastWords(const std::string& reason);

// Signals of a role's process: SIGTERM and SIGINT ask it to leave (the returned flag); if it has not left after 30 s it
// dies. When the supervisor dies, however it does, the role is asked to leave as well, within 5 s.
const std::atomic<bool>& InstallRoleSignals();

// Signals of `quern run`: counts Ctrl-C, SIGTERM and SIGHUP.
const std::atomic<int>& InstallSupervisorSignals();

}  // namespace quern
