#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace quern {

// Finds the answer in what a model wrote and compares it with the known one. Immutable, thread-safe; takes any bytes.
class Grader {
 public:
  virtual ~Grader() = default;
  // The answer as it stands in the completion; nothing where there is none, or several that contradict each other.
  virtual std::optional<std::string> Extract(std::string_view completion) const = 0;
  // One spelling for all answers that are the same: what a majority vote counts. "" when it is no answer.
  virtual std::string Normalise(std::string_view extracted) const = 0;
  // Whether an extracted answer is the known one. True where both normalise to the same; tolerances and the percent
  // sign make it true for more.
  virtual bool Matches(std::string_view extracted, std::string_view truth) const = 0;
};

// spec: [boxed:]NAME[,option=value]..., e.g. "number", "boxed:number,tolerance=0.01".
//   exact       the whole text, without white space at its ends
//   text        the same, in lower case (case=keep: as it is; ASCII letters only) and with single spaces
//   number      the last number: sign, thousands separators, currency, percent, decimals, fractions, mixed numbers,
//               powers; words around it. Compared as exact rationals; tolerance=X: |a - b| <= X is equal too. A percent
//               sign on one side only: either reading will do (50% is 50 and 0.5)
//   choice      one letter of letters=ABCDEFGH: "(C) because" is C; "B or C" is none
//   yes_no      yes or no (true, false): after "answer is", or the first or last word
//   expression  the last arithmetic expression of whole numbers with + - * / and parentheses. truth: an expression, or
//               "4 6 11 11 = 24"; equal: just the same numbers, each as often, and the same value
// boxed: looks for NAME's answer in the last \boxed{...} only; without one in the last line that begins with ####;
// without one in the sentence after the last "answer is" (or "answer:"). Without any of the three there is no answer.
// An unknown name or option is an error with the nearest name.
Result<std::unique_ptr<Grader>> MakeGrader(const std::string& spec);
std::vector<std::string> GraderNames();

// Extract and Matches in one.
bool Grade(const Grader& grader, std::string_view completion, std::string_view truth);

}  // namespace quern
