#include "actors/environments/reasoning_language.h"

#include <algorithm>
#include <functional>
#include <sstream>

#include "base/check.h"
#include "base/strings.h"

namespace quern {

namespace {

constexpr const char* kFamilyNames[kFamilies] = {"sum", "max", "xor", "count", "total", "range", "gather"};
constexpr const char* kStrategyNames[kStrategies] = {"left", "right", "pairs", "halves", "sorted"};

// How two intermediate results become one.
struct Operation {
  const char* sign;
  int (*apply)(int, int);
};
constexpr Operation kAdd = {"+", [](int a, int b) { return a + b; }};
constexpr Operation kSubtract = {"-", [](int a, int b) { return a - b; }};
constexpr Operation kMax = {"max", [](int a, int b) { return std::max(a, b); }};
constexpr Operation kMin = {"min", [](int a, int b) { return std::min(a, b); }};
constexpr Operation kXor = {"xor", [](int a, int b) { return a ^ b; }};

std::string Listed(const std::vector<int>& numbers) {
  std::string out;
  for (const int n : numbers) out += StrCat(" ", n);
  return out;
}

class PathWriter {
 public:
  PathWriter(double slip, Random& random) : slip_(slip), random_(random) {}

  void Line(const std::string& text) { text_ += StrCat(++line_, ".", text, "\n"); }

  int Combine(const Operation& op, int a, int b) {
    int result = op.apply(a, b);
    if (random_.Uniform() < slip_) result = Wrong(op, result);
    Line(StrCat(" ", a, " ", op.sign, " ", b, " = ", result));
    return result;
  }

  int Fold(const Operation& op, std::vector<int> numbers, Strategy strategy) {
    switch (strategy) {
      case Strategy::kSorted:
        std::sort(numbers.begin(), numbers.end());
        Line(" sorted" + Listed(numbers));
        return FoldLeft(op, numbers);
      case Strategy::kLeft: return FoldLeft(op, numbers);
      case Strategy::kRight: std::reverse(numbers.begin(), numbers.end()); return FoldLeft(op, numbers);
      case Strategy::kPairs:
        while (numbers.size() > 1) {
          std::vector<int> next;
          for (size_t i = 0; i + 1 < numbers.size(); i += 2) next.push_back(Combine(op, numbers[i], numbers[i + 1]));
          if (numbers.size() % 2 == 1) next.push_back(numbers.back());
          numbers = std::move(next);
        }
        return numbers[0];
      case Strategy::kHalves: {
        const auto middle = numbers.begin() + static_cast<std::ptrdiff_t>((numbers.size() + 1) / 2);
        const int first = FoldLeft(op, {numbers.begin(), middle});
        if (middle == numbers.end()) return first;
        return Combine(op, first, FoldLeft(op, {middle, numbers.end()}));
      }
    }
    QUERN_CHECK(false);
    return 0;
  }

  std::string Finish(int answer) { return StrCat(text_, "#### ", answer); }

 private:
  int FoldLeft(const Operation& op, const std::vector<int>& numbers) {
    int result = numbers[0];
    for (size_t i = 1; i < numbers.size(); ++i) result = Combine(op, result, numbers[i]);
    return result;
  }
  int Wrong(const Operation& op, int right) {
    if (op.sign == kXor.sign) return 1 - right;
    constexpr int kOff[] = {-10, -2, -1, 1, 2, 10};
    const int wrong = right + kOff[random_.Below(std::size(kOff))];
    return wrong < 0 ? right + 1 : wrong;
  }

  double slip_;
  Random& random_;
  std::string text_;
  int line_ = 0;
};

std::vector<int> Larger(const ReasoningTask& task) {
  std::vector<int> kept;
  for (const int n : task.numbers)
    if (n > task.threshold) kept.push_back(n);
  return kept;
}

bool HasThreshold(Family family) { return family == Family::kCount || family == Family::kGather; }

}  // namespace

const char* FamilyName(Family family) { return kFamilyNames[static_cast<int>(family)]; }
const char* StrategyName(Strategy strategy) { return kStrategyNames[static_cast<int>(strategy)]; }

std::optional<Family> ParseFamily(const std::string& name) {
  for (int i = 0; i < kFamilies; ++i)
    if (name == kFamilyNames[i]) return static_cast<Family>(i);
  return std::nullopt;
}

ReasoningTask DrawTask(Family family, Random& random) {
  ReasoningTask task{.family = family, .threshold = 0, .numbers = {}};
  size_t count = 3 + random.Below(4);
  int least = 0, most = 9;
  switch (family) {
    case Family::kXor: most = 1, count += 3; break;
    case Family::kMax:
    case Family::kRange: least = 1, most = 99; break;
    case Family::kTotal: least = 10, most = 49, count = 3 + random.Below(2); break;
    case Family::kSum:
    case Family::kCount:
    case Family::kGather: break;
  }
  for (size_t i = 0; i < count; ++i)
    task.numbers.push_back(least + static_cast<int>(random.Below(static_cast<uint64_t>(most - least + 1))));
  if (HasThreshold(family)) {
    task.threshold = static_cast<int>(1 + random.Below(7));
    if (Larger(task).empty()) task.numbers[random.Below(count)] = task.threshold + 1;
  }
  return task;
}

std::string QuestionText(const ReasoningTask& task) {
  return StrCat(FamilyName(task.family), HasThreshold(task.family) ? StrCat(" ", task.threshold, " over") : "",
                Listed(task.numbers));
}

std::optional<ReasoningTask> ParseQuestion(const std::string& text) {
  std::istringstream in(text);
  std::string name, over;
  in >> name;
  const std::optional<Family> family = ParseFamily(name);
  if (!family) return std::nullopt;
  ReasoningTask task{.family = *family, .threshold = 0, .numbers = {}};
  if (HasThreshold(*family) && !(in >> task.threshold >> over && over == "over")) return std::nullopt;
  for (int n = 0; in >> n;) task.numbers.push_back(n);
  if (!in.eof() || task.numbers.empty()) return std::nullopt;
  return task;
}

int Answer(const ReasoningTask& task) {
  const auto fold = [](const Operation& op, const std::vector<int>& numbers) {
    int result = numbers[0];
    for (size_t i = 1; i < numbers.size(); ++i) result = op.apply(result, numbers[i]);
    return result;
  };
  switch (task.family) {
    case Family::kSum:
    case Family::kTotal: return fold(kAdd, task.numbers);
    case Family::kMax: return fold(kMax, task.numbers);
    case Family::kXor: return fold(kXor, task.numbers);
    case Family::kCount: return static_cast<int>(Larger(task).size());
    case Family::kRange: return fold(kMax, task.numbers) - fold(kMin, task.numbers);
    case Family::kGather: return fold(kAdd, Larger(task));
  }
  QUERN_CHECK(false);
  return 0;
}

std::string AdaptedText(Family family, Strategy strategy) {
  return StrCat(FamilyName(family), " from ", StrategyName(strategy));
}

std::string PlanText(Family family, Strategy strategy) {
  const std::string fold = StrCat(" from ", StrategyName(strategy));
  switch (family) {
    case Family::kSum:
    case Family::kTotal: return StrCat("1. +", fold, "\n2. say");
    case Family::kMax: return StrCat("1. max", fold, "\n2. say");
    case Family::kXor: return StrCat("1. xor", fold, "\n2. say");
    case Family::kCount: return StrCat("1. mark over\n2. +", fold, "\n3. say");
    case Family::kRange: return StrCat("1. max", fold, "\n2. min", fold, "\n3. -\n4. say");
    case Family::kGather: return StrCat("1. keep over\n2. +", fold, "\n3. say");
  }
  QUERN_CHECK(false);
  return {};
}

std::optional<Strategy> StrategyIn(const std::string& text) {
  std::istringstream in(text);
  for (std::string word; in >> word;) {
    for (int i = 0; i < kStrategies; ++i)
      if (word == kStrategyNames[i]) return static_cast<Strategy>(i);
  }
  return std::nullopt;
}

std::string PathText(const ReasoningTask& task, Strategy strategy, double slip, Random& random) {
  PathWriter path(slip, random);
  switch (task.family) {
    case Family::kSum:
    case Family::kTotal: return path.Finish(path.Fold(kAdd, task.numbers, strategy));
    case Family::kMax: return path.Finish(path.Fold(kMax, task.numbers, strategy));
    case Family::kXor: return path.Finish(path.Fold(kXor, task.numbers, strategy));
    case Family::kCount: {
      std::vector<int> marks;
      for (const int n : task.numbers) marks.push_back((n > task.threshold) != (random.Uniform() < slip / 2) ? 1 : 0);
      path.Line(" mark" + Listed(marks));
      return path.Finish(path.Fold(kAdd, marks, strategy));
    }
    case Family::kRange: {
      const int largest = path.Fold(kMax, task.numbers, strategy);
      const int smallest = path.Fold(kMin, task.numbers, strategy);
      return path.Finish(path.Combine(kSubtract, largest, smallest));
    }
    case Family::kGather: {
      std::vector<int> kept;
      for (const int n : task.numbers)
        if ((n > task.threshold) != (random.Uniform() < slip / 2)) kept.push_back(n);
      if (kept.empty()) kept.push_back(0);
      path.Line(" keep" + Listed(kept));
      return path.Finish(path.Fold(kAdd, kept, strategy));
    }
  }
  QUERN_CHECK(false);
  return {};
}

std::vector<std::string> LanguagePieces() {
  std::vector<std::string> pieces = {"\n",      ".",     " ",     "-",      "#### ",   " +",    " -",
                                     " =",      " from", " over", " say",   " max",    " min",  " xor",
                                     " sorted", " mark", " keep", " pairs", " halves", " left", " right"};
  for (int i = 0; i < 10; ++i) {
    pieces.push_back(StrCat(i));
    pieces.push_back(StrCat(" ", i));
  }
  for (const char* name : kFamilyNames) pieces.emplace_back(name);
  return pieces;
}

}  // namespace quern
