#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/environment.h"
#include "actors/environments/maze_map.h"

namespace quern {

// The maze of LMRL-Gym (Abdulhai et al., 2023): the text tells the whole state, so good parts of walks can be joined.
//   The goal is at position 8, 6. Your current position is at position 5, 6. There are walls above you, below you.\n
// Positions are row, column, counted from 0 at the top left of the grid. Actions: "move up\n", "move down\n", "move
// left\n", "move right\n". -1 per step, also when a wall stops it; 0 for the step that reaches the goal, answered
// "Success\n"; -4 for any other text. An episode has max_steps steps to spend, an unknown action spends four of them
// (or what is left): so the return is in [-max_steps, 0]. Out of steps: "Failure\n". task_id: the start, "ROW,COLUMN".
//
// Options: grid (a text file, see MazeMap::FromText, or NAME.json; built-in 9x11 grid), maze (which one of a JSON
// file), goal ("ROW,COLUMN"; default: the grid's 'G'), max_steps (40), start (random: any cell that can reach the goal;
// all: seed s takes cell s mod their number, row by row; "ROW,COLUMN"), text (full | short: "goal 8 6 at 5 6 walls up
// down\n").
//
// Players and their options:
//   random       any of the four moves
//   half_random  with probability noise (0.5) a move that no wall stops, else one step of a shortest way to a sub-goal.
//                A sub-goal is the goal with probability goal (0.25), otherwise any cell; drawn anew when it is reached
//                and, with probability redraw (0.1), before each move. From far starts hardly any walk is good from end
//                to end (one in 25 within 1.5 times the best on the built-in grid), while the steps that lead to the
//                goal occur from every cell
//   best         a shortest way (the first of up, down, left, right that is on one). noise: any of the four moves

// What a factory, its environments and its players share. Immutable.
struct MazeRules {
  std::shared_ptr<const MazeMap> map;
  int max_steps = 40;
  bool in_turn = false;
  std::optional<Cell> start;
  bool short_text = false;

  std::string Describe(Cell at) const;
  std::optional<Cell> ParsePosition(const std::string& text) const;  // from Describe's text
};

}  // namespace quern
