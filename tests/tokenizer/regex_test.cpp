#include "model/tokenizer/regex.h"

#include <gtest/gtest.h>

namespace quern {
namespace {

std::vector<std::string> Find(const std::string& regex, const std::string& text) {
  const auto pattern = Pattern::Regex(regex, "test");
  EXPECT_TRUE(pattern.ok()) << pattern.status().ToString();
  std::vector<Match> matches;
  if (pattern.ok()) (*pattern)->FindAll(text, &matches);
  std::vector<std::string> found;
  for (const Match& match : matches) found.push_back(text.substr(match.begin, match.end - match.begin));
  return found;
}

using Texts = std::vector<std::string>;

TEST(Regex, ClassesMeanWhatTheReferenceMeans) {
  EXPECT_EQ(Find("\\s", "a\u180e b\u3000"), (Texts{" ", "\u3000"}));
  EXPECT_EQ(Find("[^\\S\\n]", "a \n\t"), (Texts{" ", "\t"}));
  EXPECT_EQ(Find("\\p{L}+", "ab1\U00031350\U00011385"), (Texts{"ab", "\U00031350\U00011385"}));
  EXPECT_EQ(Find("[\\p{N}]", "٣½x\U0001E5F1"), (Texts{"٣", "½", "\U0001E5F1"}));
  EXPECT_EQ(Find("\\P{L}", "a1"), (Texts{"1"}));
  EXPECT_EQ(Find("\\p{^L}", "a1"), (Texts{"1"}));
  EXPECT_EQ(Find("\\d+", "१२x3"), (Texts{"१२", "3"}));
  EXPECT_EQ(Find("\\w+", "a_b é-c"), (Texts{"a_b", "é", "c"}));
  EXPECT_EQ(Find("\\h+", "xff0"), (Texts{"ff0"}));
  EXPECT_EQ(Find("[\\u4e00-\\u9fa5]+", "a漢字b"), (Texts{"漢字"}));
  EXPECT_EQ(Find("\\p{Han}+", "漢、字"), (Texts{"漢", "字"}));
  EXPECT_EQ(Find("(?i:'s|'ll)", "'S 'lL 'ſ"), (Texts{"'S", "'lL", "'ſ"}));
}

TEST(Regex, LookaheadAndEmptyMatches) {
  EXPECT_EQ(Find("\\s+(?!\\S)|\\s+", "a   b "), (Texts{"  ", " ", " "}));
  EXPECT_EQ(Find("x*", "axb"), (Texts{"", "x", ""}));
  EXPECT_EQ(Find("$", "a"), (Texts{""}));
}

TEST(Regex, LongTextsNeedNoRecursion) {
  const std::string text(1 << 20, 'a');
  EXPECT_EQ(Find("(?:a|b)+", text).size(), 1u);
  EXPECT_EQ(Find("\\s+(?!\\S)|\\s+", std::string(1 << 20, ' ') + "x").size(), 2u);
}

TEST(Regex, WhatCannotBeTranslatedIsRefused) {
  for (const char* bad :
       {"[[:alpha:]]", "[a&&b]", "[a[b]]", "[\\W]", "(", "[a", "\\p{Nonsense}", "\\p{", "\\p", "a\\", "\\u12"}) {
    const auto pattern = Pattern::Regex(bad, "test");
    ASSERT_FALSE(pattern.ok()) << bad;
    EXPECT_EQ(pattern.status().message().find("test: regular expression \""), 0u) << pattern.status().ToString();
  }
}

}  // namespace
}  // namespace quern
