#pragma once

#include <cstdint>

namespace quern {

// What all parts of the crash test counted; printed as its last line.
struct CrashTotals {
  uint64_t store_kills = 0;
  uint64_t power_losses = 0;
  uint64_t actor_kills = 0;
  uint64_t learner_kills = 0;
  uint64_t coordinator_kills = 0;
  uint64_t job_kills = 0;  // of all processes at once
  uint64_t damaged_files = 0;
  uint64_t injected_errors = 0;
  uint64_t strangers = 0;  // connections and messages that are no peer's
  uint64_t acknowledged = 0;
  uint64_t lost = 0;
  uint64_t duplicated = 0;
  uint64_t corrupt_served = 0;
};
CrashTotals& Totals();

// `full` with QUERN_CRASH=full in the environment, else `brief`.
uint64_t CrashCount(uint64_t full, uint64_t brief);
uint64_t CrashSeed();  // QUERN_CRASH_SEED, 1 by default

}  // namespace quern
