#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/crash/totals.h"

namespace quern {

CrashTotals& Totals() {
  static CrashTotals totals;
  return totals;
}

uint64_t CrashCount(uint64_t full, uint64_t brief) {
  const char* mode = std::getenv("QUERN_CRASH");
  return mode != nullptr && std::string(mode) == "full" ? full : brief;
}

uint64_t CrashSeed() {
  const char* seed = std::getenv("QUERN_CRASH_SEED");
  return seed == nullptr ? 1 : std::strtoull(seed, nullptr, 10);
}

namespace {

class PrintTotals : public testing::Environment {
 public:
  void TearDown() override {
    const CrashTotals& t = Totals();
    const auto u = [](uint64_t value) { return static_cast<unsigned long long>(value); };
    std::printf(
        "crash-test: kills: %llu store, %llu actor, %llu learner, %llu coordinator, %llu whole jobs; %llu power "
        "losses; %llu damaged "
        "files; "
        "%llu injected I/O errors; %llu strangers at the ports; %llu records acknowledged: %llu lost, %llu duplicated, "
        "%llu corrupt served\n",
        u(t.store_kills), u(t.actor_kills), u(t.learner_kills), u(t.coordinator_kills), u(t.job_kills),
        u(t.power_losses), u(t.damaged_files), u(t.injected_errors), u(t.strangers), u(t.acknowledged), u(t.lost),
        u(t.duplicated), u(t.corrupt_served));
  }
};

}  // namespace
}  // namespace quern

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  testing::AddGlobalTestEnvironment(new quern::PrintTotals);
  return RUN_ALL_TESTS();
}
