#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace quern {

// CRC-32C (Castagnoli), as TFRecord frames carry it before masking.
uint32_t Crc32c(std::string_view bytes);

// An event file that TensorBoard reads: TFRecord frames (length, masked CRC, payload, masked CRC) of Event messages
// with scalars. Every event is flushed, so that a run can be watched. One thread.
class EventFile {
 public:
  // FOLDER/events.out.tfevents.SECONDS.HOST.PID.N with the version event; makes the folder.
  static Result<std::unique_ptr<EventFile>> Create(const std::string& folder);
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;
  ~EventFile();

  Status Write(int64_t step, const std::vector<std::pair<std::string, double>>& values);

 private:
  EventFile(std::FILE* file, std::string path) : file_(file), path_(std::move(path)) {}
  Status WriteFrame(std::string_view payload);
  std::FILE* file_;
  std::string path_;
};

}  // namespace quern
