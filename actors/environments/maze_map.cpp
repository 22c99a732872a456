#include "actors/environments/maze_map.h"

#include <cstdio>
#include <deque>
#include <nlohmann/json.hpp>
#include <utility>

#include "actors/environments/options.h"
#include "base/strings.h"

namespace quern {

namespace {

using Walls = std::vector<std::vector<bool>>;

std::string CellName(Cell cell) { return StrCat(cell.row, ",", cell.column); }

}  // namespace

const char* MazeMap::BuiltIn() {
  return R"(
###########
#.....#...#
#.###.#.#.#
#...#...#.#
###.###.#.#
#.......#.#
#.#####.#.#
#.#G....#.#
###########
)";
}

Result<std::shared_ptr<const MazeMap>> MazeMap::FromText(const std::string& text, const std::string& source,
                                                         std::optional<Cell> goal) {
  Walls walls;
  std::optional<Cell> marked;
  int line = 0;
  for (const std::string& raw : StrSplit(text, '\n')) {
    ++line;
    const std::string row = Trim(raw);
    if (row.empty()) continue;
    walls.emplace_back();
    for (const char letter : row) {
      if (letter == 'G') {
        if (marked) return InvalidArgument(StrCat(source, ":", line, ": a second goal 'G'"));
        marked = Cell{static_cast<int>(walls.size()) - 1, static_cast<int>(walls.back().size())};
      } else if (letter != '#' && letter != '.') {
        return InvalidArgument(StrCat(source, ":", line, ": '", letter, "' is none of '#' wall, '.' free, 'G' goal"));
      }
      walls.back().push_back(letter == '#');
    }
  }
  return Make(std::move(walls), source, goal ? goal : marked);
}

Result<std::shared_ptr<const MazeMap>> MazeMap::FromJson(const std::string& text, const std::string& source,
                                                         const std::string& name, std::optional<Cell> goal) {
  const nlohmann::json file = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!file.is_object()) return InvalidArgument(StrCat(source, ": not a JSON object of mazes by name"));
  std::vector<std::string> names;
  for (const auto& [key, value] : file.items()) names.push_back(key);
  const auto maze = name.empty() && names.size() == 1 ? file.begin() : file.find(name);
  if (maze == file.end()) return UnknownName(StrCat("maze in ", source), name, names);
  if (!maze->is_object() || !maze->contains("grid") || !(*maze)["grid"].is_array()) {
    return InvalidArgument(StrCat(source, ": ", maze.key(), " has no \"grid\" array of rows"));
  }
  Walls walls;
  for (const auto& row : (*maze)["grid"]) {
    walls.emplace_back();
    for (const auto& cell : row) {
      if (!cell.is_number_integer() || (cell != 0 && cell != 1)) {
        return InvalidArgument(StrCat(source, ": ", maze.key(), ": grid row ", walls.size() - 1, ": ", cell.dump(),
                                      " is neither 1 (wall) nor 0 (free)"));
      }
      walls.back().push_back(cell == 1);
    }
  }
  return Make(std::move(walls), StrCat(source, ": ", maze.key()), goal);
}

Result<std::shared_ptr<const MazeMap>> MazeMap::Make(Walls walls, const std::string& source, std::optional<Cell> goal) {
  auto map = std::make_shared<MazeMap>();
  map->rows_ = static_cast<int>(walls.size());
  map->columns_ = walls.empty() ? 0 : static_cast<int>(walls[0].size());
  for (size_t row = 0; row < walls.size(); ++row) {
    if (walls[row].size() != walls[0].size()) {
      return InvalidArgument(
          StrCat(source, ": grid row ", row, " has ", walls[row].size(), " cells, row 0 has ", map->columns_));
    }
    map->walls_.insert(map->walls_.end(), walls[row].begin(), walls[row].end());
  }
  if (!goal) return InvalidArgument(StrCat(source, ": no goal; set option goal: \"ROW,COLUMN\""));
  if (!map->Free(*goal)) return InvalidArgument(StrCat(source, ": the goal ", CellName(*goal), " is not a free cell"));
  map->goal_ = *goal;
  map->to_goal_ = map->Distances(*goal);
  for (Cell cell; cell.row < map->rows_; ++cell.row) {
    for (cell.column = 0; cell.column < map->columns_; ++cell.column) {
      if (map->StepsToGoal(cell) > 0) map->starts_.push_back(cell);
    }
  }
  if (map->starts_.empty())
    return InvalidArgument(StrCat(source, ": no other cell leads to the goal ", CellName(*goal)));
  return std::shared_ptr<const MazeMap>(std::move(map));
}

bool MazeMap::Free(Cell cell) const {
  return cell.row >= 0 && cell.row < rows_ && cell.column >= 0 && cell.column < columns_ && !walls_[At(cell)];
}

Cell MazeMap::Move(Cell from, const MazeMove& move) const {
  const Cell to{from.row + move.down, from.column + move.right};
  return Free(to) ? to : from;
}

std::vector<int> MazeMap::Distances(Cell target) const {
  std::vector<int> distance(walls_.size(), -1);
  std::deque<Cell> open = {target};
  distance[At(target)] = 0;
  while (!open.empty()) {
    const Cell cell = open.front();
    open.pop_front();
    for (const MazeMove& move : kMazeMoves) {
      const Cell next = Move(cell, move);
      if (distance[At(next)] >= 0) continue;
      distance[At(next)] = distance[At(cell)] + 1;
      open.push_back(next);
    }
  }
  return distance;
}

std::optional<Cell> ParseCell(const std::string& text) {
  Cell cell;
  int end = 0;
  if (std::sscanf(text.c_str(), "%d , %d %n", &cell.row, &cell.column, &end) != 2) return std::nullopt;
  if (end != static_cast<int>(text.size())) return std::nullopt;
  return cell;
}

}  // namespace quern
