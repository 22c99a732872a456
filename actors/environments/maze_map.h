#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace quern {

struct Cell {
  int row = 0;
  int column = 0;
  friend bool operator==(const Cell&, const Cell&) = default;
};

struct MazeMove {
  const char* text;  // the action, with its newline
  int down;
  int right;
};
inline constexpr std::array<MazeMove, 4> kMazeMoves = {
    {{"move up\n", -1, 0}, {"move down\n", 1, 0}, {"move left\n", 0, -1}, {"move right\n", 0, 1}}};

// A grid of walls and its goal. Cells are (row, column) from (0, 0) at the top left. Immutable, thread-safe.
class MazeMap {
 public:
  // Text: a row a line, '#' wall, '.' free, at most one 'G' (the goal, free).
  static Result<std::shared_ptr<const MazeMap>> FromText(const std::string& text, const std::string& source,
                                                         std::optional<Cell> goal);
  // JSON: {"NAME": {"grid": [[1, 0, ..], ..]}, ..}, 1 wall, 0 free.
  static Result<std::shared_ptr<const MazeMap>> FromJson(const std::string& text, const std::string& source,
                                                         const std::string& name, std::optional<Cell> goal);
  static const char* BuiltIn();

  bool Free(Cell cell) const;  // false outside the grid
  Cell goal() const { return goal_; }
  // Free cells from which the goal can be reached, without the goal, row by row.
  const std::vector<Cell>& starts() const { return starts_; }
  // Where the move leads: the same cell when a wall is in the way.
  Cell Move(Cell from, const MazeMove& move) const;
  // Steps from every cell to `target` (row-major; -1 where there is no way).
  std::vector<int> Distances(Cell target) const;
  int StepsToGoal(Cell from) const { return to_goal_[At(from)]; }
  int At(Cell cell) const { return cell.row * columns_ + cell.column; }

 private:
  static Result<std::shared_ptr<const MazeMap>> Make(std::vector<std::vector<bool>> walls, const std::string& source,
                                                     std::optional<Cell> goal);
  int rows_ = 0;
  int columns_ = 0;
  std::vector<bool> walls_;
  Cell goal_;
  std::vector<Cell> starts_;
  std::vector<int> to_goal_;
};

// "8, 6" or "8,6".
std::optional<Cell> ParseCell(const std::string& text);

}  // namespace quern
