#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "actors/environment.h"
#include "actors/environments/contains.h"
#include "actors/environments/maze_map.h"
#include "actors/environments/options.h"
#include "actors/environments/questions.h"
#include "actors/environments/sentences.h"
#include "actors/environments/text.h"
#include "actors/environments/wordle.h"
#include "base/file.h"
#include "base/strings.h"

namespace quern {
namespace {

using Factory = std::shared_ptr<const EnvironmentFactory>;

std::string SourceDir() {
  const char* dir = std::getenv("QUERN_SOURCE_DIR");
  return dir ? dir : ".";
}
std::string SharedData(const std::string& path) {
  const char* dir = std::getenv("QUERN_SHARED_DATA");
  return JoinPath(dir ? dir : SourceDir() + "/../shared/data", path);
}
Factory Make(const std::string& name, const Options& options = {}) {
  auto factory = MakeEnvironmentFactory(name, options, SourceDir() + "/examples");
  QUERN_CHECK(factory.ok(), factory.status().ToString());
  return *factory;
}
// The message of the error; "" when there is none.
std::string ErrorOf(const std::string& name, const Options& options) {
  return MakeEnvironmentFactory(name, options, SourceDir() + "/examples").status().message();
}

struct Episode {
  std::string text;  // everything said, both sides
  double total = 0;
  int steps = 0;
  bool success = false;
};
Episode Play(const EnvironmentFactory& factory, const std::string& player_name, uint64_t seed,
             const Options& options = {}) {
  auto environment = factory.NewEnvironment();
  auto player = factory.NewPlayer(player_name, options);
  QUERN_CHECK(player.ok(), player.status().ToString());
  Episode episode;
  const Observation first = environment->Reset(seed);
  episode.text = first.text;
  (*player)->Reset(seed, first);
  for (bool done = false; !done; ++episode.steps) {
    const std::string action = (*player)->Act();
    const StepOutcome outcome = environment->Step(action);
    (*player)->Observe(outcome);
    episode.text += action + outcome.text;
    episode.total += outcome.reward;
    episode.success = outcome.success;
    done = outcome.done;
  }
  EXPECT_LE(episode.steps, environment->max_turns());
  EXPECT_GE(episode.total, environment->min_return());
  EXPECT_LE(episode.total, environment->max_return());
  return episode;
}

struct Stats {
  double mean = 0;
  double error = 0;
  double success = 0;
};
Stats Measure(const EnvironmentFactory& factory, const std::string& player, int games, const Options& options = {}) {
  double sum = 0, squares = 0, won = 0;
  for (int seed = 0; seed < games; ++seed) {
    const Episode episode = Play(factory, player, seed, options);
    sum += episode.total;
    squares += episode.total * episode.total;
    won += episode.success;
  }
  const double mean = sum / games;
  return {mean, std::sqrt((squares / games - mean * mean) / games), won / games};
}
void Print(const std::string& what, const Stats& stats) {
  std::printf("  %-46s mean return %7.3f +- %.3f, solved %.3f\n", what.c_str(), stats.mean, stats.error, stats.success);
}

// Whether the text is a sequence of the pieces, by longest match.
bool Covered(const std::string& text, const std::vector<std::string>& pieces) {
  for (size_t at = 0; at < text.size();) {
    size_t best = 0;
    for (const std::string& piece : pieces) {
      if (text.compare(at, piece.size(), piece) == 0) best = std::max(best, piece.size());
    }
    if (best == 0) return false;
    at += best;
  }
  return true;
}

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

constexpr char kSmallMaze[] = "#####\n#...#\n#.#.#\n#G#.#\n#####\n";

class TempFile {
 public:
  TempFile(const std::string& name, const std::string& text) : path_(testing::TempDir() + name) {
    const Status status = WriteFileAtomic(path_, text);
    QUERN_CHECK(status.ok(), status.ToString());
  }
  ~TempFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(Maze, TextsMovesWallsAndRewards) {
  const TempFile grid("quern_maze.txt", kSmallMaze);
  const Factory factory = Make("maze", {{"grid", grid.path()}, {"start", "1,2"}, {"max_steps", "7"}});
  auto environment = factory->NewEnvironment();
  const std::string first = environment->Reset(0).text;
  EXPECT_EQ(first,
            "The goal is at position 3, 1. Your current position is at position 1, 2. There are walls above you, below "
            "you.\n");
  EXPECT_EQ(environment->task_id(), "1,2");
  StepOutcome outcome = environment->Step("move up\n");  // a wall
  EXPECT_EQ(outcome.text, first);
  EXPECT_EQ(outcome.reward, -1);
  outcome = environment->Step("move left\n");
  EXPECT_EQ(outcome.reward, -1);
  EXPECT_EQ(outcome.text,
            "The goal is at position 3, 1. Your current position is at position 1, 1. There are walls to your left, "
            "above you.\n");
  outcome = environment->Step("move down\n");
  outcome = environment->Step("move down\n");
  EXPECT_EQ(outcome.text, "Success\n");
  EXPECT_EQ(outcome.reward, 0);
  EXPECT_TRUE(outcome.done && outcome.success);

  environment->Reset(0);
  outcome = environment->Step("go left\n");
  EXPECT_EQ(outcome.reward, -4);
  EXPECT_EQ(outcome.text, first);
  EXPECT_FALSE(outcome.done);
  outcome = environment->Step("move up");  // without its newline it is not an action
  EXPECT_EQ(outcome.reward, -3);           // all that was left of seven
  EXPECT_TRUE(outcome.done && !outcome.success);
  EXPECT_EQ(outcome.text, "Failure\n");

  const Factory brief = Make("maze", {{"grid", grid.path()}, {"start", "1,2"}, {"text", "short"}});
  EXPECT_EQ(brief->NewEnvironment()->Reset(0).text, "goal 3 1 at 1 2 walls up down\n");
}

TEST(Maze, EnumeratesStartsAndPlaysShortestWays) {
  const Factory factory = Make("maze", {{"grid", "maze.txt"}, {"start", "all"}});
  EXPECT_EQ(ReadFile(SourceDir() + "/examples/maze.txt").value(), std::string(MazeMap::BuiltIn()).substr(1));
  const auto map = MazeMap::FromText(MazeMap::BuiltIn(), "built-in", std::nullopt).value();
  ASSERT_EQ(factory->task_count(), map->starts().size());
  std::set<std::string> seen;
  for (uint64_t seed = 0; seed < factory->task_count(); ++seed) {
    auto environment = factory->NewEnvironment();
    environment->Reset(seed);
    seen.insert(environment->task_id());
    const Episode episode = Play(*factory, "best", seed);
    EXPECT_EQ(episode.total, 1 - map->StepsToGoal(map->starts()[seed]));
    EXPECT_TRUE(episode.success);
  }
  EXPECT_EQ(seen.size(), factory->task_count());
}

TEST(Maze, HalfRandomWalksAreNoGoodGuideAsAWhole) {
  const Factory factory = Make("maze", {{"start", "all"}});
  const auto map = MazeMap::FromText(MazeMap::BuiltIn(), "built-in", std::nullopt).value();
  const int games = 50 * static_cast<int>(factory->task_count());
  const Stats random = Measure(*factory, "random", games), half = Measure(*factory, "half_random", games),
              best = Measure(*factory, "best", games);
  Print("maze: random", random);
  Print("maze: half_random", half);
  Print("maze: half_random noise 0.3", Measure(*factory, "half_random", games, {{"noise", "0.3"}}));
  Print("maze: best noise 0.5", Measure(*factory, "best", games, {{"noise", "0.5"}}));
  Print("maze: best", best);
  EXPECT_GT(half.mean, random.mean + 1);
  EXPECT_GT(best.mean, half.mean + 10);
  // From the starts of the farther half, walks at most 1.5 times as long as the best are rare.
  int far = 0, good = 0, deepest = 0;
  for (const Cell& cell : map->starts()) deepest = std::max(deepest, map->StepsToGoal(cell));
  for (int seed = 0; seed < games; ++seed) {
    const int steps = map->StepsToGoal(map->starts()[seed % factory->task_count()]);
    if (2 * steps <= deepest) continue;
    const Episode episode = Play(*factory, "half_random", seed);
    ++far;
    good += episode.success && episode.total >= 1 - 1.5 * steps;
  }
  std::printf("  walks within 1.5 times the best, far starts: %d of %d\n", good, far);
  EXPECT_LT(good, far / 20);
}

TEST(Maze, AgreesWithThePublishedTable) {
  const std::string path = SharedData("environments/maze/mazes.json");
  if (!PathExists(path)) GTEST_SKIP() << "no " << path;
  const Options options = {{"grid", path}, {"maze", "double_t_maze"}, {"goal", "8,6"}, {"start", "all"}};
  const Factory factory = Make("maze", options);
  const auto table = nlohmann::json::parse(ReadFile(path).value())["double_t_maze"]["optimal"];
  EXPECT_EQ(factory->task_count(), table.size());
  double total = 0;
  for (uint64_t seed = 0; seed < factory->task_count(); ++seed) {
    auto environment = factory->NewEnvironment();
    auto player = factory->NewPlayer("best", {}).value();
    player->Reset(seed, environment->Reset(seed));
    EXPECT_EQ(player->Act(), table[environment->task_id()].get<std::string>()) << environment->task_id();
    total += Play(*factory, "best", seed).total;
  }
  std::printf("  double_t_maze: optimal mean return over %zu starts %.3f\n", table.size(),
              total / static_cast<double>(table.size()));
  Print("double_t_maze: half_random", Measure(*factory, "half_random", 2000));
  Options unknown = options;
  unknown["maze"] = "double_tmaze";
  EXPECT_NE(ErrorOf("maze", unknown).find("did you mean \"double_t_maze\"?"), std::string::npos);
}

TEST(Maze, RefusesBadGrids) {
  const auto error = [](const std::string& text) {
    return MazeMap::FromText(text, "grid", std::nullopt).status().message();
  };
  EXPECT_NE(error("###\n#x#\n").find("grid:2: 'x'"), std::string::npos);
  EXPECT_NE(error("####\n#G.#\n###\n").find("row 2 has 3 cells"), std::string::npos);
  EXPECT_NE(error("###\n#.#\n###\n").find("no goal"), std::string::npos);
  EXPECT_NE(error("###\n#G#\n###\n").find("no other cell"), std::string::npos);
  EXPECT_NE(error("####\n#GG#\n####\n").find("second goal"), std::string::npos);
  EXPECT_NE(ErrorOf("maze", {{"goal", "0,0"}}).find("not a free cell"), std::string::npos);
  EXPECT_NE(ErrorOf("maze", {{"start", "0,0"}}).find("start"), std::string::npos);
  EXPECT_FALSE(MazeMap::FromJson("{\"a\": {\"grid\": [[0, 2]]}}", "g.json", "a", Cell{0, 0}).ok());
  EXPECT_FALSE(MazeMap::FromJson("[1", "g.json", "a", Cell{0, 0}).ok());
}

TEST(Questions, PrefixRewardCountsUnits) {
  EXPECT_DOUBLE_EQ(PrefixReward("7,2,6,1", "7,2,6,1", true), 1);
  EXPECT_DOUBLE_EQ(PrefixReward("7,2,6,1", "7,2,6,1", false), 7 / 8.0);  // cut off before the end token
  EXPECT_DOUBLE_EQ(PrefixReward("7,2,6,1,", "7,2,6,1", true), 7 / 8.0);  // went on
  EXPECT_DOUBLE_EQ(PrefixReward("7,2", "7,2,6,1", true), 4 / 8.0);  // stopped early: its end token earns as verl's does
  EXPECT_DOUBLE_EQ(PrefixReward("7,3,6,1", "7,2,6,1", true), 2 / 8.0);  // nothing counts after the first mismatch
  EXPECT_DOUBLE_EQ(PrefixReward("8,2,6,1", "7,2,6,1", true), 0);
  EXPECT_DOUBLE_EQ(PrefixReward("", "7,2,6,1", true), 0);
  EXPECT_DOUBLE_EQ(PrefixReward("", "", true), 1);
  EXPECT_DOUBLE_EQ(PrefixReward("1", "", true), 0);
}

TEST(Questions, DigitsFollowTheRule) {
  const Factory all = Make("digits", {{"tasks", "all"}});
  EXPECT_EQ(all->task_count(), 900u);
  const Factory exact = Make("digits", {{"tasks", "all"}, {"match", "exact"}});
  for (uint64_t seed = 0; seed < 900; ++seed) {
    EXPECT_EQ(Play(*all, "best", seed).total, 1);
    EXPECT_EQ(Play(*exact, "best", seed).total, 1);  // nothing at all is an answer too
  }
  const Stats random = Measure(*all, "random", 900), noisy = Measure(*all, "best", 900, {{"noise", "0.5"}});
  Print("digits: random", random);
  Print("digits: best noise 0.5", noisy);
  EXPECT_LT(random.mean + 0.1, noisy.mean);

  std::set<std::string> train, test;
  for (auto [split, tasks] : {std::pair{"train", &train}, std::pair{"test", &test}}) {
    const Factory factory = Make("digits", {{"tasks", "all"}, {"split", split}});
    auto environment = factory->NewEnvironment();
    for (uint64_t seed = 0; seed < factory->task_count(); ++seed) {
      environment->Reset(seed);
      tasks->insert(environment->task_id());
    }
  }
  EXPECT_EQ(train.size() + test.size(), 900u);
  EXPECT_NEAR(static_cast<double>(test.size()), 180, 40);
  for (const std::string& task : test) EXPECT_EQ(train.count(task), 0u) << task;

  auto environment = all->NewEnvironment();
  uint64_t seed = 0;
  while (environment->Reset(seed).text != "8,3:9,4\n") ++seed;
  EXPECT_NEAR(environment->Step("7,2,6,1").reward, 1, 1e-12);
  environment->Reset(seed);
  const StepOutcome outcome = environment->Step("7,2,6,9");
  EXPECT_NEAR(outcome.reward, 6 / 8.0, 1e-12);
  EXPECT_TRUE(outcome.done && !outcome.success);
}

TEST(Questions, AnswersTheDigitFixture) {
  const std::string path = SharedData("digit-completion/data/train.jsonl");
  if (!PathExists(path)) GTEST_SKIP() << "no " << path;
  // The generator's own answers, asked for by the fixture's prompts.
  const Factory own = Make("digits", {{"tasks", "all"}});
  const Factory fixture =
      Make("dataset", {{"file", path}, {"tasks", "all"}, {"grader", "prefix"}, {"max_tokens", "32"}, {"suffix", "\n"}});
  EXPECT_EQ(fixture->task_count(), 736u);  // of 800 rows: 64 stand there twice
  for (uint64_t seed = 0; seed < fixture->task_count(); ++seed) {
    auto environment = fixture->NewEnvironment();
    auto solver = own->NewPlayer("best", {}).value();
    solver->Reset(seed, environment->Reset(seed));
    EXPECT_EQ(environment->Step(solver->Act()).reward, 1) << environment->task_id();
  }
}

TEST(Questions, DatasetMatchesAndReadsRows) {
  const TempFile file(
      "quern_questions.jsonl",
      "{\"question\": \"2+2?\", \"answer\": \"It is 2+2.\\n#### 4\"}\n\n{\"prompt\": \"big?\", \"answer\": 1200}\n");
  const auto reward = [&](Options options, uint64_t seed, const std::string& text) {
    options["file"] = file.path();
    options["format"] = "plain";
    options["tasks"] = "all";
    auto environment = Make("dataset", options)->NewEnvironment();
    environment->Reset(seed);
    return environment->Step(text).reward;
  };
  EXPECT_EQ(reward({}, 0, " 4\n"), 1);
  EXPECT_EQ(reward({}, 0, "four"), 0);
  EXPECT_EQ(reward({{"after", "####"}}, 0, "so 2+2\n#### 4"), 1);
  EXPECT_EQ(reward({{"after", "####"}}, 0, "4"), 0);
  EXPECT_EQ(reward({{"grader", "number"}}, 0, "2+2 makes 4."), 1);
  EXPECT_EQ(reward({{"grader", "number"}}, 0, "4, I think, not 5"), 0);
  EXPECT_EQ(reward({{"grader", "number"}}, 0, "no idea"), 0);
  EXPECT_EQ(reward({{"grader", "number"}}, 1, "$1,200.00"), 1);
  EXPECT_EQ(reward({{"grader", "prefix"}, {"end", "\n"}}, 1, "1200\n"), 1);
  EXPECT_EQ(reward({{"grader", "prefix"}, {"end", "\n"}}, 1, "12x"), 2 / 5.0);
  const Factory factory =
      Make("dataset", {{"file", file.path()}, {"format", "plain"}, {"suffix", " A: "}, {"after", "####"}});
  EXPECT_TRUE(factory->NewEnvironment()->Reset(1).text.ends_with("? A: "));
  EXPECT_EQ(
      Play(*Make("dataset", {{"file", file.path()}, {"format", "plain"}, {"grader", "number"}}), "reference", 0).total,
      1);
}

TEST(Questions, DatasetPartsShareNoQuestion) {
  std::string sums;
  for (int i = 0; i < 300; ++i) sums += StrCat(i % 250, "+1=", i % 250 + 1, "\n");  // 50 stand there twice
  const TempFile file("quern_sums.txt", sums);
  const auto ids = [&](Options options) {
    options["file"] = file.path();
    const Factory factory = Make("dataset", options);
    std::vector<std::string> out;
    for (size_t i = 0; i < factory->questions()->size(); ++i) out.push_back(factory->questions()->At(i).id);
    EXPECT_EQ(out.size(), factory->task_count());
    return out;
  };
  const std::vector<std::string> all = ids({});
  ASSERT_EQ(all.size(), 250u);
  EXPECT_EQ(all[7], "7+1");
  const auto begin = ids({{"count", "200"}}), end = ids({{"first", "-50"}});
  EXPECT_EQ(begin, std::vector<std::string>(all.begin(), all.begin() + 200));
  EXPECT_EQ(end, std::vector<std::string>(all.begin() + 200, all.end()));
  EXPECT_EQ(ids({{"first", "10"}, {"count", "3"}}), (std::vector<std::string>{"10+1", "11+1", "12+1"}));
  EXPECT_EQ(ids({{"first", "-9999"}}), all);
  EXPECT_NE(ErrorOf("dataset", {{"file", file.path()}, {"first", "250"}}).find("no question of"), std::string::npos);

  const auto train = ids({{"split", "train"}}), test = ids({{"split", "test"}});
  std::set<std::string> both(train.begin(), train.end());
  both.insert(test.begin(), test.end());
  EXPECT_EQ(both.size(), 250u);
  EXPECT_EQ(train.size() + test.size(), 250u);
  EXPECT_NEAR(static_cast<double>(test.size()), 50, 25);
  EXPECT_NE(ids({{"split", "test"}, {"split_seed", "1"}}), test);
  // The part does not depend on what else is in the file.
  const TempFile few("quern_few_sums.txt", "5+1=6\n9+1=10\n11+1=12\n");
  for (const char* split : {"train", "test"}) {
    const auto made = MakeEnvironmentFactory("dataset", {{"file", few.path()}, {"split", split}}, "");
    if (!made.ok()) continue;
    const std::set<std::string> same =
        split == std::string("train") ? std::set(train.begin(), train.end()) : std::set(test.begin(), test.end());
    for (size_t i = 0; i < (*made)->questions()->size(); ++i) EXPECT_EQ(same.count((*made)->questions()->At(i).id), 1u);
  }
}

TEST(Questions, DatasetTakesTheGraderOfTheFormat) {
  const TempFile sums("quern_sums.txt", "2+2=4\n");
  const Factory factory = Make("dataset", {{"file", sums.path()}});
  const Question& question = factory->questions()->At(0);
  EXPECT_EQ(question.text, "2+2=");
  EXPECT_EQ(question.answer, "4");
  EXPECT_EQ(question.grader, "number");
  auto environment = factory->NewEnvironment();
  EXPECT_EQ(environment->Reset(0).text, "2+2=");
  EXPECT_EQ(environment->task_id(), "2+2");
  EXPECT_EQ(environment->Step("that is 4").reward, 1);
  const Factory boxed = Make("dataset", {{"file", sums.path()}, {"grader", "boxed:number"}});
  environment = boxed->NewEnvironment();
  environment->Reset(0);
  EXPECT_EQ(environment->Step("that is 4").reward, 0);
  environment->Reset(0);
  EXPECT_EQ(environment->Step("3, no: \\boxed{4}").reward, 1);
  EXPECT_EQ(boxed->questions()->At(0).grader, "boxed:number");
  EXPECT_EQ(Make("wordle", {})->questions(), nullptr);
  EXPECT_NE(ErrorOf("dataset", {{"file", sums.path()}, {"grader", "nunber"}}).find("did you mean \"number\"?"),
            std::string::npos);
  EXPECT_NE(ErrorOf("dataset", {{"file", sums.path()}, {"format", "sum"}}).find("did you mean \"sums\"?"),
            std::string::npos);
  const TempFile bad("quern_bad_sums.txt", "2+2=4\n\n2+3=\n");
  const std::string error = ErrorOf("dataset", {{"file", bad.path()}});
  EXPECT_NE(error.find(bad.path() + ":3: not a sum"), std::string::npos) << error;
}

// Every format as it is published: the reference solution earns 1.
TEST(Questions, ReadsThePublishedFiles) {
  const struct {
    const char* file;
    size_t questions;
    const char* grader;
  } sets[] = {{"gsm8k_train.jsonl", 7473, "number"},      {"SVAMP.json", 1000, "number"},
              {"aqua_dev.json", 254, "choice"},           {"strategyqa_train.json", 2061, "yes_no"},
              {"ARC-Challenge-Dev.jsonl", 294, "choice"}, {"train_3digit_10000.txt", 9891, "number"},
              {"train_1digit_100.txt", 100, "number"},    {"game24.csv", 1362, "expression"}};
  for (const auto& set : sets) {
    const std::string path = SharedData(std::string("datasets/") + set.file);
    if (!PathExists(path)) GTEST_SKIP() << "no " << path;
    const Factory factory = Make("dataset", {{"file", path}, {"tasks", "all"}});
    EXPECT_EQ(factory->task_count(), set.questions) << set.file;
    EXPECT_EQ(factory->questions()->At(0).grader, set.grader);
    for (uint64_t seed = 0; seed < factory->task_count(); ++seed)
      EXPECT_EQ(Play(*factory, "reference", seed).total, 1) << set.file << " " << seed;
  }
}

TEST(Contains, FindsWholeWords) {
  EXPECT_TRUE(ContainsWord("A dog ran.", "dog", true));
  EXPECT_TRUE(ContainsWord("Dog!", "dog", true));
  EXPECT_FALSE(ContainsWord("Dog!", "dog", false));
  EXPECT_FALSE(ContainsWord("dogs hotdog dog2", "dog", true));
  EXPECT_TRUE(ContainsWord("hotdog, dog", "dog", true));
  EXPECT_FALSE(ContainsWord("", "dog", true));
  const Factory factory = Make("contains", {{"word", "happy"}, {"prompt", "The happy cat"}, {"max_tokens", "30"}});
  auto environment = factory->NewEnvironment();
  EXPECT_EQ(environment->Reset(1).text, "The happy cat");
  EXPECT_EQ(environment->action_end(), "");
  EXPECT_EQ(environment->max_action_tokens(), 30);
  EXPECT_EQ(environment->Step(" slept.").reward, 0);  // the prompt's own word does not count
  environment->Reset(2);
  const StepOutcome outcome = environment->Step(" was Happy.");
  EXPECT_TRUE(outcome.done && outcome.success);
  EXPECT_EQ(outcome.reward, 1);
}

TEST(Sentences, TheWriterWritesTheLanguage) {
  const Factory factory = Make("sentences", {{"words", "5"}, {"length", "8"}});
  const Language language(5, 1.5, 0);
  double entropy = 0;
  for (int from = 0; from <= 5; ++from) {
    double sum = 0;
    for (int to = 0; to < 5; ++to) sum += language.Probability(from, to);
    EXPECT_NEAR(sum, 1, 1e-12);
  }
  // The chain's distribution after each word, and with it what a sentence's mean log-probability should be.
  std::vector<double> state(6, 0.0);
  state[5] = 1;
  for (int i = 0; i < 8; ++i) {
    std::vector<double> next(6, 0.0);
    for (int from = 0; from <= 5; ++from) {
      for (int to = 0; to < 5; ++to) {
        const double p = language.Probability(from, to);
        const double mass = state[static_cast<size_t>(from)] * p;
        next[static_cast<size_t>(to)] += mass;
        entropy -= mass * std::log(p) / 8;
      }
    }
    state = next;
  }
  const Stats written = Measure(*factory, "writer", 4000);
  EXPECT_NEAR(written.mean, -entropy, 5 * written.error);
  EXPECT_EQ(written.success, 1);
  EXPECT_EQ(Play(*factory, "writer", 3).text, Play(*factory, "writer", 3).text);
  EXPECT_NE(Play(*factory, "writer", 3).text, Play(*factory, "writer", 4).text);
  EXPECT_EQ(Play(*factory, "writer", 3).text.size(), 10u) << "the start, eight words, a newline";
  auto environment = factory->NewEnvironment();
  environment->Reset(0);
  EXPECT_EQ(environment->Step("zz\n").reward, -10) << "no words of the language";
  EXPECT_NE(ErrorOf("sentences", {{"lenght", "3"}}), "");
}

TEST(Text, PiecesComeFromTheirPartOfTheText) {
  const std::string path = testing::TempDir() + "/pieces.txt";
  std::string text;
  for (int i = 0; i < 300; ++i) text += StrCat(i, i % 2 == 0 ? "\u00e4" : "\n");
  ASSERT_TRUE(WriteFileAtomic(path, text).ok());
  const Factory factory = Make("text", {{"file", path}, {"length", "20"}, {"heldout", "0.25"}});
  const size_t cut = text.find("232");  // three quarters of the characters
  std::set<std::string> different;
  for (const char* part : {"train", "heldout"}) {
    const auto player = factory->NewPlayer("writer", {{"part", part}});
    ASSERT_TRUE(player.ok());
    for (uint64_t seed = 0; seed < 30; ++seed) {
      auto environment = factory->NewEnvironment();
      const Observation first = environment->Reset(seed);
      (*player)->Reset(seed, first);
      const std::string piece = (*player)->Act();
      EXPECT_TRUE(Covered(first.text + piece, factory->vocabulary())) << piece;
      EXPECT_EQ(std::count_if(piece.begin(), piece.end(), [](char c) { return (c & 0xc0) != 0x80; }), 20);
      const size_t at = text.find(piece);
      ASSERT_NE(at, std::string::npos);
      EXPECT_EQ(at >= cut, std::string(part) == "heldout") << at;
      different.insert(piece);
      EXPECT_TRUE(environment->Step(piece).done);
    }
  }
  EXPECT_GT(different.size(), 40u);
  EXPECT_NE(ErrorOf("text", {{"file", path}, {"length", "900"}}).find("too few"), std::string::npos);
}

TEST(Text, AssignmentsAnswerWithTheLastValue) {
  const std::string text = Assignments(4000, 3);
  std::map<char, char> values;
  int asked = 0;
  for (size_t i = 0; i + 3 < text.size(); i += 4) {
    ASSERT_EQ(text[i + 3], '\n');
    if (text[i + 1] == '?') {
      EXPECT_EQ(values.at(text[i]), text[i + 2]);
      ++asked;
    } else {
      values[text[i]] = text[i + 2];
    }
  }
  EXPECT_NEAR(asked, 490, 100);
}

}  // namespace
}  // namespace quern
