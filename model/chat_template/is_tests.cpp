// The tests behind "is", and the functions that every template has.
#include <algorithm>
#include <array>
#include <ctime>

#include "base/strings.h"
#include "model/chat_template/evaluator.h"
#include "model/chat_template/text.h"

namespace quern::jinja {
namespace {

const Value& Operand(std::string_view test, const Arguments& arguments) {
  const auto bound = Bind(test, arguments, {"other"});
  if (bound[0] == nullptr) Fail(StrCat("the test ", test, " needs an operand"));
  return *bound[0];
}

template <Kind kind>
bool IsKind(Evaluator&, const Value& input, const Arguments&) {
  return input.is(kind);
}
bool IsDefined(Evaluator&, const Value& input, const Arguments&) { return !input.is(Kind::kUndefined); }
template <bool value>
bool IsBool(Evaluator&, const Value& input, const Arguments&) {
  return input.is(Kind::kBool) && input.boolean() == value;
}
bool IsNumber(Evaluator&, const Value& input, const Arguments&) { return input.is_number(); }
bool IsIterable(Evaluator&, const Value& input, const Arguments&) {
  return input.is(Kind::kUndefined) || input.is(Kind::kString) || input.is(Kind::kList) || input.is(Kind::kDict) ||
         input.is(Kind::kGenerator) || input.is(Kind::kLoop);
}
bool IsSequence(Evaluator&, const Value& input, const Arguments&) {
  return input.is(Kind::kUndefined) || input.is(Kind::kString) || input.is(Kind::kList) || input.is(Kind::kDict);
}
template <int64_t rest>
bool IsParity(Evaluator&, const Value& input, const Arguments&) {
  const int64_t value = WholeNumber("the test odd or even", input);
  return (value & 1) == rest;
}
bool IsDivisible(Evaluator&, const Value& input, const Arguments& arguments) {
  const int64_t divisor = WholeNumber("divisibleby", Operand("divisibleby", arguments));
  if (divisor == 0) Fail("divisibleby: division by zero");
  return divisor == -1 || WholeNumber("divisibleby", input) % divisor == 0;
}
template <bool upper>
bool IsCase(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const Value text = evaluator.Text(evaluator.Str(input));
  return FindMethod(text, upper ? "isupper" : "islower")(evaluator, text, arguments).IsTrue();
}
bool IsEqual(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  return evaluator.Equal(input, Operand("eq", arguments));
}
bool IsUnequal(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  return !evaluator.Equal(input, Operand("ne", arguments));
}
bool IsLess(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  return evaluator.Less(input, Operand("lt", arguments));
}
bool IsGreater(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  return evaluator.Less(Operand("gt", arguments), input);
}
bool IsAtMost(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  return IsLess(evaluator, input, arguments) || IsEqual(evaluator, input, arguments);
}
bool IsAtLeast(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  return IsGreater(evaluator, input, arguments) || IsEqual(evaluator, input, arguments);
}
bool IsIn(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  return evaluator.Contains(Operand("in", arguments), input);
}
bool IsSame(Evaluator&, const Value& input, const Arguments& arguments) {
  return input.SameObject(Operand("sameas", arguments));
}
bool IsFilter(Evaluator&, const Value& input, const Arguments&) {
  const std::string& name = StringOf("the test filter", input);
  return FindTextFilter(name) != nullptr || FindSequenceFilter(name) != nullptr;
}
bool IsTestName(Evaluator&, const Value& input, const Arguments&) {
  return FindTest(StringOf("the test test", input)) != nullptr;
}
bool IsEscaped(Evaluator&, const Value&, const Arguments&) { return false; }

struct NamedTest {
  std::string_view name;
  IsTest test;
};
constexpr std::array<NamedTest, 39> kTests = {{{"defined", IsDefined},
                                               {"undefined", IsKind<Kind::kUndefined>},
                                               {"none", IsKind<Kind::kNone>},
                                               {"boolean", IsKind<Kind::kBool>},
                                               {"true", IsBool<true>},
                                               {"false", IsBool<false>},
                                               {"integer", IsKind<Kind::kInt>},
                                               {"float", IsKind<Kind::kFloat>},
                                               {"number", IsNumber},
                                               {"string", IsKind<Kind::kString>},
                                               {"mapping", IsKind<Kind::kDict>},
                                               {"iterable", IsIterable},
                                               {"sequence", IsSequence},
                                               {"callable", IsKind<Kind::kCallable>},
                                               {"odd", IsParity<1>},
                                               {"even", IsParity<0>},
                                               {"divisibleby", IsDivisible},
                                               {"upper", IsCase<true>},
                                               {"lower", IsCase<false>},
                                               {"eq", IsEqual},
                                               {"equalto", IsEqual},
                                               {"==", IsEqual},
                                               {"ne", IsUnequal},
                                               {"!=", IsUnequal},
                                               {"lt", IsLess},
                                               {"lessthan", IsLess},
                                               {"<", IsLess},
                                               {"gt", IsGreater},
                                               {"greaterthan", IsGreater},
                                               {">", IsGreater},
                                               {"le", IsAtMost},
                                               {"<=", IsAtMost},
                                               {"ge", IsAtLeast},
                                               {">=", IsAtLeast},
                                               {"in", IsIn},
                                               {"sameas", IsSame},
                                               {"filter", IsFilter},
                                               {"test", IsTestName},
                                               {"escaped", IsEscaped}}};

Value Range(Evaluator& evaluator, const Arguments& arguments) {
  const auto bound = Bind("range", arguments, {"start", "stop", "step"});
  if (bound[0] == nullptr) Fail("range needs a number");
  const int64_t start = bound[1] != nullptr ? WholeNumber("range", *bound[0]) : 0;
  const int64_t stop = WholeNumber("range", bound[1] != nullptr ? *bound[1] : *bound[0]);
  const int64_t step = bound[2] != nullptr ? WholeNumber("range", *bound[2]) : 1;
  if (step == 0) Fail("range: the step must not be zero");
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) >= evaluator.options().limits.range)
      FailLimit(StrCat("range is longer than ", evaluator.options().limits.range));
    items.push_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  evaluator.Step(items.size() / 4);
  return evaluator.MakeList(std::move(items));
}

Value NewNamespace(Evaluator& evaluator, const Arguments& arguments) {
  std::vector<std::pair<std::string, Value>> items;
  if (!arguments.positional.empty()) {
    if (arguments.positional.size() > 1 || !arguments.positional[0].is(Kind::kDict))
      Fail("namespace takes one mapping and names");
    for (const auto& [key, value] : arguments.positional[0].dict().items)
      items.emplace_back(StringOf("namespace", key), value);
  }
  for (const auto& [key, value] : arguments.named) {
    const auto same =
        std::find_if(items.begin(), items.end(), [&wanted = key](const auto& item) { return item.first == wanted; });
    if (same == items.end()) {
      items.emplace_back(key, value);
    } else {
      same->second = value;
    }
  }
  return evaluator.MakeNamespace(std::move(items));
}

Value NewDict(Evaluator& evaluator, const Arguments& arguments) {
  std::vector<std::pair<Value, Value>> items;
  if (!arguments.positional.empty()) {
    if (arguments.positional.size() > 1 || !arguments.positional[0].is(Kind::kDict))
      Fail("dict takes one mapping and names");
    items = arguments.positional[0].dict().items;
  }
  for (const auto& [key, value] : arguments.named) {
    evaluator.Step(items.size() / 8);
    const auto same = std::find_if(items.begin(), items.end(), [&wanted = key](const auto& item) {
      return item.first.is(Kind::kString) && item.first.string() == wanted;
    });
    if (same == items.end()) {
      items.emplace_back(Value(key), value);
    } else {
      same->second = value;
    }
  }
  return evaluator.MakeDict(std::move(items));
}

Value RaiseException(Evaluator& evaluator, const Arguments& arguments) {
  const auto bound = Bind("raise_exception", arguments, {"message"});
  Fail(StrCat("the template refuses: ", bound[0] != nullptr ? evaluator.Str(*bound[0]) : ""));
}

Value StrftimeNow(Evaluator& evaluator, const Arguments& arguments) {
  const auto bound = Bind("strftime_now", arguments, {"format"});
  if (bound[0] == nullptr) Fail("strftime_now needs a format");
  const std::string& format = StringOf("strftime_now", *bound[0]);
  if (format.size() > 256 || format.find('\0') != std::string::npos) Fail("strftime_now: the format is too long");
  if (format.empty()) return evaluator.Text("");
  std::tm now{};
  if (evaluator.options().now) {
    now = *evaluator.options().now;
  } else {
    const std::time_t seconds = std::time(nullptr);
    localtime_r(&seconds, &now);
  }
  char buffer[4096];
  const size_t size = std::strftime(buffer, sizeof buffer, format.c_str(), &now);
  return evaluator.Text(std::string_view(buffer, size));
}

}  // namespace

IsTest FindTest(std::string_view name) {
  for (const NamedTest& item : kTests)
    if (item.name == name) return item.test;
  return nullptr;
}

Value GlobalFunction(Evaluator& evaluator, std::string_view name) {
  using Function = Value (*)(Evaluator&, const Arguments&);
  constexpr std::array<std::pair<std::string_view, Function>, 5> kFunctions = {{{"range", Range},
                                                                                {"namespace", NewNamespace},
                                                                                {"dict", NewDict},
                                                                                {"raise_exception", RaiseException},
                                                                                {"strftime_now", StrftimeNow}}};
  for (const auto& [known, function] : kFunctions)
    if (known == name) return evaluator.MakeFunction(std::string(name), 1, function);
  return {};
}

}  // namespace quern::jinja
