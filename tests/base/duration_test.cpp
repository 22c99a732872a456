#include "base/duration.h"

#include <gtest/gtest.h>

namespace quern {
namespace {

TEST(Duration, UnitsAndRefusals) {
  EXPECT_EQ(ParseSeconds("90"), 90);
  EXPECT_EQ(ParseSeconds("90s"), 90);
  EXPECT_EQ(ParseSeconds("15m"), 900);
  EXPECT_EQ(ParseSeconds("2h"), 7200);
  EXPECT_EQ(ParseSeconds("7d"), 604800);
  EXPECT_EQ(ParseSeconds("0s"), 0);
  for (const char* bad : {"", "s", "-1s", "1.5h", "2 h", "3w", "1hh", "100001d", "99999999999999999999s", "+5m"})
    EXPECT_FALSE(ParseSeconds(bad)) << bad;
}

}  // namespace
}  // namespace quern
