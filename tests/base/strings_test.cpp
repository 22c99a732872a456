#include "base/strings.h"

#include <gtest/gtest.h>

namespace quern {
namespace {

TEST(Strings, CatAndFormat) {
  EXPECT_EQ(StrCat("layer ", 3, ": ", 0.5, "x"), "layer 3: 0.5x");
  EXPECT_EQ(StrFormat("%03d %s", 7, "a"), "007 a");
  EXPECT_EQ(StrFormat("%s", std::string(5000, 'x').c_str()).size(), 5000u);
}

TEST(Strings, SplitAndJoin) {
  EXPECT_EQ(StrSplit("a,b,,c", ','), (std::vector<std::string>{"a", "b", "", "c"}));
  EXPECT_EQ(StrSplit("", ','), (std::vector<std::string>{""}));
  EXPECT_EQ(StrSplit("a,", ','), (std::vector<std::string>{"a", ""}));
  EXPECT_EQ(StrJoin({"a", "b"}, ", "), "a, b");
  EXPECT_EQ(StrJoin({}, ", "), "");
}

TEST(Strings, NearestName) {
  const std::vector<std::string> names = {"learning_rate", "weight_decay", "seed", "steps"};
  EXPECT_EQ(NearestName("learning_rte", names), "learning_rate");
  EXPECT_EQ(NearestName("weigth_decay", names), "weight_decay");
  EXPECT_EQ(NearestName("sed", names), "seed");
  EXPECT_EQ(NearestName("temperature", names), "");
  EXPECT_EQ(NearestName("x", {}), "");
}

TEST(Strings, HumanBytes) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(3.0 * 1024 * 1024), "3.0 MiB");
}

}  // namespace
}  // namespace quern
