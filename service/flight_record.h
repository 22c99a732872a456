#pragma once

#include <cstddef>
#include <deque>
#include <string>

namespace quern {

// The last things that happened to a job, for whoever asks why it failed: RUN/flight_record.json. Thread-compatible.
class FlightRecord {
 public:
  explicit FlightRecord(size_t most = 256) : most_(most) {}
  // One line: who asked for what, what was given, what went wrong. Equal ones in a row are counted.
  void Add(const std::string& what);
  // An array of {"time": UTC, "what", "times"}, the oldest first.
  std::string ToJson() const;

 private:
  struct Entry {
    std::string time;  // of the last of equal ones
    std::string what;
    size_t times = 1;
  };
  size_t most_;
  std::deque<Entry> entries_;
};

}  // namespace quern
