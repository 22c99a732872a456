#include "service/event_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "base/deadline.h"
#include "base/log.h"

namespace quern {

void AppendEvent(const Run& run, const std::string& role, const std::string& text) {
  const nlohmann::ordered_json line = {{"time", UnixSeconds()}, {"role", role}, {"text", text}};
  const std::string bytes = line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  const std::string path = run.Path("events.jsonl");
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  // One write a line: lines of several processes stay whole.
  const bool written = fd >= 0 && write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
  if (!written) LogWarning(FromErrno(errno, path).message());
  if (fd >= 0) close(fd);
}

}  // namespace quern
