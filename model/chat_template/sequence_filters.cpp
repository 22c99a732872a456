// Filters on sequences and mappings, and the application of filters and tests by name.
#include <algorithm>
#include <array>

#include "base/strings.h"
#include "model/chat_template/evaluator.h"
#include "model/chat_template/text.h"

namespace quern::jinja {
namespace {

Value Get(Evaluator& evaluator, const Value& item, const Value* attribute) {
  return attribute == nullptr || attribute->is(Kind::kNone) ? item : AttributePath(evaluator, item, *attribute);
}

Value FoldCase(const Value& value, bool case_sensitive) {
  return case_sensitive || !value.is(Kind::kString) ? value : Value(Lower(value.string()));
}

bool Flag(const Value* value) { return value != nullptr && value->IsTrue(); }

Value Count(Evaluator& evaluator, const Value& input, const Arguments&) { return evaluator.LengthOf(input); }

Value First(Evaluator& evaluator, const Value& input, const Arguments&) {
  const auto items = evaluator.Iterate(input);
  return items->items.empty() ? Value::MakeUndefined("no first item, the sequence is empty") : items->items.front();
}

Value Last(Evaluator& evaluator, const Value& input, const Arguments&) {
  const auto items = evaluator.Iterate(input);
  return items->items.empty() ? Value::MakeUndefined("no last item, the sequence is empty") : items->items.back();
}

Value Join(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("join", arguments, {"d", "attribute"});
  const std::string separator = bound[0] != nullptr ? evaluator.Str(*bound[0]) : "";
  std::string out;
  bool first = true;
  const auto elements = evaluator.Iterate(input);
  for (const Value& item : elements->items) {
    if (!std::exchange(first, false)) out += separator;
    const std::string text = evaluator.Str(Get(evaluator, item, bound[1]));
    evaluator.Work(separator.size() + text.size());
    out += text;
  }
  return evaluator.Text(out);
}

Value ListOf(Evaluator& evaluator, const Value& input, const Arguments&) {
  return evaluator.MakeList(evaluator.Iterate(input)->items);
}

Value Items(Evaluator& evaluator, const Value& input, const Arguments&) {
  std::vector<Value> pairs;
  if (!input.is(Kind::kUndefined)) {
    if (!input.is(Kind::kDict)) Fail(StrCat("items needs a mapping, not ", input.type_name()));
    pairs = FindMethod(input, "items")(evaluator, input, {}).list()->items;
  }
  return evaluator.MakeLazy(std::move(pairs));
}

Value DictSort(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  if (!input.is(Kind::kDict)) Fail(StrCat("dictsort needs a mapping, not ", input.type_name()));
  const std::string by = bound[1] != nullptr ? StringOf("dictsort", *bound[1]) : "key";
  if (by != "key" && by != "value") Fail("dictsort: by must be key or value");
  const bool reverse = Flag(bound[2]);
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : input.dict().items)
    keyed.emplace_back(FoldCase(by == "key" ? key : value, Flag(bound[0])), evaluator.MakePair(key, value));
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? evaluator.Less(b.first, a.first) : evaluator.Less(a.first, b.first);
  });
  std::vector<Value> out;
  for (auto& item : keyed) out.push_back(std::move(item.second));
  return evaluator.MakeList(std::move(out));
}

// Sorted by the attributes that `attribute` names ("a,b"), stable.
std::vector<std::pair<Value, Value>> Sorted(Evaluator& evaluator, const Value& input, const Value* attribute,
                                            bool reverse, bool case_sensitive) {
  std::vector<std::pair<Value, Value>> keyed;
  const std::string comma = ",";
  const auto elements = evaluator.Iterate(input);
  for (const Value& item : elements->items) {
    evaluator.Step();
    std::vector<Value> key;
    if (attribute != nullptr && attribute->is(Kind::kString)) {
      for (const std::string_view part : Split(attribute->string(), &comma, -1))
        key.push_back(FoldCase(AttributePath(evaluator, item, std::string(part)), case_sensitive));
    } else {
      key.push_back(FoldCase(Get(evaluator, item, attribute), case_sensitive));
    }
    keyed.emplace_back(evaluator.MakeList(std::move(key)), item);
  }
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? evaluator.Less(b.first, a.first) : evaluator.Less(a.first, b.first);
  });
  return keyed;
}

Value Sort(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  std::vector<Value> out;
  for (auto& item : Sorted(evaluator, input, bound[2], Flag(bound[0]), Flag(bound[1])))
    out.push_back(std::move(item.second));
  return evaluator.MakeList(std::move(out));
}

Value GroupBy(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("groupby", arguments, {"attribute", "default", "case_sensitive"});
  if (bound[0] == nullptr) Fail("groupby needs an attribute");
  std::vector<Value> groups;
  std::vector<Value> members;
  const auto sorted = Sorted(evaluator, input, bound[0], false, Flag(bound[2]));
  for (size_t i = 0; i < sorted.size(); ++i) {
    members.push_back(sorted[i].second);
    if (i + 1 < sorted.size() && evaluator.Equal(sorted[i].first, sorted[i + 1].first)) continue;
    Value key = Get(evaluator, members.front(), bound[0]);
    if (key.is(Kind::kUndefined) && bound[1] != nullptr) key = *bound[1];
    groups.push_back(evaluator.MakePair(std::move(key), evaluator.MakeList(std::exchange(members, {}))));
  }
  return evaluator.MakeList(std::move(groups));
}

Value Unique(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("unique", arguments, {"case_sensitive", "attribute"});
  std::vector<Value> seen;
  std::vector<Value> out;
  const auto elements = evaluator.Iterate(input);
  for (const Value& item : elements->items) {
    const Value key = FoldCase(Get(evaluator, item, bound[1]), Flag(bound[0]));
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& value) { return evaluator.Equal(value, key); }))
      continue;
    seen.push_back(key);
    out.push_back(item);
  }
  return evaluator.MakeLazy(std::move(out));
}

template <bool largest>
Value Extreme(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind(largest ? "max" : "min", arguments, {"case_sensitive", "attribute"});
  const auto items = evaluator.Iterate(input);
  if (items->items.empty()) return Value::MakeUndefined("no item, the sequence is empty");
  const auto key = [&](const Value& item) { return FoldCase(Get(evaluator, item, bound[1]), Flag(bound[0])); };
  Value best = items->items[0];
  for (const Value& item : items->items)
    if (largest ? evaluator.Less(key(best), key(item)) : evaluator.Less(key(item), key(best))) best = item;
  return best;
}

Value Sum(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("sum", arguments, {"attribute", "start"});
  Value total = bound[1] != nullptr ? *bound[1] : Value(int64_t{0});
  const auto elements = evaluator.Iterate(input);
  for (const Value& item : elements->items) {
    evaluator.Step();
    total = evaluator.Binary("+", total, Get(evaluator, item, bound[0]));
  }
  return total;
}

Value Reverse(Evaluator& evaluator, const Value& input, const Arguments&) {
  std::vector<Value> items = evaluator.Iterate(input)->items;
  std::reverse(items.begin(), items.end());
  evaluator.Step(items.size() / 8);
  if (!input.is(Kind::kString)) return evaluator.MakeLazy(std::move(items));
  std::string text;
  for (const Value& item : items) text += item.string();
  return evaluator.Text(text);
}

Value Batch(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("batch", arguments, {"linecount", "fill_with"});
  const int64_t size = bound[0] != nullptr ? WholeNumber("batch", *bound[0]) : 0;
  if (size < 1) Fail("batch needs a size of at least 1");
  std::vector<Value> out;
  std::vector<Value> row;
  const auto elements = evaluator.Iterate(input);
  for (const Value& item : elements->items) {
    evaluator.Step();
    row.push_back(item);
    if (static_cast<int64_t>(row.size()) == size) out.push_back(evaluator.MakeList(std::exchange(row, {})));
  }
  if (!row.empty()) {
    if (bound[1] != nullptr && !bound[1]->is(Kind::kNone)) {
      evaluator.Work(static_cast<size_t>(std::min<int64_t>(size, INT32_MAX)) * sizeof(Value));
      row.resize(static_cast<size_t>(size), *bound[1]);
    }
    out.push_back(evaluator.MakeList(std::move(row)));
  }
  return evaluator.MakeLazy(std::move(out));
}

// Arguments behind the first `skip` positional ones.
Arguments Rest(const Arguments& arguments, size_t skip) {
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin(),
                        rest.positional.begin() + static_cast<ptrdiff_t>(std::min(skip, rest.positional.size())));
  return rest;
}

// What map() and the filters like it go over: whatever is false counts as empty, None too.
std::shared_ptr<const List> Elements(Evaluator& evaluator, const Value& input) {
  return evaluator.Iterate(input.IsTrue() ? input : Value());
}

Value Map(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  std::vector<Value> out;
  const auto items = Elements(evaluator, input);
  if (arguments.positional.empty()) {
    const auto bound = Bind("map", arguments, {"attribute", "default"});
    if (bound[0] == nullptr) Fail("map needs a filter or an attribute");
    for (const Value& item : items->items) {
      Value value = AttributePath(evaluator, item, *bound[0]);
      out.push_back(value.is(Kind::kUndefined) && bound[1] != nullptr ? *bound[1] : std::move(value));
    }
  } else {
    const std::string& name = StringOf("map", arguments.positional[0]);
    const Arguments rest = Rest(arguments, 1);
    for (const Value& item : items->items) out.push_back(evaluator.ApplyFilter(name, item, rest));
  }
  return evaluator.MakeLazy(std::move(out));
}

template <bool wanted, bool by_attribute>
Value Select(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  if (by_attribute && arguments.positional.empty()) Fail("selectattr and rejectattr need an attribute");
  const size_t test_at = by_attribute ? 1 : 0;
  const bool has_test = arguments.positional.size() > test_at;
  const std::string test = has_test ? StringOf("select", arguments.positional[test_at]) : "";
  const Arguments rest = Rest(arguments, test_at + 1);
  std::vector<Value> out;
  const auto elements = Elements(evaluator, input);
  for (const Value& item : elements->items) {
    evaluator.Step();
    const Value value = by_attribute ? AttributePath(evaluator, item, arguments.positional[0]) : item;
    if ((has_test ? evaluator.ApplyTest(test, value, rest) : value.IsTrue()) == wanted) out.push_back(item);
  }
  return evaluator.MakeLazy(std::move(out));
}

Value Attr(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("attr", arguments, {"name"});
  if (bound[0] == nullptr) Fail("attr needs a name");
  return evaluator.Attribute(input, StringOf("attr", *bound[0]));
}

struct NamedFilter {
  std::string_view name;
  Filter filter;
};
constexpr std::array<NamedFilter, 22> kFilters = {{{"attr", Attr},
                                                   {"batch", Batch},
                                                   {"count", Count},
                                                   {"dictsort", DictSort},
                                                   {"first", First},
                                                   {"groupby", GroupBy},
                                                   {"items", Items},
                                                   {"join", Join},
                                                   {"last", Last},
                                                   {"length", Count},
                                                   {"list", ListOf},
                                                   {"map", Map},
                                                   {"max", Extreme<true>},
                                                   {"min", Extreme<false>},
                                                   {"reject", Select<false, false>},
                                                   {"rejectattr", Select<false, true>},
                                                   {"reverse", Reverse},
                                                   {"select", Select<true, false>},
                                                   {"selectattr", Select<true, true>},
                                                   {"sort", Sort},
                                                   {"sum", Sum},
                                                   {"unique", Unique}}};

bool KeepsMarkup(std::string_view name) {
  for (const char* filter :
       {"trim", "lower", "upper", "capitalize", "center", "indent", "truncate", "reverse", "string"})
    if (name == filter) return true;
  return false;
}

}  // namespace

Filter FindSequenceFilter(std::string_view name) {
  for (const NamedFilter& item : kFilters)
    if (item.name == name) return item.filter;
  return nullptr;
}

Value Evaluator::ApplyFilter(const std::string& name, const Value& input, const Arguments& arguments) {
  Filter filter = FindTextFilter(name);
  if (filter == nullptr) filter = FindSequenceFilter(name);
  if (filter == nullptr) Fail(StrCat("no filter named '", name.substr(0, 60), "'"));
  Step();
  const Value result = filter(*this, input, arguments);
  return input.is_markup() && KeepsMarkup(name) ? result.AsMarkup() : result;
}

bool Evaluator::ApplyTest(const std::string& name, const Value& input, const Arguments& arguments) {
  const IsTest test = FindTest(name);
  if (test == nullptr) Fail(StrCat("no test named '", name.substr(0, 60), "'"));
  Step();
  return test(*this, input, arguments);
}

}  // namespace quern::jinja
