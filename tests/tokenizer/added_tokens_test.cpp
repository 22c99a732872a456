#include <gtest/gtest.h>

#include "tests/tokenizer/tokenizer_json.h"

namespace quern {
namespace {

Json Base() {
  Json json = EmptyTokenizer();
  json["model"]["vocab"] = Letters("abcd xyz");
  return json;
}

Json With(const Json& base, Json token, const std::map<std::string, bool>& flags) {
  for (const auto& [key, value] : flags) token[key] = value;
  Json json = base;
  json["added_tokens"].push_back(token);
  return json;
}

TEST(AddedTokens, LeftmostThenLongest) {
  Json json = Base();
  json["added_tokens"] = {AddedJson(8, "ab"), AddedJson(9, "abc"), AddedJson(10, "cd"), AddedJson(11, "bcd")};
  const auto t = MustParse(json);
  EXPECT_EQ(t->Encode("abcd", false), (Ids{9, 3}));
  EXPECT_EQ(t->Encode("abd", false), (Ids{8, 3}));
  EXPECT_EQ(t->Encode("bcd", false), (Ids{11}));
  EXPECT_EQ(t->Encode("xcdabc", false), (Ids{5, 10, 9}));
  EXPECT_EQ(t->vocab_size(), 12);
}

TEST(AddedTokens, StripTakesWhiteSpaceAlong) {
  auto t = MustParse(With(Base(), AddedJson(8, "<m>"), {{"lstrip", true}}));
  EXPECT_EQ(t->Encode("a  <m> b", false), (Ids{0, 8, 4, 1}));
  t = MustParse(With(Base(), AddedJson(8, "<m>"), {{"rstrip", true}}));
  EXPECT_EQ(t->Encode("a <m>\n b", false), (Ids{0, 4, 8, 1}));
  EXPECT_EQ(t->Encode("<m> <m>", false), (Ids{8, 8}));
}

TEST(AddedTokens, SingleWord) {
  const auto t = MustParse(With(Base(), AddedJson(8, "ab"), {{"single_word", true}}));
  EXPECT_EQ(t->Encode("ab abc xab ab", false), (Ids{8, 4, 0, 1, 2, 4, 5, 0, 1, 4, 8}));
}

TEST(AddedTokens, NormalizedTokensAreFoundInNormalizedText) {
  Json json = Base();
  json["normalizer"] = {{"type", "Lowercase"}};
  auto t = MustParse(With(json, AddedJson(8, "XY"), {{"normalized", true}}));
  EXPECT_EQ(t->Encode("xy XY xY", false), (Ids{8, 4, 8, 4, 8}));
  t = MustParse(With(json, AddedJson(8, "XY"), {{"normalized", false}}));
  EXPECT_EQ(t->Encode("xy XY", false), (Ids{5, 6, 4, 8}));
}

TEST(AddedTokens, SpecialTokensAreSkippedOnRequest) {
  const auto t = MustParse(With(Base(), AddedJson(8, "</s>"), {{"special", true}}));
  EXPECT_EQ(t->Decode(Ids{0, 8, 1}, false), "a</s>b");
  EXPECT_EQ(t->Decode(Ids{0, 8, 1}, true), "ab");
  EXPECT_TRUE(t->IsSpecial(8));
  EXPECT_FALSE(t->IsSpecial(0));
  EXPECT_FALSE(t->IsSpecial(99));
}

TEST(AddedTokens, IdsFollowTheVocabulary) {
  Json json = Base();
  json["added_tokens"] = {AddedJson(5, "x"), AddedJson(8, "new")};
  const auto t = MustParse(json);
  EXPECT_EQ(t->TokenId("x"), 5);
  EXPECT_EQ(t->TokenId("new"), 8);
  EXPECT_EQ(t->vocab_size(), 9);
}

}  // namespace
}  // namespace quern
