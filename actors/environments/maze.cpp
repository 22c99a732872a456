#include "actors/environments/maze.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "actors/environments/factories.h"
#include "actors/environments/options.h"
#include "base/check.h"
#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"

namespace quern {

namespace {

constexpr double kStepReward = -1;
constexpr int kIllegalCost = 4;  // LMRL-Gym: -4

class Maze : public Environment {
 public:
  explicit Maze(std::shared_ptr<const MazeRules> rules) : rules_(std::move(rules)) {}

  Observation Reset(uint64_t seed) override {
    const std::vector<Cell>& starts = rules_->map->starts();
    start_ = rules_->start ? *rules_->start : starts[PickTask(seed, starts.size(), rules_->in_turn)];
    at_ = start_;
    left_ = rules_->max_steps;
    return {rules_->Describe(at_)};
  }

  StepOutcome Step(const std::string& action) override {
    QUERN_CHECK(left_ > 0, "Step on an episode that is over or was never reset");
    const auto move =
        std::find_if(kMazeMoves.begin(), kMazeMoves.end(), [&](const MazeMove& m) { return action == m.text; });
    StepOutcome outcome;
    int spent = kIllegalCost;
    if (move != kMazeMoves.end()) {
      at_ = rules_->map->Move(at_, *move);
      if (at_ == rules_->map->goal()) {
        left_ = 0;
        return {.text = "Success\n", .reward = 0, .done = true, .success = true};
      }
      spent = 1;
    }
    spent = std::min(spent, left_);
    left_ -= spent;
    outcome.reward = kStepReward * spent;
    outcome.done = outcome.truncated = left_ == 0;
    outcome.text = outcome.done ? "Failure\n" : rules_->Describe(at_);
    return outcome;
  }

  // "move right\n" in a tokenizer of single characters.
  int max_action_tokens() const override { return 11; }
  int max_turns() const override { return rules_->max_steps; }
  double min_return() const override { return kStepReward * rules_->max_steps; }
  double max_return() const override { return 0; }
  std::string task_id() const override { return StrCat(start_.row, ",", start_.column); }

 private:
  std::shared_ptr<const MazeRules> rules_;
  Cell start_, at_;
  int left_ = 0;
};

class MazePlayer : public Player {
 public:
  enum class Kind { kRandom, kHalfRandom, kBest };
  MazePlayer(std::shared_ptr<const MazeRules> rules, Kind kind, double noise, double redraw, double goal)
      : rules_(std::move(rules)), kind_(kind), noise_(noise), redraw_(redraw), goal_(goal) {}

  void Reset(uint64_t seed, const Observation& first) override {
    random_ = Random(seed, kPlayerStream);
    See(first.text);
    if (kind_ == Kind::kHalfRandom) DrawTarget();
    if (kind_ == Kind::kBest) to_target_ = rules_->map->Distances(rules_->map->goal());
  }
  void Observe(const StepOutcome& outcome) override {
    if (!outcome.done) See(outcome.text);
  }

  std::string Act() override {
    const MazeMap& map = *rules_->map;
    if (kind_ == Kind::kHalfRandom && (to_target_[map.At(at_)] == 0 || random_.Uniform() < redraw_)) DrawTarget();
    std::vector<const MazeMove*> moves;
    const bool guess = kind_ == Kind::kRandom || random_.Uniform() < noise_;
    for (const MazeMove& move : kMazeMoves) {
      const Cell to = map.Move(at_, move);
      const bool fits =
          guess ? kind_ != Kind::kHalfRandom || !(to == at_) : to_target_[map.At(to)] == to_target_[map.At(at_)] - 1;
      if (fits) moves.push_back(&move);
    }
    QUERN_CHECK(!moves.empty(), "no move from a cell that can reach the goal");
    return moves[guess ? random_.Below(moves.size()) : 0]->text;
  }

 private:
  void See(const std::string& text) {
    const std::optional<Cell> at = rules_->ParsePosition(text);
    QUERN_CHECK(at.has_value() && rules_->map->Free(*at), "not an observation of this maze: " + text);
    at_ = *at;
  }
  // A cell other than the present one, so that there is a way to go.
  void DrawTarget() {
    const std::vector<Cell>& cells = rules_->map->starts();
    Cell target;
    do {
      const uint64_t pick = random_.Below(cells.size());
      target = random_.Uniform() < goal_ || cells.size() == 1 ? rules_->map->goal() : cells[pick];
    } while (target == at_);
    to_target_ = rules_->map->Distances(target);
  }

  std::shared_ptr<const MazeRules> rules_;
  Kind kind_;
  double noise_;
  double redraw_;
  double goal_;
  Random random_{0};
  Cell at_;
  std::vector<int> to_target_;
};

class MazeFactory : public EnvironmentFactory {
 public:
  explicit MazeFactory(std::shared_ptr<const MazeRules> rules) : rules_(std::move(rules)) {}

  std::unique_ptr<Environment> NewEnvironment() const override { return std::make_unique<Maze>(rules_); }
  std::vector<std::string> player_names() const override { return {"random", "half_random", "best"}; }
  size_t task_count() const override { return rules_->start ? 1 : rules_->map->starts().size(); }

  Result<std::unique_ptr<Player>> NewPlayer(const std::string& name, const Options& options) const override {
    OptionReader reader(StrCat("player ", name, " of maze"), options);
    MazePlayer::Kind kind = MazePlayer::Kind::kRandom;
    double noise = 0, redraw = 0, goal = 0;
    if (name == "half_random") {
      kind = MazePlayer::Kind::kHalfRandom;
      noise = reader.Number("noise", 0.5, 0, 1);
      redraw = reader.Number("redraw", 0.1, 0, 1);
      goal = reader.Number("goal", 0.25, 0, 1);
    } else if (name == "best") {
      kind = MazePlayer::Kind::kBest;
      noise = reader.Number("noise", 0, 0, 1);
    } else if (name != "random") {
      return UnknownName("player of maze", name, player_names());
    }
    QUERN_RETURN_IF_ERROR(reader.Finish());
    return std::unique_ptr<Player>(std::make_unique<MazePlayer>(rules_, kind, noise, redraw, goal));
  }

  std::vector<std::string> vocabulary() const override {
    std::vector<std::string> pieces = {"\n", "move", " up", " down", " left", " right", "Success", "Failure"};
    for (char digit = '0'; digit <= '9'; ++digit) {
      pieces.push_back(std::string(1, digit));
      pieces.push_back(std::string(" ") + digit);
    }
    std::vector<std::string> phrases = {"The goal is at position",
                                        ". Your current position is at position",
                                        ". There are walls",
                                        ". There is a wall",
                                        ". There are no walls near you",
                                        " above you",
                                        " below you",
                                        " to your left",
                                        " to your right",
                                        ",",
                                        "."};
    if (rules_->short_text) phrases = {"goal", " at", " walls", " none"};
    pieces.insert(pieces.end(), phrases.begin(), phrases.end());
    return pieces;
  }

 private:
  std::shared_ptr<const MazeRules> rules_;
};

}  // namespace

std::string MazeRules::Describe(Cell at) const {
  constexpr const char* kShort[] = {"up", "down", "left", "right"};
  constexpr const char* kFull[] = {"above you", "below you", "to your left", "to your right"};
  constexpr int kShortOrder[] = {0, 1, 2, 3};
  constexpr int kFullOrder[] = {3, 2, 0, 1};  // LMRL-Gym's
  std::vector<std::string> walls;
  for (const int i : short_text ? kShortOrder : kFullOrder) {
    if (map->Move(at, kMazeMoves[i]) == at) walls.push_back(short_text ? kShort[i] : kFull[i]);
  }
  const Cell goal = map->goal();
  if (short_text) {
    return StrCat("goal ", goal.row, " ", goal.column, " at ", at.row, " ", at.column, " walls ",
                  walls.empty() ? "none" : StrJoin(walls, " "), "\n");
  }
  return StrCat("The goal is at position ", goal.row, ", ", goal.column, ". Your current position is at position ",
                at.row, ", ", at.column,
                walls.empty()       ? ". There are no walls near you"
                : walls.size() == 1 ? ". There is a wall "
                                    : ". There are walls ",
                StrJoin(walls, ", "), ".\n");
}

std::optional<Cell> MazeRules::ParsePosition(const std::string& text) const {
  const std::string lead = short_text ? " at " : "current position is at position ";
  const size_t found = text.find(lead);
  if (found == std::string::npos) return std::nullopt;
  Cell cell;
  const char* format = short_text ? "%d %d" : "%d, %d";
  if (std::sscanf(text.c_str() + found + lead.size(), format, &cell.row, &cell.column) != 2) return std::nullopt;
  return cell;
}

FactoryResult MakeMazeFactory(const Options& options, const std::string& base_dir) {
  OptionReader reader("environment maze", options);
  const std::string grid = reader.Text("grid", "");
  const std::string maze = reader.Text("maze", "");
  const std::string goal_text = reader.Text("goal", "");
  const std::string start = reader.Text("start", "random");
  auto rules = std::make_shared<MazeRules>();
  rules->max_steps = reader.Integer("max_steps", 40, 1, 10000);
  rules->short_text = reader.Choice("text", {"full", "short"}) == "short";
  QUERN_RETURN_IF_ERROR(reader.Finish());

  const std::optional<Cell> goal = ParseCell(goal_text);
  if (!goal && !goal_text.empty()) {
    return InvalidArgument(StrCat("environment maze: goal: \"", goal_text, "\" is not ROW,COLUMN"));
  }
  const std::string path = grid.empty() ? "built-in grid" : ResolvePath(base_dir, grid);
  std::string text = MazeMap::BuiltIn();
  if (!grid.empty()) {
    QUERN_ASSIGN_OR_RETURN(text, ReadFile(path));
  }
  if (path.ends_with(".json")) {
    QUERN_ASSIGN_OR_RETURN(rules->map, MazeMap::FromJson(text, path, maze, goal));
  } else if (!maze.empty()) {
    return InvalidArgument(
        StrCat("environment maze: maze: ", path, " is not a .json file of named mazes; remove the option"));
  } else {
    QUERN_ASSIGN_OR_RETURN(rules->map, MazeMap::FromText(text, path, goal));
  }
  rules->in_turn = start == "all";
  if (start != "all" && start != "random") {
    rules->start = ParseCell(start);
    const std::vector<Cell>& starts = rules->map->starts();
    if (!rules->start || std::find(starts.begin(), starts.end(), *rules->start) == starts.end()) {
      return InvalidArgument(StrCat("environment maze: start: \"", start,
                                    "\" is neither random, all, nor a ROW,COLUMN from which the goal can be reached"));
    }
  }
  return FactoryResult(std::make_shared<MazeFactory>(std::move(rules)));
}

}  // namespace quern
