#include "service/metrics_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/deadline.h"

namespace quern {

Result<std::unique_ptr<MetricsLog>> MetricsLog::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return FromErrno(errno, path);
  std::unique_ptr<MetricsLog> log(new MetricsLog(fd, path));
  log->begin_ = UnixSeconds();
  return log;
}

MetricsLog::~MetricsLog() { close(fd_); }

void MetricsLog::Append(const std::string& role, const std::string& stage,
                        const std::map<std::string, double>& values) {
  const double now = UnixSeconds();
  nlohmann::ordered_json line = {{"time", now}, {"elapsed", now - begin_}, {"role", role}, {"stage", stage}};
  for (const auto& [name, value] : values) {
    if (std::isfinite(value)) {
      line[name] = value;
    } else {
      line[name] = nullptr;
    }
  }
  const std::string text = line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  // One write a line: lines stay whole. A short write means a full disk.
  const ssize_t written = write(fd_, text.data(), text.size());
  if (written != static_cast<ssize_t>(text.size()) && status_.ok())
    status_ = FromErrno(written < 0 ? errno : ENOSPC, path_);
}

}  // namespace quern
