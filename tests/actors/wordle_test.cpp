#include <gtest/gtest.h>

#include <map>
#include <set>

#include "actors/environments/wordle.h"
#include "tests/actors/environment_plays.h"

namespace quern {
namespace {

std::string Feedback(const std::string& guess, const std::string& hidden) {
  return MarksText(MarkGuess(guess, hidden), static_cast<int>(guess.size()));
}

TEST(WordleRules, MarksLettersWithTheirNumber) {
  EXPECT_EQ(Feedback("erase", "erase"), "<g> <g> <g> <g> <g>\n");
  EXPECT_EQ(Feedback("speed", "erase"), "<y> <b> <y> <y> <b>\n");  // both e's are there, elsewhere
  EXPECT_EQ(Feedback("speed", "abide"), "<b> <b> <y> <b> <y>\n");  // one e: the first guess of it is yellow
  EXPECT_EQ(Feedback("speed", "steal"), "<g> <b> <g> <b> <b>\n");  // the green e uses it up
  EXPECT_EQ(Feedback("eerie", "speed"), "<y> <y> <b> <b> <b>\n");
  EXPECT_EQ(Feedback("allow", "loyal"), "<y> <y> <y> <y> <b>\n");
  EXPECT_EQ(Feedback("geese", "these"), "<b> <b> <g> <g> <g>\n");  // the later green beats the earlier yellow
  for (const char* text : {"<b> <y> <b> <g> <b>\n", "<g> <g> <g> <g> <y>\n"}) {
    EXPECT_EQ(MarksText(ParseMarks(text, 5).value(), 5), text);
  }
  EXPECT_FALSE(ParseMarks("<i>\n", 5).has_value());
  EXPECT_FALSE(ParseMarks("<b> <y> <b> <g>\n", 5).has_value());
}

TEST(WordleRules, SpellingIsStrict) {
  EXPECT_EQ(SpelledWord("stare"), "s t a r e\n");
  EXPECT_EQ(ParseSpelledWord("s t a r e\n"), "stare");
  EXPECT_EQ(ParseSpelledWord("s t a r e"), "stare");
  for (const char* text : {"stare\n", "s t a r e \n", " s t a r e\n", "s  t a r e\n", "S t a r e\n", "", "\n",
                           "s t a r e\n\n", "s t a r 3\n"}) {
    EXPECT_FALSE(ParseSpelledWord(text).has_value()) << text;
  }
}

TEST(Wordle, RewardsTriesAndInvalidGuesses) {
  const Factory factory = Make("wordle", {{"tasks", "all"}});
  auto environment = factory->NewEnvironment();
  EXPECT_EQ(environment->Reset(3).text, "Wordle:\n");
  const std::string hidden = environment->task_id();
  environment->Reset(4);
  const std::string other = environment->task_id();
  EXPECT_NE(other, hidden);
  EXPECT_EQ(factory->task_count(), 256u);
  EXPECT_EQ(environment->min_return(), -6);
  EXPECT_EQ(environment->max_return(), 0);

  environment->Reset(3 + 256);  // in turn: the same task again
  EXPECT_EQ(environment->task_id(), hidden);
  StepOutcome outcome = environment->Step(SpelledWord(other));
  EXPECT_EQ(outcome.text, Feedback(other, hidden));
  EXPECT_EQ(outcome.reward, -1);
  EXPECT_FALSE(outcome.done);
  outcome = environment->Step("z z z z z\n");  // not in the list
  EXPECT_EQ(outcome.text, "<i>\n");
  EXPECT_EQ(outcome.reward, -1);
  outcome = environment->Step("what?\n");
  EXPECT_EQ(outcome.text, "<i>\n");
  outcome = environment->Step(SpelledWord(hidden));
  EXPECT_EQ(outcome.text, "<g> <g> <g> <g> <g>\n");
  EXPECT_EQ(outcome.reward, 0);
  EXPECT_TRUE(outcome.done && outcome.success);

  environment->Reset(3);
  double total = 0;
  for (int i = 0; i < 6; ++i) {
    outcome = environment->Step("no\n");
    total += outcome.reward;
    EXPECT_EQ(outcome.done, i == 5);
  }
  EXPECT_FALSE(outcome.success);
  EXPECT_EQ(total, -6);

  std::set<std::string> seen;
  for (uint64_t seed = 0; seed < factory->task_count(); ++seed) {
    environment->Reset(seed);
    seen.insert(environment->task_id());
  }
  EXPECT_EQ(seen.size(), factory->task_count());
}

TEST(Wordle, ReadsTheExampleList) {
  const Factory factory = Make("wordle", {{"words", "wordle_words.txt"}, {"limit", "100"}});
  EXPECT_EQ(factory->task_count(), 100u);
  EXPECT_NE(ErrorOf("wordle", {{"words", "absent.txt"}}).find("absent.txt"), std::string::npos);
  EXPECT_NE(WordList::Parse("stare\nSTARE\n", "w.txt", 0).status().message().find("w.txt:2"), std::string::npos);
  EXPECT_NE(WordList::Parse("stare\n\nstares\n", "w.txt", 0).status().message().find("w.txt:3"), std::string::npos);
  EXPECT_NE(WordList::Parse("stare\nstare\n", "w.txt", 0).status().message().find("twice"), std::string::npos);
  EXPECT_FALSE(WordList::Parse("# nothing\n", "w.txt", 0).ok());
  EXPECT_FALSE(WordList::Parse("stare\n", "w.txt", 2).ok());
  EXPECT_EQ(WordList::Parse("# four letters\nword\r\nlist\n", "w.txt", 0).value()->length(), 4);
}

TEST(Wordle, ConsistentPlayersKeepToWhatTheySaw) {
  const Factory factory = Make("wordle", {{"limit", "128"}});
  const auto words = WordList::Parse(WordList::BuiltIn(), "built-in", 128).value();
  for (uint64_t seed = 0; seed < 50; ++seed) {
    auto environment = factory->NewEnvironment();
    auto player = factory->NewPlayer("consistent", {}).value();
    player->Reset(seed, environment->Reset(seed));
    std::vector<std::pair<std::string, std::string>> lines;
    for (bool done = false; !done;) {
      const std::string action = player->Act();
      const std::string guess = ParseSpelledWord(action).value();
      for (const auto& [word, marks] : lines) EXPECT_EQ(Feedback(word, guess), marks);
      const StepOutcome outcome = environment->Step(action);
      player->Observe(outcome);
      lines.emplace_back(guess, outcome.text);
      done = outcome.done;
    }
  }
}

TEST(Wordle, OpenersComeFirst) {
  const Factory factory = Make("wordle", {});
  std::set<std::string> openers;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    auto player = factory->NewPlayer("consistent", {{"openers", "crane, tiger"}, {"noise", "1"}}).value();
    player->Reset(seed, {"Wordle:\n"});
    openers.insert(player->Act());
  }
  EXPECT_EQ(openers, (std::set<std::string>{"c r a n e\n", "t i g e r\n"}));
  EXPECT_NE(factory->NewPlayer("consistent", {{"openers", "crane,zzzzz"}}).status().message().find("zzzzz"),
            std::string::npos);
}

TEST(Wordle, PlayersRankBySkill) {
  for (const char* limit : {"64", "128", "256"}) {
    const Factory factory = Make("wordle", {{"limit", limit}});
    std::map<std::string, double> mean;
    const std::vector<std::pair<std::string, Options>> players = {
        {"random", {}},
        {"consistent", {{"noise", "0.6"}}},
        {"consistent", {{"noise", "0.3"}}},
        {"consistent", {{"keep", "0.5"}}},
        {"consistent", {{"noise", "0.3"}, {"repeat", "0.25"}, {"keep", "0.5"}}},
        {"consistent", {{"memory", "1"}}},
        {"no_position", {}},
        {"consistent", {}},
        {"best", {}},
        {"best", {{"noise", "0.3"}}},
    };
    for (const auto& [name, options] : players) {
      std::string label = name;
      for (const auto& [key, value] : options) label += " " + key + " " + value;
      const Stats stats = Measure(*factory, name, 2000, options);
      mean[label] = stats.mean;
      Print(StrCat(limit, " words: ", label), stats);
    }
    EXPECT_GT(mean["best"], mean["consistent"] + 0.1);
    EXPECT_GT(mean["consistent"], mean["no_position"] + 0.1);
    EXPECT_GT(mean["consistent"], mean["consistent noise 0.3"] + 0.1);
    EXPECT_GT(mean["consistent noise 0.3"], mean["consistent noise 0.6"] + 0.1);
    EXPECT_GT(mean["consistent noise 0.6"], mean["random"] + 0.1);
    EXPECT_GT(mean["consistent"], mean["consistent memory 1"] + 0.1);
    EXPECT_GT(mean["best"], mean["best noise 0.3"] + 0.1);
  }
}

TEST(Wordle, BestPlayerPlaysItsPlan) {
  for (const int limit : {64, 128, 256}) {
    const auto words = WordList::Parse(WordList::BuiltIn(), "built-in", limit).value();
    const WordlePlan plan = WordlePlan::Make(*words, 6);
    const Factory factory = Make("wordle", {{"limit", StrCat(limit)}, {"tasks", "all"}});
    const Stats played = Measure(*factory, "best", limit);
    EXPECT_NEAR(played.mean, plan.mean_return(), 1e-9);
    EXPECT_NEAR(played.success, plan.success_rate(), 1e-9);
    EXPECT_EQ(plan.success_rate(), 1);
    Print(StrCat(limit, " words: best, each word once, \"", words->word(plan.node(0).guess), "\" first"), played);
  }
  // Two tries: the second is always a candidate, and the return counts the failures.
  const auto three = WordList::Parse("able\nbale\nlone\n", "words", 0).value();
  EXPECT_NEAR(WordlePlan::Make(*three, 2).mean_return(), (0 - 1 - 1) / 3.0, 1e-9);
  EXPECT_NEAR(WordlePlan::Make(*three, 1).mean_return(), -2 / 3.0, 1e-9);
}

}  // namespace
}  // namespace quern
