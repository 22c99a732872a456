#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>

#include "base/status.h"

namespace quern {

// RUN/metrics.jsonl: one JSON object a line, appended: {"time": unix seconds, "elapsed": s, "role", "stage",
// ...numbers}. Thread-compatible: the caller locks.
class MetricsLog {
 public:
  static Result<std::unique_ptr<MetricsLog>> Open(const std::string& path);
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;
  ~MetricsLog();

  // Numbers that are not finite are written as null.
  void Append(const std::string& role, const std::string& stage, const std::map<std::string, double>& values);
  // A full disk or the like: the first failed write.
  const Status& status() const { return status_; }

 private:
  MetricsLog(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
  double begin_ = 0;
  Status status_;
};

}  // namespace quern
