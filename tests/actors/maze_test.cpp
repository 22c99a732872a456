#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "actors/environments/maze_map.h"
#include "tests/actors/environment_plays.h"

namespace quern {
namespace {

constexpr char kSmallMaze[] = "#####\n#...#\n#.#.#\n#G#.#\n#####\n";

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

}  // namespace
}  // namespace quern
