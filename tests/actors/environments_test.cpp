#include <gtest/gtest.h>

#include <set>

#include "tests/actors/environment_plays.h"

namespace quern {
namespace {

TEST(Environments, AreDeterministicBySeed) {
  const std::vector<std::tuple<std::string, Options, std::string>> cases = {
      {"wordle", {}, "consistent"}, {"maze", {}, "half_random"}, {"digits", {}, "random"}};
  for (const auto& [name, options, player] : cases) {
    std::set<std::string> different;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const Episode episode = Play(*Make(name, options), player, seed);
      EXPECT_EQ(episode.text, Play(*Make(name, options), player, seed).text);
      different.insert(episode.text);
    }
    EXPECT_GE(different.size(), 18u) << name;
  }
}

// A player that drew the hidden task with the environment's own random numbers would win at once.
TEST(Environments, PlayersDoNotShareTheTaskDraw) {
  const Factory factory = Make("wordle", {});
  int first_try = 0;
  for (uint64_t seed = 0; seed < 500; ++seed) first_try += Play(*factory, "random", seed).total == 0;
  EXPECT_LE(first_try, 10);  // 2 expected of 256 words
}

TEST(Environments, VocabularyCoversAllTexts) {
  const std::vector<std::tuple<std::string, Options, std::string>> cases = {{"wordle", {}, "random"},
                                                                            {"maze", {}, "random"},
                                                                            {"maze", {{"text", "short"}}, "random"},
                                                                            {"digits", {{"max", "12"}}, "random"}};
  for (const auto& [name, options, player] : cases) {
    const Factory factory = Make(name, options);
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const std::string text = Play(*factory, player, seed).text;
      EXPECT_TRUE(Covered(text, factory->vocabulary())) << text;
    }
  }
  EXPECT_TRUE(Covered("<i>\n", Make("wordle")->vocabulary()));
  EXPECT_FALSE(Covered("A", Make("wordle")->vocabulary()));
}

TEST(Environments, MistakesNameTheNearest) {
  EXPECT_NE(ErrorOf("wordel", {}).find("did you mean \"wordle\"?"), std::string::npos);
  EXPECT_NE(ErrorOf("wordle", {{"word", "x"}}).find("did you mean \"words\"?"), std::string::npos);
  EXPECT_NE(ErrorOf("wordle", {{"tries", "six"}}).find("\"six\" is not a whole number from 1 to 100"),
            std::string::npos);
  EXPECT_NE(ErrorOf("maze", {{"text", "long"}}).find("one of full, short"), std::string::npos);
  EXPECT_NE(ErrorOf("dataset", {}).find("file is missing"), std::string::npos);
  EXPECT_NE(ErrorOf("contains", {}).find("word is missing"), std::string::npos);
  const Factory wordle = Make("wordle");
  EXPECT_NE(wordle->NewPlayer("consistant", {}).status().message().find("did you mean \"consistent\"?"),
            std::string::npos);
  EXPECT_NE(wordle->NewPlayer("consistent", {{"nose", "0.1"}}).status().message().find("did you mean \"noise\"?"),
            std::string::npos);
  EXPECT_FALSE(wordle->NewPlayer("consistent", {{"noise", "1.5"}}).ok());
  EXPECT_FALSE(wordle->NewPlayer("consistent", {{"noise", "0.6"}, {"repeat", "0.6"}}).ok());
  EXPECT_FALSE(Make("contains", {{"word", "dog"}})->NewPlayer("best", {}).ok());
  for (const std::string& name : EnvironmentNames()) {
    if (name == "dataset" || name == "contains") continue;
    const Factory factory = Make(name);
    for (const std::string& player : factory->player_names())
      EXPECT_TRUE(factory->NewPlayer(player, {}).ok()) << player;
  }
}

}  // namespace
}  // namespace quern
