#include "service/event_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/deadline.h"
#include "base/file.h"
#include "base/log.h"

namespace quern {

namespace {

void AppendLine(const std::string& path, const nlohmann::ordered_json& line) {
  const std::string bytes = line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  // One write a line: lines of several processes stay whole.
  const bool written = fd >= 0 && write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
  if (!written) LogWarning(FromErrno(errno, path).message());
  if (fd >= 0) close(fd);
}

}  // namespace

void AppendEvent(const Run& run, const std::string& role, const std::string& text) {
  AppendLine(run.Path("events.jsonl"), {{"time", UnixSeconds()}, {"role", role}, {"text", text}});
}

void AppendPeakMemory(const Run& run, const std::string& role, uint32_t index) {
  // getrusage's is not it: that begins with what the parent had.
  const Result<std::string> status = ReadFile("/proc/self/status");
  const size_t at = status.ok() ? status->find("VmHWM:") : std::string::npos;
  if (at == std::string::npos) return;
  const int64_t bytes = 1024 * std::strtoll(status->c_str() + at + 6, nullptr, 10);
  AppendLine(run.Path("memory.jsonl"), {{"role", role}, {"index", index}, {"peak_resident_bytes", bytes}});
}

}  // namespace quern
