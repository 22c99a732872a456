#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/deadline.h"
#include "base/status.h"

namespace quern {

// How far training may run ahead of play (as Reverb's rate limiter, arXiv 2102.04736). What a step draws does not
// depend on it, only when.
struct SampleLimits {
  double samples_per_insert = 0;  // trajectories drawn for each one stored; 0: any number
  int64_t min_records = 0;        // before the first step
  double timeout_s = 300;
};

class SampleLimiter {
 public:
  // `count` asks how many records were stored by now, also such that retention has taken since: it never falls.
  SampleLimiter(SampleLimits limits, int64_t batch_size, std::function<Result<uint64_t>()> count,
                Duration poll = std::chrono::milliseconds(200))
      : limits_(limits), batch_size_(batch_size), count_(std::move(count)), poll_(poll) {}

  // Records that must have been stored before step `step` (from 0) draws.
  uint64_t Needed(int64_t step) const;
  // The same of the last of `steps`: of all of them.
  uint64_t NeededInAll(int64_t steps) const { return steps > 0 ? Needed(steps - 1) : 0; }
  // Returns when they are. `alive` hears of every look that found too few, `on_wait` once when a wait begins;
  // DeadlineExceeded after the limits' timeout.
  Status Wait(int64_t step, const std::function<Status(const std::string& activity)>& alive,
              const std::function<void(const std::string& text)>& on_wait);

 private:
  SampleLimits limits_;
  int64_t batch_size_;
  std::function<Result<uint64_t>()> count_;
  Duration poll_;
  uint64_t known_ = 0;
};

}  // namespace quern
