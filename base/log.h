#pragma once

#include <string>

namespace quern {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// One line to stderr: "12:03:04.123 I actor-0: message". Thread-safe; one write() per line.
void Log(LogLevel level, const std::string& message);
inline void LogInfo(const std::string& message) { Log(LogLevel::kInfo, message); }
inline void LogWarning(const std::string& message) { Log(LogLevel::kWarning, message); }
inline void LogError(const std::string& message) { Log(LogLevel::kError, message); }

// The role printed on each line ("learner", "actor-0"); set once, before threads start.
void SetLogRole(const std::string& role);
void SetLogLevel(LogLevel minimum);

}  // namespace quern
