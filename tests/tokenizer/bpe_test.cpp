#include "model/tokenizer/bpe.h"

#include <gtest/gtest.h>

#include <map>

#include "base/random.h"
#include "tests/tokenizer/tokenizer_json.h"

namespace quern {
namespace {

Ids Encode(const Bpe& bpe, const std::string& word) {
  Ids ids;
  bpe.Encode(word, &ids);
  return ids;
}

Json Model(const std::string& letters, const std::vector<std::pair<std::string, std::string>>& merges) {
  Json model = {{"vocab", Letters(letters)}, {"merges", Json::array()}};
  for (const auto& [left, right] : merges) {
    model["merges"].push_back(left + " " + right);
    if (!model["vocab"].contains(left + right)) model["vocab"][left + right] = model["vocab"].size();
  }
  return model;
}

TEST(Bpe, LowestRankFirstThenLeftmost) {
  const auto bpe = *Bpe::FromJson(Model("abc", {{"b", "c"}, {"a", "b"}, {"ab", "c"}, {"a", "a"}}), "m");
  EXPECT_EQ(Encode(*bpe, "abc"), (Ids{0, 3}));
  EXPECT_EQ(Encode(*bpe, "ab"), (Ids{4}));
  EXPECT_EQ(Encode(*bpe, "aaa"), (Ids{6, 0}));
  EXPECT_EQ(Encode(*bpe, "abx"), (Ids{4}));  // no unknown token: dropped
  EXPECT_EQ(Encode(*bpe, ""), Ids{});
}

TEST(Bpe, WholeWordsOnlyWithIgnoreMerges) {
  Json model = Model("ab", {{"a", "b"}});
  model["vocab"]["aba"] = 3;
  EXPECT_EQ(Encode(**Bpe::FromJson(model, "m"), "aba"), (Ids{2, 0}));
  model["ignore_merges"] = true;
  EXPECT_EQ(Encode(**Bpe::FromJson(model, "m"), "aba"), (Ids{3}));
}

TEST(Bpe, UnknownCharacters) {
  Json model = {{"vocab", {{"a", 0}, {"<unk>", 1}, {"<0xC3>", 2}, {"<0xA9>", 3}}},
                {"merges", Json::array()},
                {"unk_token", "<unk>"}};
  EXPECT_EQ(Encode(**Bpe::FromJson(model, "m"), "axxéa"), (Ids{0, 1, 1, 1, 0}));
  model["fuse_unk"] = true;
  EXPECT_EQ(Encode(**Bpe::FromJson(model, "m"), "axxéa"), (Ids{0, 1, 0}));
  model["byte_fallback"] = true;
  EXPECT_EQ(Encode(**Bpe::FromJson(model, "m"), "éaê"), (Ids{2, 3, 0, 1}));
}

TEST(Bpe, MergesAsPairsAndAffixes) {
  Json model = {{"vocab", {{"a", 0}, {"b</w>", 1}, {"ab</w>", 2}, {"b", 3}}},
                {"merges", Json::array({Json::array({"a", "b</w>"})})},
                {"end_of_word_suffix", "</w>"}};
  EXPECT_EQ(Encode(**Bpe::FromJson(model, "m"), "ab"), (Ids{2}));
  model = {{"vocab", {{"a", 0}, {"##b", 1}, {"ab", 2}}},
           {"merges", Json::array({"a ##b"})},
           {"continuing_subword_prefix", "##"}};
  EXPECT_EQ(Encode(**Bpe::FromJson(model, "m"), "ab"), (Ids{2}));
}

// The definition: merge the leftmost pair of the lowest rank until there is none.
std::vector<std::string> Slowly(std::vector<std::string> parts,
                                const std::map<std::pair<std::string, std::string>, int>& ranks) {
  for (;;) {
    int best = INT32_MAX;
    size_t at = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto it = ranks.find({parts[i], parts[i + 1]});
      if (it != ranks.end() && it->second < best) {
        best = it->second;
        at = i;
      }
    }
    if (best == INT32_MAX) return parts;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(at) + 1);
  }
}

TEST(Bpe, ShortAndLongWordsFollowTheDefinition) {
  Random random(7);
  for (int round = 0; round < 40; ++round) {
    std::vector<std::string> pieces = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    std::map<std::pair<std::string, std::string>, int> ranks;
    while (merges.size() < 25) {
      const auto pair = std::pair(pieces[random.Below(pieces.size())], pieces[random.Below(pieces.size())]);
      if (pair.first.size() + pair.second.size() > 9 || !ranks.emplace(pair, static_cast<int>(merges.size())).second)
        continue;
      merges.push_back(pair);
      pieces.push_back(pair.first + pair.second);
    }
    const auto bpe = *Bpe::FromJson(Model("abc", merges), "m");
    for (const size_t length : {1, 2, 7, 30, 48, 49, 60, 400}) {
      std::vector<std::string> letters;
      std::string word;
      for (size_t i = 0; i < length; ++i) {
        letters.push_back(pieces[random.Below(3)]);
        word += letters.back();
      }
      std::vector<std::string> found;
      for (const int32_t id : Encode(*bpe, word)) found.emplace_back(bpe->vocabulary().Piece(id));
      ASSERT_EQ(found, Slowly(letters, ranks)) << word;
    }
  }
}

TEST(Bpe, MillionCharacterWord) {
  const auto bpe = *Bpe::FromJson(Model("a", {{"a", "a"}, {"aa", "aa"}, {"aaaa", "aaaa"}}), "m");
  EXPECT_EQ(Encode(*bpe, std::string(1 << 20, 'a')).size(), (1u << 20) / 8);
}

TEST(Bpe, RefusesMalformedModels) {
  const auto expect = [](const Json& model, const std::string& part) {
    const auto bpe = Bpe::FromJson(model, "m");
    ASSERT_FALSE(bpe.ok()) << part;
    EXPECT_NE(bpe.status().message().find(part), std::string::npos) << bpe.status().ToString();
  };
  const Json good = Model("ab", {{"a", "b"}});
  const auto with = [&](const char* key, const Json& value) {
    Json model = good;
    model[key] = value;
    return model;
  };
  expect(with("vocab", Json::array()), "\"vocab\" must be an object");
  expect(with("vocab", {{"a", -1}}), "is not in [0,");
  expect(with("vocab", {{"a", 1e9}}), "is not in [0,");
  expect(with("vocab", {{"a", 4000000000}}), "is not in [0,");
  expect(with("vocab", {{"a", 1}, {"b", 1}}), "belongs to both");
  expect(with("merges", nullptr), "\"merges\" must be a list");
  expect(with("merges", Json::array({"ab"})), "is not two pieces");
  expect(with("merges", Json::array({"a b c"})), "is not two pieces");
  expect(with("merges", Json::array({Json::array({"a", 1})})), "must be a string or a pair");
  expect(with("merges", Json::array({"a x"})), "piece \"x\" is not in the vocabulary");
  expect(with("merges", Json::array({"b b"})), "piece \"bb\" is not in the vocabulary");
  expect(with("unk_token", "?"), "unk_token \"?\" is not in the vocabulary");
  expect(with("dropout", 0.1), "\"dropout\" is not supported");
  expect(with("fuse_unk", 1), "\"fuse_unk\" must be true or false");
}

}  // namespace
}  // namespace quern
