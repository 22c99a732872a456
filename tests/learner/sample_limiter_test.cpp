#include "learner/sample_limiter.h"

#include <gtest/gtest.h>

#include <vector>

namespace quern {
namespace {

TEST(SampleLimiter, SaysHowManyRecordsAStepNeeds) {
  const auto nothing = []() -> Result<uint64_t> { return uint64_t{0}; };
  const SampleLimiter off({}, 64, nothing);
  EXPECT_EQ(off.Needed(1000), 0u);
  const SampleLimiter limiter({.samples_per_insert = 4, .min_records = 100}, 64, nothing);
  EXPECT_EQ(limiter.Needed(0), 100u);  // 16 would do for the ratio
  EXPECT_EQ(limiter.Needed(6), 112u);
  EXPECT_EQ(limiter.Needed(7), 128u);
}

TEST(SampleLimiter, WaitsLoudlyUntilTheRecordsAreThere) {
  uint64_t stored = 90;
  int looks = 0;
  SampleLimiter limiter(
      {.samples_per_insert = 1, .min_records = 100}, 10,
      [&]() -> Result<uint64_t> {
        ++looks;
        return stored;
      },
      std::chrono::milliseconds(1));
  std::vector<std::string> events;
  int alive = 0;
  const auto wait = [&](int64_t step) {
    return limiter.Wait(
        step,
        [&](const std::string&) -> Status {
          ++alive;
          stored += 5;
          return {};
        },
        [&](const std::string& text) { events.push_back(text); });
  };
  ASSERT_TRUE(wait(0).ok());
  EXPECT_EQ(stored, 100u);
  EXPECT_EQ(alive, 2);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_NE(events[0].find("waits for 100 records, 90 were stored"), std::string::npos) << events[0];
  const int before = looks;
  for (int64_t step = 1; step < 10; ++step) ASSERT_TRUE(wait(step).ok());
  EXPECT_EQ(looks, before) << "what is known to be enough is not asked for again";
  ASSERT_TRUE(wait(10).ok());  // 110
  EXPECT_EQ(stored, 110u);
  EXPECT_EQ(events.size(), 2u);
}

TEST(SampleLimiter, GivesUpAtItsDeadlineAndWhenItIsToldTo) {
  SampleLimiter limiter(
      {.min_records = 5, .timeout_s = 0}, 1, []() -> Result<uint64_t> { return uint64_t{4}; },
      std::chrono::milliseconds(1));
  const auto quiet = [](const std::string&) {};
  const Status late = limiter.Wait(
      0, [](const std::string&) { return Status(); }, quiet);
  EXPECT_EQ(late.code(), StatusCode::kDeadlineExceeded);
  EXPECT_NE(late.message().find("waits for 5 records, 4 were stored"), std::string::npos) << late.message();
  SampleLimiter patient(
      {.min_records = 5}, 1, []() -> Result<uint64_t> { return uint64_t{4}; }, std::chrono::milliseconds(1));
  const Status told = patient.Wait(
      0, [](const std::string&) { return Cancelled("stopped"); }, quiet);
  EXPECT_EQ(told.code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace quern
