#pragma once

#include <algorithm>
#include <chrono>

namespace quern {

using Clock = std::chrono::steady_clock;
using Duration = Clock::duration;

// A point in time after which waiting is an error. Copy freely.
class Deadline {
 public:
  static Deadline After(Duration duration) { return Deadline(Clock::now() + duration); }
  bool Expired() const { return Clock::now() >= at_; }
  std::chrono::milliseconds Left() const {
    return std::max(std::chrono::milliseconds(0),
                    std::chrono::duration_cast<std::chrono::milliseconds>(at_ - Clock::now()));
  }

 private:
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

inline double ToSeconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }
// The wall clock, for people and files.
inline double UnixSeconds() { return ToSeconds(std::chrono::system_clock::now().time_since_epoch()); }
inline double SecondsSince(Clock::time_point begin) { return ToSeconds(Clock::now() - begin); }

}  // namespace quern
