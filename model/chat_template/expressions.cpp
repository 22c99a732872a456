#include <algorithm>
#include <cmath>

#include "base/strings.h"
#include "model/chat_template/evaluator.h"
#include "model/chat_template/text.h"

namespace quern::jinja {

Value Evaluator::Eval(const Expr& expr) {
  const DepthGuard guard(&depth_, options_.limits.depth);
  Step();
  line_ = expr.line;
  switch (expr.kind) {
    case Expr::Kind::kConstant: return expr.value;
    case Expr::Kind::kName: return Lookup(expr.name);
    case Expr::Kind::kTuple:
    case Expr::Kind::kList: {
      std::vector<Value> items;
      for (const ExprPtr& child : expr.children) items.push_back(Eval(*child));
      return MakeList(std::move(items), expr.kind == Expr::Kind::kTuple);
    }
    case Expr::Kind::kDict: return EvalDict(expr);
    case Expr::Kind::kAttribute: return Attribute(Eval(*expr.children[0]), expr.name);
    case Expr::Kind::kSubscript: {
      const Value object = Eval(*expr.children[0]);
      return Subscript(object, Eval(*expr.children[1]));
    }
    case Expr::Kind::kSlice: return EvalSlice(expr);
    case Expr::Kind::kCall: return EvalCall(expr);
    case Expr::Kind::kFilter: return ApplyFilters(&expr, Value());
    case Expr::Kind::kTest: {
      const Value input = Eval(*expr.children[0]);
      const Arguments arguments = EvalArguments(expr.arguments);
      return ApplyTest(expr.name, input, arguments);
    }
    case Expr::Kind::kNot: return !Eval(*expr.children[0]).IsTrue();
    case Expr::Kind::kNegate:
    case Expr::Kind::kPlus: {
      const Value value = Eval(*expr.children[0]);
      const bool negate = expr.kind == Expr::Kind::kNegate;
      if (value.is(Kind::kUndefined)) Fail(value.undefined_reason());
      if (!value.is_number())
        Fail(StrCat("bad operand type for unary ", negate ? "-" : "+", ": '", value.type_name(), "'"));
      if (value.is(Kind::kFloat)) return negate ? -value.number() : value.number();
      if (!negate) return value.integer();
      return Binary("-", int64_t{0}, value);
    }
    case Expr::Kind::kBinary: {
      const Value left = Eval(*expr.children[0]);
      const Value right = Eval(*expr.children[1]);
      line_ = expr.line;
      return Binary(expr.name, left, right);
    }
    case Expr::Kind::kConcat: {
      std::string text;
      for (const ExprPtr& child : expr.children) {
        text += Str(Eval(*child));
        Work(text.size() > options_.limits.output_bytes ? text.size() : 0);
      }
      return Text(text);
    }
    case Expr::Kind::kCompare: return EvalCompare(expr);
    case Expr::Kind::kAnd: {
      Value left = Eval(*expr.children[0]);
      return left.IsTrue() ? Eval(*expr.children[1]) : left;
    }
    case Expr::Kind::kOr: {
      Value left = Eval(*expr.children[0]);
      return left.IsTrue() ? left : Eval(*expr.children[1]);
    }
    case Expr::Kind::kConditional:
      if (Eval(*expr.children[1]).IsTrue()) return Eval(*expr.children[0]);
      if (expr.children[2] != nullptr) return Eval(*expr.children[2]);
      return Value::MakeUndefined("the inline if evaluated to false and has no else");
  }
  return {};
}

Value Evaluator::ApplyFilters(const Expr* expr, Value input) {
  if (expr == nullptr) return input;
  const DepthGuard guard(&depth_, options_.limits.depth);
  const Expr* inner = expr->children[0].get();
  if (inner != nullptr) {
    // A chain of filters hangs below its last one.
    input = inner->kind == Expr::Kind::kFilter ? ApplyFilters(inner, std::move(input)) : Eval(*inner);
  }
  const Arguments arguments = EvalArguments(expr->arguments);
  line_ = expr->line;
  Step();
  return ApplyFilter(expr->name, input, arguments);
}

Arguments Evaluator::EvalArguments(const CallArguments& arguments) {
  Arguments out;
  for (const ExprPtr& expr : arguments.positional) out.positional.push_back(Eval(*expr));
  for (const auto& [name, expr] : arguments.named) out.named.emplace_back(name, Eval(*expr));
  if (arguments.list != nullptr) {
    const auto items = Iterate(Eval(*arguments.list));
    Step(items->items.size());
    out.positional.insert(out.positional.end(), items->items.begin(), items->items.end());
  }
  if (arguments.dict != nullptr) {
    const Value dict = Eval(*arguments.dict);
    if (!dict.is(Kind::kDict)) Fail(StrCat("the argument after ** must be a mapping, not ", dict.type_name()));
    Step(dict.dict().items.size());
    for (const auto& [name, value] : dict.dict().items) {
      if (!name.is(Kind::kString)) Fail("the keys of the argument after ** must be strings");
      out.named.emplace_back(name.string(), value);
    }
  }
  return out;
}

Value Evaluator::EvalCall(const Expr& expr) {
  const Expr& callee = *expr.children[0];
  if (callee.kind == Expr::Kind::kAttribute) {
    // A method is called without making a value of it; in the JSON dialect members go before methods.
    const Value self = Eval(*callee.children[0]);
    const Value* member =
        json_dialect() && self.is(Kind::kDict) ? self.dict().Find(std::string_view(callee.name)) : nullptr;
    const Method method = member == nullptr ? FindMethod(self, callee.name) : nullptr;
    const Value function = method == nullptr ? Attribute(self, callee.name) : Value();
    const Arguments arguments = EvalArguments(expr.arguments);
    line_ = expr.line;
    return method != nullptr ? CallMethod(method, self, arguments) : Call(function, arguments);
  }
  const Value function = Eval(callee);
  const Arguments arguments = EvalArguments(expr.arguments);
  line_ = expr.line;
  return Call(function, arguments);
}

Value Evaluator::Call(const Value& callee, const Arguments& arguments) {
  if (callee.is(Kind::kUndefined)) Fail(callee.undefined_reason());
  if (!callee.is(Kind::kCallable)) Fail(StrCat("'", callee.type_name(), "' object is not callable"));
  const std::shared_ptr<const Callable> function = callee.callable();
  return function->call(*this, arguments);
}

Value Evaluator::EvalDict(const Expr& expr) {
  std::vector<std::pair<Value, Value>> items;
  for (size_t i = 0; i < expr.children.size(); i += 2) {
    Value key = Eval(*expr.children[i]);
    Value value = Eval(*expr.children[i + 1]);
    if (!key.is_number() && !key.is(Kind::kString) && !key.is(Kind::kNone))
      Fail(StrCat("'", key.type_name(), "' cannot be the key of a mapping"));
    Step(items.size() / 8);
    const auto same =
        std::find_if(items.begin(), items.end(), [&](const auto& item) { return Equal(item.first, key); });
    if (same == items.end()) {
      items.emplace_back(std::move(key), std::move(value));
    } else {
      same->second = std::move(value);
    }
  }
  return MakeDict(std::move(items));
}

Value Evaluator::EvalSlice(const Expr& expr) {
  const Value object = Eval(*expr.children[0]);
  const Value part = Slice(object, expr);
  return object.is_markup() ? part.AsMarkup() : part;
}

Value Evaluator::Slice(const Value& object, const Expr& expr) {
  std::optional<int64_t> bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    if (expr.children[i + 1] == nullptr) continue;
    const Value bound = Eval(*expr.children[i + 1]);
    if (bound.is(Kind::kNone)) continue;
    if (!bound.is_whole()) Fail(StrCat("slice bounds must be whole numbers, not ", bound.type_name()));
    bounds[i] = bound.integer();
  }
  if (object.is(Kind::kUndefined)) Fail(object.undefined_reason());
  if (!object.is(Kind::kList) && !object.is(Kind::kString))
    Fail(StrCat("'", object.type_name(), "' object cannot be sliced"));
  const int64_t step = bounds[2].value_or(1);
  if (step == 0) Fail("slice step cannot be zero");
  const int64_t size = LengthOf(object);
  const int64_t low = step < 0 ? -1 : 0;
  const int64_t high = step < 0 ? size - 1 : size;
  const auto clamp = [&](int64_t bound) {
    return std::clamp(bound < 0 ? std::max(bound, -size - 1) + size : bound, low, high);
  };
  const int64_t start = bounds[0] ? clamp(*bounds[0]) : step < 0 ? high : low;
  const int64_t stop = bounds[1] ? clamp(*bounds[1]) : step < 0 ? low : high;
  if (object.is(Kind::kString) && step == 1) {
    if (start >= stop) return Text("");
    const std::string& text = object.string();
    const size_t begin = ByteOffset(text, static_cast<size_t>(start));
    const std::string_view rest = std::string_view(text).substr(begin);
    return Text(stop == size ? rest : rest.substr(0, ByteOffset(rest, static_cast<size_t>(stop - start))));
  }
  std::vector<int64_t> picked;
  for (int64_t i = start; step < 0 ? i > stop : i < stop;) {
    picked.push_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  Step(picked.size() / 8);
  if (object.is(Kind::kList)) {
    std::vector<Value> items;
    items.reserve(picked.size());
    for (const int64_t i : picked) items.push_back(object.list()->items[static_cast<size_t>(i)]);
    return MakeList(std::move(items), object.list()->is_tuple);
  }
  Work(object.string().size());
  const std::vector<std::string_view> characters = Characters(object.string());
  std::string text;
  for (const int64_t i : picked) text += characters[static_cast<size_t>(i)];
  return Text(text);
}

Value Evaluator::EvalCompare(const Expr& expr) {
  Value left = Eval(*expr.children[0]);
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    const std::string& op = expr.operators[i];
    Value right = Eval(*expr.children[i + 1]);
    line_ = expr.line;
    bool holds = false;
    if (op == "==")
      holds = Equal(left, right);
    else if (op == "!=")
      holds = !Equal(left, right);
    else if (op == "in")
      holds = Contains(right, left);
    else if (op == "not in")
      holds = !Contains(right, left);
    else if (op == "<")
      holds = Less(left, right);
    else if (op == ">")
      holds = Less(right, left);
    else if (op == "<=")
      holds = Less(left, right) || Equal(left, right);
    else
      holds = Less(right, left) || Equal(left, right);
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

int64_t Evaluator::LengthOf(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined: return 0;
    case Kind::kString: return Scan(value.string().size()), static_cast<int64_t>(Length(value.string()));
    case Kind::kList: return static_cast<int64_t>(value.list()->items.size());
    case Kind::kDict: return static_cast<int64_t>(value.dict().items.size());
    case Kind::kLoop: return static_cast<int64_t>(value.loop()->items->items.size());
    default: Fail(StrCat("object of type '", value.type_name(), "' has no length"));
  }
}

// Numbers.

namespace {

[[noreturn]] void Unsupported(std::string_view op, const Value& left, const Value& right) {
  if (left.is(Kind::kUndefined)) Fail(left.undefined_reason());
  if (right.is(Kind::kUndefined)) Fail(right.undefined_reason());
  Fail(StrCat("unsupported operand types for ", op, ": '", left.type_name(), "' and '", right.type_name(), "'"));
}

Value WholeArithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t out = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &out);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &out);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &out);
  } else if (op == "/") {
    if (b == 0) Fail("division by zero");
    return static_cast<double>(a) / static_cast<double>(b);
  } else if (op == "//" || op == "%") {
    if (b == 0) Fail("division by zero");
    if (b == -1) return op == "%" ? Value(int64_t{0}) : WholeArithmetic("-", 0, a);
    const bool down = a % b != 0 && (a < 0) != (b < 0);  // Python rounds down
    out = op == "//" ? a / b - down : a % b + (down ? b : 0);
  } else {
    if (b < 0) return std::pow(static_cast<double>(a), static_cast<double>(b));
    out = 1;
    for (int64_t square = a, left = b; left > 0 && !overflow;) {
      if (left & 1) overflow = __builtin_mul_overflow(out, square, &out);
      left >>= 1;
      if (left > 0 && __builtin_mul_overflow(square, square, &square)) overflow = true;
    }
  }
  if (overflow) Fail(StrCat("the result of ", a, " ", op, " ", b, " is beyond 64 bits"));
  return out;
}

double Modulo(double a, double b) {
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  return rest == 0 ? std::copysign(0.0, b) : rest;
}

double FloatArithmetic(std::string_view op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") {
    if (a == 0 && b < 0) Fail("0.0 cannot be raised to a negative power");
    return std::pow(a, b);
  }
  if (b == 0) Fail("division by zero");
  if (op == "/") return a / b;
  return op == "%" ? Modulo(a, b) : std::floor((a - Modulo(a, b)) / b + 0.5);
}

}  // namespace

Value Evaluator::Binary(std::string_view op, const Value& left, const Value& right) {
  if (left.is_number() && right.is_number()) {
    if (left.is_whole() && right.is_whole()) return WholeArithmetic(op, left.integer(), right.integer());
    return FloatArithmetic(op, left.number(), right.number());
  }
  if (op == "+" && left.is(Kind::kString) && right.is(Kind::kString)) {
    if (left.is_markup() != right.is_markup())
      return Binary(op, left.is_markup() ? left : Escaped(left), right.is_markup() ? right : Escaped(right));
    Work(left.string().size() + right.string().size() + 32);
    const Value sum = left.string() + right.string();
    return left.is_markup() ? sum.AsMarkup() : sum;
  }
  if (op == "+" && left.is(Kind::kList) && right.is(Kind::kList) &&
      (left.list()->is_tuple == right.list()->is_tuple || json_dialect())) {
    Work((left.list()->items.size() + right.list()->items.size()) * sizeof(Value));
    std::vector<Value> items = left.list()->items;
    items.insert(items.end(), right.list()->items.begin(), right.list()->items.end());
    return MakeList(std::move(items), left.list()->is_tuple);
  }
  if (op == "+" && json_dialect() && (left.is(Kind::kString) || right.is(Kind::kString))) {
    const Value& other = left.is(Kind::kString) ? right : left;
    if (!other.is(Kind::kUndefined) && !other.is(Kind::kNone)) return Text(Str(left) + Str(right));
  }
  if (op == "*" && left.is_whole() && (right.is(Kind::kString) || right.is(Kind::kList)))
    return Binary(op, right, left);
  if (op == "*" && right.is_whole() && (left.is(Kind::kString) || left.is(Kind::kList))) {
    const bool text = left.is(Kind::kString);
    const size_t size = text ? left.string().size() : left.list()->items.size() * sizeof(Value);
    const int64_t times = size == 0 ? 0 : std::max<int64_t>(right.integer(), 0);
    size_t bytes = 0;
    if (__builtin_mul_overflow(size, static_cast<size_t>(times), &bytes)) bytes = SIZE_MAX / 2;
    Work(bytes);
    std::string repeated;
    std::vector<Value> items;
    for (int64_t i = 0; i < times; ++i) {
      if (text) {
        repeated += left.string();
      } else {
        items.insert(items.end(), left.list()->items.begin(), left.list()->items.end());
      }
    }
    if (text && left.is_markup()) return Text(repeated).AsMarkup();
    return text ? Text(repeated) : MakeList(std::move(items), left.list()->is_tuple);
  }
  if (op == "%" && left.is(Kind::kString)) {
    Arguments arguments;
    if (right.is(Kind::kList) && right.list()->is_tuple) {
      arguments.positional = right.list()->items;
    } else {
      arguments.positional.push_back(right);
    }
    return ApplyFilter("format", left, arguments);
  }
  Unsupported(op, left, right);
}

// Comparisons.

const Value* Evaluator::Find(const Dict& dict, const Value& key) {
  const size_t length = key.is(Kind::kString) ? key.string().size() : 0;
  Step(dict.items.size() / 8 + dict.items.size() * length / 1024);
  return dict.Find(key);
}

bool Evaluator::Equal(const Value& a, const Value& b) {
  Step();
  if (a.is_number() && b.is_number())
    return a.is_whole() && b.is_whole() ? a.integer() == b.integer() : a.number() == b.number();
  if (a.kind() != b.kind()) return false;
  if (a.is(Kind::kString)) {
    if (a.string().size() != b.string().size()) return false;
    Scan(a.string().size());
    return a.string() == b.string();
  }
  if (a.is(Kind::kList)) {
    const List& x = *a.list();
    const List& y = *b.list();
    if (x.items.size() != y.items.size() || (x.is_tuple != y.is_tuple && !json_dialect())) return false;
    for (size_t i = 0; i < x.items.size(); ++i)
      if (!Equal(x.items[i], y.items[i])) return false;
    return true;
  }
  if (a.is(Kind::kDict)) {
    if (a.dict().items.size() != b.dict().items.size()) return false;
    for (const auto& [key, value] : a.dict().items) {
      const Value* other = Find(b.dict(), key);
      if (other == nullptr || !Equal(value, *other)) return false;
    }
    return true;
  }
  return a.SameObject(b);
}

bool Evaluator::Less(const Value& a, const Value& b) {
  Step();
  if (a.is_number() && b.is_number())
    return a.is_whole() && b.is_whole() ? a.integer() < b.integer() : a.number() < b.number();
  if (a.is(Kind::kString) && b.is(Kind::kString)) {
    Scan(std::min(a.string().size(), b.string().size()));
    return a.string() < b.string();  // bytes of UTF-8 order as code points do
  }
  if (a.is(Kind::kList) && b.is(Kind::kList) && a.list()->is_tuple == b.list()->is_tuple) {
    const auto& x = a.list()->items;
    const auto& y = b.list()->items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!Equal(x[i], y[i])) return Less(x[i], y[i]);
    return x.size() < y.size();
  }
  Unsupported("<", a, b);
}

bool Evaluator::Contains(const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kString:
      if (!item.is(Kind::kString)) {
        if (json_dialect()) return false;
        if (item.is(Kind::kUndefined)) Fail(item.undefined_reason());
        Fail(StrCat("'in <string>' needs a string on the left, not ", item.type_name()));
      }
      ScanFor(container.string().size(), item.string().size());
      return container.string().find(item.string()) != std::string::npos;
    case Kind::kDict: return Find(container.dict(), item) != nullptr;
    default: {
      const auto items = Iterate(container);
      return std::any_of(items->items.begin(), items->items.end(), [&](const Value& value) {
        // There true is not 1.
        if (json_dialect() && value.is(Kind::kBool) != item.is(Kind::kBool)) return false;
        return Equal(value, item);
      });
    }
  }
}

}  // namespace quern::jinja
