// Attributes, subscripts, and the methods of lists, mappings and loops.
#include <algorithm>
#include <array>

#include "base/strings.h"
#include "model/chat_template/evaluator.h"
#include "model/chat_template/text.h"

namespace quern::jinja {
namespace {

Value DictKeys(Evaluator& evaluator, const Value& self, const Arguments&) {
  return evaluator.MakeList(evaluator.Iterate(self)->items);
}

Value DictValues(Evaluator& evaluator, const Value& self, const Arguments&) {
  std::vector<Value> values;
  for (const auto& item : self.dict().items) values.push_back(item.second);
  return evaluator.MakeList(std::move(values));
}

Value DictItems(Evaluator& evaluator, const Value& self, const Arguments&) {
  std::vector<Value> pairs;
  for (const auto& [key, value] : self.dict().items) {
    evaluator.Step();
    pairs.push_back(evaluator.MakePair(key, value));
  }
  return evaluator.MakeList(std::move(pairs));
}

Value DictGet(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("get", arguments, {"key", "default"});
  if (bound[0] == nullptr) Fail("get needs a key");
  if (const Value* found = evaluator.Find(self.dict(), *bound[0])) return *found;
  return bound[1] != nullptr ? *bound[1] : Value(None{});
}

Value DictCopy(Evaluator&, const Value& self, const Arguments&) { return self; }

Value ListIndex(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("index", arguments, {"value"});
  if (bound[0] == nullptr) Fail("index needs a value");
  const auto& items = self.list()->items;
  for (size_t i = 0; i < items.size(); ++i)
    if (evaluator.Equal(items[i], *bound[0])) return static_cast<int64_t>(i);
  Fail("index: the value is not in the list");
}

Value ListCount(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("count", arguments, {"value"});
  if (bound[0] == nullptr) Fail("count needs a value");
  const auto& items = self.list()->items;
  return static_cast<int64_t>(
      std::count_if(items.begin(), items.end(), [&](const Value& item) { return evaluator.Equal(item, *bound[0]); }));
}

Value LoopCycle(Evaluator&, const Value& self, const Arguments& arguments) {
  if (arguments.positional.empty()) Fail("loop.cycle needs values");
  return arguments.positional[self.loop()->index % arguments.positional.size()];
}

Value Refused(Evaluator&, const Value& self, const Arguments&) {
  Fail(StrCat("a template may not change a ", self.type_name(), "; collect with + or a namespace"));
}

struct NamedMethod {
  std::string_view name;
  Method method;
};

template <size_t N>
Method FindIn(const std::array<NamedMethod, N>& methods, std::string_view name) {
  for (const NamedMethod& item : methods)
    if (item.name == name) return item.method;
  return nullptr;
}

constexpr std::array<NamedMethod, 11> kDictMethods = {{{"get", DictGet},
                                                       {"items", DictItems},
                                                       {"keys", DictKeys},
                                                       {"values", DictValues},
                                                       {"copy", DictCopy},
                                                       {"update", Refused},
                                                       {"pop", Refused},
                                                       {"popitem", Refused},
                                                       {"clear", Refused},
                                                       {"setdefault", Refused},
                                                       {"fromkeys", Refused}}};
constexpr std::array<NamedMethod, 9> kListMethods = {{{"index", ListIndex},
                                                      {"count", ListCount},
                                                      {"append", Refused},
                                                      {"extend", Refused},
                                                      {"insert", Refused},
                                                      {"pop", Refused},
                                                      {"remove", Refused},
                                                      {"reverse", Refused},
                                                      {"sort", Refused}}};
constexpr std::array<NamedMethod, 1> kLoopMethods = {{{"cycle", LoopCycle}}};

Value LoopAttribute(const Loop& loop, std::string_view name) {
  const auto index = static_cast<int64_t>(loop.index);
  const auto size = static_cast<int64_t>(loop.items->items.size());
  if (name == "index") return index + 1;
  if (name == "index0") return index;
  if (name == "revindex") return size - index;
  if (name == "revindex0") return size - index - 1;
  if (name == "first") return index == 0;
  if (name == "last") return index + 1 >= size;
  if (name == "length") return size;
  if (name == "depth") return int64_t{1};  // it counts recursive loops only
  if (name == "depth0") return int64_t{0};
  if (name == "previtem" || name == "nextitem") {
    const int64_t at = name == "previtem" ? index - 1 : index + 1;
    if (at >= 0 && at < size) return loop.items->items[static_cast<size_t>(at)];
    return Value::MakeUndefined(StrCat("there is no ", name == "previtem" ? "previous" : "next", " item"));
  }
  return Value::MakeUndefined(StrCat("loop has no attribute '", name.substr(0, 60), "'"));
}

}  // namespace

Method FindStringMethod(std::string_view name);  // string_methods.cpp

Method FindMethod(const Value& value, std::string_view name) {
  switch (value.kind()) {
    case Kind::kString: return FindStringMethod(name);
    case Kind::kList: return FindIn(kListMethods, name);
    case Kind::kDict: return FindIn(kDictMethods, name);
    case Kind::kLoop: return FindIn(kLoopMethods, name);
    default: return nullptr;
  }
}

Value Evaluator::CallMethod(Method method, const Value& self, const Arguments& arguments) {
  if (!self.is_markup()) return method(*this, self, arguments);
  Arguments escaped = arguments;
  for (Value& value : escaped.positional)
    if (value.is(Kind::kString)) value = Escaped(value);
  const Value result = method(*this, self, escaped);
  if (!result.is(Kind::kList)) return result.AsMarkup();
  std::vector<Value> parts;
  for (const Value& part : result.list()->items) parts.push_back(part.AsMarkup());
  return MakeList(std::move(parts), result.list()->is_tuple);
}

Value Evaluator::Attribute(const Value& value, const std::string& name) {
  if (value.is(Kind::kUndefined)) Fail(value.undefined_reason());
  if (json_dialect() && value.is(Kind::kDict)) {
    if (const Value* found = Find(value.dict(), name)) return *found;
  }
  if (const Method method = FindMethod(value, name))
    return MakeFunction(name, value.depth() + 1, [method, value](Evaluator& evaluator, const Arguments& arguments) {
      return evaluator.CallMethod(method, value, arguments);
    });
  if (value.is(Kind::kDict)) {
    if (const Value* found = Find(value.dict(), name)) return *found;
  }
  if (value.is(Kind::kNamespace)) {
    Step(value.name_space().items.size() / 8);
    for (const auto& [key, item] : value.name_space().items)
      if (key == name) return item;
  }
  if (value.is(Kind::kLoop)) return LoopAttribute(*value.loop(), name);
  return Value::MakeUndefined(StrCat("'", value.type_name(), "' has no attribute '", name.substr(0, 60), "'"));
}

Value Evaluator::Subscript(const Value& value, const Value& key) {
  if (value.is(Kind::kUndefined)) Fail(value.undefined_reason());
  if (value.is(Kind::kDict)) {
    if (const Value* found = Find(value.dict(), key)) return *found;
  } else if (key.is_whole() && (value.is(Kind::kList) || value.is(Kind::kString))) {
    const int64_t size = LengthOf(value);
    const int64_t index = key.integer() < 0 ? key.integer() + size : key.integer();
    if (index < 0 || index >= size) return Value::MakeUndefined(StrCat(value.type_name(), " index out of range"));
    if (value.is(Kind::kList)) return value.list()->items[static_cast<size_t>(index)];
    const std::string_view rest =
        std::string_view(value.string()).substr(ByteOffset(value.string(), static_cast<size_t>(index)));
    const Value character = Text(rest.substr(0, ByteOffset(rest, 1)));
    return value.is_markup() ? character.AsMarkup() : character;
  }
  if (key.is(Kind::kString)) return Attribute(value, key.string());
  return Value::MakeUndefined(StrCat("'", value.type_name(), "' has no such element"));
}

Value AttributePath(Evaluator& evaluator, const Value& item, const Value& path) {
  if (path.is_whole()) return evaluator.Subscript(item, path);
  const std::string& text = StringOf("attribute", path);
  Value value = item;
  const std::string dot = ".";
  for (const std::string_view part : Split(text, &dot, -1)) {
    evaluator.Step();
    const bool number =
        !part.empty() && part.size() < 18 && part.find_first_not_of("0123456789") == std::string_view::npos;
    value =
        evaluator.Subscript(value, number ? Value(int64_t{std::stoll(std::string(part))}) : Value(std::string(part)));
  }
  return value;
}

std::vector<const Value*> Bind(std::string_view function, const Arguments& arguments,
                               std::initializer_list<std::string_view> names) {
  std::vector<const Value*> bound(names.size(), nullptr);
  if (arguments.positional.size() > names.size())
    Fail(StrCat(function, " takes at most ", names.size(), " arguments, not ", arguments.positional.size()));
  for (size_t i = 0; i < arguments.positional.size(); ++i) bound[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) Fail(StrCat(function, " has no parameter ", name.substr(0, 60)));
    bound[static_cast<size_t>(found - names.begin())] = &value;
  }
  return bound;
}

int64_t WholeNumber(std::string_view function, const Value& value) {
  if (!value.is_whole()) Fail(StrCat(function, " needs a whole number, not ", value.type_name()));
  return value.integer();
}

const std::string& StringOf(std::string_view function, const Value& value) {
  if (value.is(Kind::kUndefined)) Fail(value.undefined_reason());
  if (!value.is(Kind::kString)) Fail(StrCat(function, " needs a string, not ", value.type_name()));
  return value.string();
}

}  // namespace quern::jinja
