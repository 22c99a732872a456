#include "learner/sample_limiter.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "base/strings.h"

namespace quern {

uint64_t SampleLimiter::Needed(int64_t step) const {
  const auto least = static_cast<uint64_t>(std::max<int64_t>(0, limits_.min_records));
  if (limits_.samples_per_insert <= 0) return least;
  const double drawn = static_cast<double>(step + 1) * static_cast<double>(batch_size_);
  return std::max(least, static_cast<uint64_t>(std::ceil(drawn / limits_.samples_per_insert - 1e-9)));
}

Status SampleLimiter::Wait(int64_t step, const std::function<Status(const std::string&)>& alive,
                           const std::function<void(const std::string&)>& on_wait) {
  const uint64_t needed = Needed(step);
  const Clock::time_point begin = Clock::now();
  bool said = false;
  while (known_ < needed) {
    QUERN_ASSIGN_OR_RETURN(known_, count_());
    if (known_ >= needed) break;
    const std::string text =
        StrCat("step ", step + 1, " waits for ", needed, " records, ", known_, " were stored (samples_per_insert ",
               limits_.samples_per_insert, ", min_records ", limits_.min_records, ")");
    if (!said) on_wait(text);
    said = true;
    if (SecondsSince(begin) > limits_.timeout_s)
      return DeadlineExceeded(
          StrCat(text, ": none came for ", limits_.timeout_s, " s; more steps than the data allows, or nobody plays"));
    QUERN_RETURN_IF_ERROR(alive(text));
    std::this_thread::sleep_for(poll_);
  }
  return {};
}

}  // namespace quern
