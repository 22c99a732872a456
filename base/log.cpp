#include "base/log.h"

#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <ctime>

#include "base/strings.h"

namespace quern {

namespace {
std::string& Role() {
  static std::string role = "quern";
  return role;
}
std::atomic<LogLevel> minimum_level{LogLevel::kInfo};
}  // namespace

void SetLogRole(const std::string& role) { Role() = role; }
void SetLogLevel(LogLevel minimum) { minimum_level = minimum; }

void Log(LogLevel level, const std::string& message) {
  if (level < minimum_level.load(std::memory_order_relaxed)) return;
  timeval now;
  gettimeofday(&now, nullptr);
  tm parts;
  localtime_r(&now.tv_sec, &parts);
  const char letter = "DIWE"[static_cast<int>(level)];
  std::string line = StrFormat("%02d:%02d:%02d.%03d %c ", parts.tm_hour, parts.tm_min, parts.tm_sec,
                               static_cast<int>(now.tv_usec / 1000), letter);
  line += Role() + ": " + message + "\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace quern
