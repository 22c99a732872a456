#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/random.h"

namespace quern {

// A small templated language in which a question can be reasoned about in several ways. Every family works on a list
// of numbers; a strategy says in which order the list is taken apart; the families share the steps themselves
// (additions, comparisons), so that what one teaches can help another.
//
//   sum 4 7 2 9            the sum of single digits                           answer 22
//   max 31 7 58            the largest                                               58
//   xor 1 0 1 1            the parity of bits                                         1
//   count 5 over 3 7 6     how many are larger than the first                         2
//   total 31 24 17         the sum of numbers of two digits                          72
//   range 31 7 58          the largest minus the smallest: two passes                51
//   gather 5 over 3 7 6    the sum of those larger than the first                    13
enum class Family { kSum, kMax, kXor, kCount, kTotal, kRange, kGather };
inline constexpr int kFamilies = 7;
const char* FamilyName(Family family);
std::optional<Family> ParseFamily(const std::string& name);

enum class Strategy { kLeft, kRight, kPairs, kHalves, kSorted };
inline constexpr int kStrategies = 5;
const char* StrategyName(Strategy strategy);

struct ReasoningTask {
  Family family = Family::kSum;
  int threshold = 0;  // of count and gather
  std::vector<int> numbers;
};
ReasoningTask DrawTask(Family family, Random& random);
std::string QuestionText(const ReasoningTask& task);
std::optional<ReasoningTask> ParseQuestion(const std::string& text);
int Answer(const ReasoningTask& task);

// "sum from left": what a guideline comes to for a family.
std::string AdaptedText(Family family, Strategy strategy);
// The numbered list of what will be done, without numbers of the task.
std::string PlanText(Family family, Strategy strategy);
// The strategy that a text speaks of: the first strategy name that is a word of it.
std::optional<Strategy> StrategyIn(const std::string& text);

// Numbered steps, one a line, and "#### ANSWER". Each step's result is wrong with probability `slip` (and what follows
// goes on from the wrong result); the numbers of a wrong step are near the right ones.
std::string PathText(const ReasoningTask& task, Strategy strategy, double slip, Random& random);

// Pieces that cover every text above, for a tokenizer.
std::vector<std::string> LanguagePieces();

}  // namespace quern
