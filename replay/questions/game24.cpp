#include <numeric>
#include <utility>

#include "replay/questions/question_file.h"

namespace quern {

namespace {

// A value that has been made so far. Numbers of the game are small: int64 fractions cannot overflow.
struct Part {
  int64_t over = 0;
  int64_t under = 1;
  std::string text;
  bool sum = false;  // its last operation is + or -
};

Part Combine(const Part& a, const Part& b, char sign) {
  Part out;
  const auto bracket = [](const Part& part, bool needed) { return needed ? "(" + part.text + ")" : part.text; };
  switch (sign) {
    case '+':
    case '-':
      out.over = a.over * b.under + (sign == '+' ? b.over : -b.over) * a.under;
      out.under = a.under * b.under;
      out.text = a.text + " " + sign + " " + bracket(b, sign == '-' && b.sum);
      out.sum = true;
      break;
    case '*':
      out.over = a.over * b.over;
      out.under = a.under * b.under;
      out.text = bracket(a, a.sum) + " * " + bracket(b, b.sum);
      break;
    default:
      out.over = a.over * b.under;
      out.under = a.under * b.over;
      // a / (b / c) and a / (b * c): the right side needs brackets unless it is a number.
      out.text = bracket(a, a.sum) + " / " + bracket(b, b.text.find(' ') != std::string::npos);
  }
  const int64_t common = std::gcd(out.over, out.under);
  if (common != 0) {
    out.over /= common;
    out.under /= common;
  }
  return out;
}

std::string Solve(const std::vector<Part>& parts) {
  if (parts.size() == 1) return parts[0].over == 24 * parts[0].under && parts[0].under != 0 ? parts[0].text : "";
  for (size_t i = 0; i < parts.size(); ++i) {
    for (size_t j = 0; j < parts.size(); ++j) {
      if (i == j) continue;
      for (const char sign : {'+', '-', '*', '/'}) {
        if ((sign == '+' || sign == '*') && j < i) continue;  // the same either way
        if (sign == '/' && parts[j].over == 0) continue;
        std::vector<Part> next = {Combine(parts[i], parts[j], sign)};
        for (size_t k = 0; k < parts.size(); ++k)
          if (k != i && k != j) next.push_back(parts[k]);
        if (std::string found = Solve(next); !found.empty()) return found;
      }
    }
  }
  return "";
}

}  // namespace

std::string SolveGame24(const std::vector<int>& numbers) {
  std::vector<Part> parts;
  for (const int number : numbers) parts.push_back({number, 1, std::to_string(number), false});
  return parts.empty() ? "" : Solve(parts);
}

}  // namespace quern
