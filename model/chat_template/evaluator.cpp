#include "model/chat_template/evaluator.h"

#include <algorithm>

#include "base/strings.h"

namespace quern::jinja {

// A scope below `parent` for as long as it lives.
class Evaluator::InScope {
 public:
  InScope(Evaluator* evaluator, std::shared_ptr<Scope> parent)
      : evaluator_(evaluator), before_(std::move(evaluator->scope_)) {
    evaluator_->scope_ = std::make_shared<Scope>();
    evaluator_->scope_->parent = std::move(parent);
  }
  explicit InScope(Evaluator* evaluator) : InScope(evaluator, evaluator->scope_) {}
  ~InScope() { evaluator_->scope_ = std::move(before_); }
  InScope(const InScope&) = delete;
  InScope& operator=(const InScope&) = delete;

 private:
  Evaluator* evaluator_;
  std::shared_ptr<Scope> before_;
};

Value* Scope::Find(std::string_view name) {
  for (auto& [key, value] : variables)
    if (key == name) return &value;
  return nullptr;
}

void Scope::Set(std::string_view name, Value value) {
  if (Value* found = Find(name)) {
    *found = std::move(value);
  } else {
    variables.emplace_back(name, std::move(value));
  }
}

Evaluator::Evaluator(const RenderOptions& options) : options_(options), scope_(std::make_shared<Scope>()) {}

Evaluator::~Evaluator() {
  for (const auto& item : namespaces_) item->items.clear();
  for (const auto& item : captured_scopes_) item->variables.clear();
}

Rendering Evaluator::Run(const Body& body) {
  const InScope scope(this);
  out_ = &result_.text;
  RunBody(body);
  return std::move(result_);
}

void Evaluator::Step(uint64_t count) {
  steps_ += count;
  if (steps_ > options_.limits.steps)
    FailLimit(StrCat("the template takes more than ", options_.limits.steps, " steps"));
}

void Evaluator::Work(size_t bytes) {
  work_ += bytes;
  if (bytes > options_.limits.output_bytes)
    FailLimit(StrCat("the template makes a value of more than ", options_.limits.output_bytes, " bytes"));
  if (work_ > options_.limits.work_bytes)
    FailLimit(StrCat("the template makes more than ", options_.limits.work_bytes, " bytes of values"));
}

void Evaluator::Print(std::string_view text) {
  if (out_->size() + text.size() > options_.limits.output_bytes)
    FailLimit(StrCat("the template prints more than ", options_.limits.output_bytes, " bytes"));
  Step(text.size() / 256);
  if (out_ != &result_.text) Work(text.size());  // captured text is live beside what it goes into
  out_->append(text);
}

std::string Evaluator::Capture(const Body& body) {
  std::string text;
  std::string* const before = std::exchange(out_, &text);
  try {
    RunBody(body);
  } catch (...) {
    out_ = before;
    throw;
  }
  out_ = before;
  return text;
}

Evaluator::Flow Evaluator::RunBody(const Body& body) {
  const DepthGuard guard(&depth_, options_.limits.depth);
  for (const auto& statement : body)
    if (const Flow flow = Execute(*statement); flow != Flow::kNormal) return flow;
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::Execute(const Stmt& statement) {
  line_ = statement.line;
  Step();
  switch (statement.kind) {
    case Stmt::Kind::kText: Print(statement.text); break;
    case Stmt::Kind::kOutput: {
      const Value value = Eval(*statement.expr);
      if (value.is(Kind::kString)) {
        Print(value.string());
      } else {
        Print(Str(value));
      }
      break;
    }
    case Stmt::Kind::kIf:
      for (const Stmt::Branch& branch : statement.branches)
        if (branch.condition == nullptr || Eval(*branch.condition).IsTrue()) return RunBody(branch.body);
      break;
    case Stmt::Kind::kFor: return ExecuteFor(statement);
    case Stmt::Kind::kSet: Assign(*statement.target, Eval(*statement.expr)); break;
    case Stmt::Kind::kSetBlock: {
      std::string text;
      {
        const InScope scope(this);
        text = Capture(statement.body);
      }
      Assign(*statement.target, ApplyFilters(statement.expr.get(), Text(text)));
      break;
    }
    case Stmt::Kind::kMacro:
      scope_->Set(statement.name, Closure(statement.name, statement.parameters, statement.body));
      break;
    case Stmt::Kind::kCall: ExecuteCall(statement); break;
    case Stmt::Kind::kFilter: {
      std::string text;
      {
        const InScope scope(this);
        text = Capture(statement.body);
      }
      Print(Str(ApplyFilters(statement.expr.get(), Text(text))));
      break;
    }
    case Stmt::Kind::kWith: {
      std::vector<Value> values;
      for (const ExprPtr& value : statement.values) values.push_back(Eval(*value));
      const InScope scope(this);
      for (size_t i = 0; i < values.size(); ++i) Assign(*statement.targets[i], std::move(values[i]));
      return RunBody(statement.body);
    }
    case Stmt::Kind::kGeneration: {
      const InScope scope(this);
      const size_t begin = out_->size();
      RunBody(statement.body);
      if (out_ == &result_.text) result_.generated.emplace_back(begin, out_->size());
      break;
    }
    case Stmt::Kind::kBreak: return Flow::kBreak;
    case Stmt::Kind::kContinue: return Flow::kContinue;
  }
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::ExecuteFor(const Stmt& statement) {
  const DepthGuard guard(&depth_, options_.limits.depth);
  auto state = std::make_shared<Loop>();
  state->items = Iterate(Eval(*statement.expr));
  if (statement.condition != nullptr) {
    std::vector<Value> kept;
    for (const Value& item : state->items->items) {
      const InScope scope(this);
      Assign(*statement.target, item);
      if (Eval(*statement.condition).IsTrue()) kept.push_back(item);
    }
    state->items = MakeList(std::move(kept)).list();
  }
  if (state->items->items.empty()) {
    const InScope scope(this);
    return RunBody(statement.otherwise);
  }
  Flow flow = Flow::kNormal;
  for (state->index = 0; state->index < state->items->items.size() && flow != Flow::kBreak; ++state->index) {
    Step();
    const InScope scope(this);
    scope_->Set("loop", state);
    Assign(*statement.target, state->items->items[state->index]);
    flow = RunBody(statement.body);
  }
  return Flow::kNormal;
}

void Evaluator::ExecuteCall(const Stmt& statement) {
  const Value caller = Closure("caller", statement.parameters, statement.body);
  const Value callee = Eval(*statement.expr->children[0]);
  Arguments arguments = EvalArguments(statement.expr->arguments);
  arguments.named.emplace_back("caller", caller);
  Print(Str(Call(callee, arguments)));
}

Value Evaluator::Closure(const std::string& name, const Parameters& parameters, const Body& body) {
  // A scope that refers to itself through the closure is cleared at the end.
  if (captured_scopes_.empty() || captured_scopes_.back() != scope_) {
    Work(256);
    captured_scopes_.push_back(scope_);
  }
  return MakeFunction(name, 1,
                      [name, &parameters, &body, scope = scope_](Evaluator& evaluator, const Arguments& arguments) {
                        return evaluator.RunClosure(name, parameters, body, scope, arguments);
                      });
}

Value Evaluator::RunClosure(const std::string& name, const Parameters& parameters, const Body& body,
                            const std::shared_ptr<Scope>& parent, const Arguments& arguments) {
  const DepthGuard guard(&depth_, options_.limits.depth);
  const InScope scope(this, parent);
  const size_t count = parameters.names.size();
  if (arguments.positional.size() > count)
    Fail(StrCat("macro ", name, " takes at most ", count, " arguments, not ", arguments.positional.size()));
  std::vector<bool> given(count, false);
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    scope_->Set(parameters.names[i], arguments.positional[i]);
    given[i] = true;
  }
  for (const auto& [key, value] : arguments.named) {
    const auto found = std::find(parameters.names.begin(), parameters.names.end(), key);
    const auto index = static_cast<size_t>(found - parameters.names.begin());
    if (found == parameters.names.end() && key != "caller") Fail(StrCat("macro ", name, " has no parameter ", key));
    if (index < count && given[index]) Fail(StrCat("macro ", name, " is given ", key, " twice"));
    if (index < count) given[index] = true;
    scope_->Set(key, value);
  }
  for (size_t i = 0; i < count; ++i) {
    if (given[i]) continue;
    scope_->Set(parameters.names[i],
                parameters.defaults[i] != nullptr
                    ? Eval(*parameters.defaults[i])
                    : Value::MakeUndefined(StrCat("parameter '", parameters.names[i], "' was not provided")));
  }
  const int line = line_;
  const std::string text = Capture(body);
  line_ = line;
  return Text(text);
}

void Evaluator::Assign(const Expr& target, Value value) {
  if (target.kind == Expr::Kind::kName) return scope_->Set(target.name, std::move(value));
  if (target.kind == Expr::Kind::kAttribute) {
    const Value object = Lookup(target.children[0]->name);
    if (!object.is(Kind::kNamespace))
      Fail(
          StrCat("cannot assign to ", target.children[0]->name, ".", target.name, ": only a namespace has attributes"));
    for (auto& [name, old] : object.name_space().items) {
      if (name != target.name) continue;
      old = std::move(value);
      return;
    }
    Work(64);
    object.name_space().items.emplace_back(target.name, std::move(value));
    return;
  }
  const auto items = Iterate(value);
  if (items->items.size() != target.children.size())
    Fail(StrCat("cannot unpack ", items->items.size(), " values into ", target.children.size(), " names"));
  for (size_t i = 0; i < items->items.size(); ++i) Assign(*target.children[i], items->items[i]);
}

Value Evaluator::Lookup(const std::string& name) {
  int levels = 0;
  for (Scope* scope = scope_.get(); scope != nullptr; scope = scope->parent.get()) {
    ++levels;
    if (Value* found = scope->Find(name)) return Step(static_cast<uint64_t>(levels) / 8), *found;
  }
  const Value function = GlobalFunction(*this, name);
  if (!function.is(Kind::kUndefined)) return function;
  if (json_dialect() && name == "null") return None{};
  return Value::MakeUndefined(StrCat("'", name.substr(0, 60), "' is undefined"));
}

// Containers.

Value Evaluator::Text(std::string_view text) {
  Work(text.size() + 32);
  return std::string(text);
}

namespace {
constexpr int kMaxValueDepth = 200;

int DepthAbove(int depth, const Value& value) {
  const int above = std::max(depth, value.depth() + 1);
  if (above > kMaxValueDepth) FailLimit(StrCat("values are nested deeper than ", kMaxValueDepth));
  return above;
}
}  // namespace

Value Evaluator::MakeList(std::vector<Value> items, bool is_tuple) {
  Work(items.size() * sizeof(Value) + 64);
  auto list = std::make_shared<List>();
  list->is_tuple = is_tuple;
  for (const Value& item : items) list->depth = DepthAbove(list->depth, item);
  list->items = std::move(items);
  return std::shared_ptr<const List>(std::move(list));
}

Value Evaluator::MakePair(Value first, Value second) {
  std::vector<Value> items;
  items.push_back(std::move(first));
  items.push_back(std::move(second));
  return MakeList(std::move(items), true);
}

Value Evaluator::MakeDict(std::vector<std::pair<Value, Value>> items) {
  Work(items.size() * 2 * sizeof(Value) + 64);
  auto dict = std::make_shared<Dict>();
  for (const auto& [key, value] : items) dict->depth = DepthAbove(DepthAbove(dict->depth, key), value);
  dict->items = std::move(items);
  return std::shared_ptr<const Dict>(std::move(dict));
}

Value Evaluator::MakeLazy(std::vector<Value> items) {
  Value list = MakeList(std::move(items));
  if (json_dialect()) return list;
  return std::make_shared<Generator>(Generator{list.list()});
}

Value Evaluator::MakeFunction(std::string name, int depth, std::function<Value(Evaluator&, const Arguments&)> call) {
  Work(256);
  if (depth > kMaxValueDepth) FailLimit(StrCat("values are nested deeper than ", kMaxValueDepth));
  return std::shared_ptr<const Callable>(new Callable{std::move(name), std::move(call), depth});
}

Value Evaluator::MakeNamespace(std::vector<std::pair<std::string, Value>> items) {
  Work(64 * items.size() + 128);
  namespaces_.push_back(std::make_shared<Namespace>(Namespace{std::move(items)}));
  return namespaces_.back();
}

std::shared_ptr<const List> Evaluator::Iterate(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined: return std::make_shared<const List>();
    case Kind::kList: return value.list();
    case Kind::kGenerator: {
      std::shared_ptr<const List> items = std::move(value.generator().items);
      value.generator().items = nullptr;
      return items != nullptr ? items : std::make_shared<const List>();
    }
    case Kind::kDict: {
      std::vector<Value> keys;
      for (const auto& item : value.dict().items) keys.push_back(item.first);
      Step(keys.size() / 4);
      return MakeList(std::move(keys)).list();
    }
    case Kind::kString: {
      Scan(value.string().size());
      Work(value.string().size() * 96);
      std::vector<Value> characters;
      for (size_t pos = 0; pos < value.string().size();) {
        const size_t begin = pos++;
        while (pos < value.string().size() && (static_cast<unsigned char>(value.string()[pos]) & 0xc0) == 0x80) ++pos;
        characters.push_back(value.string().substr(begin, pos - begin));
      }
      return MakeList(std::move(characters)).list();
    }
    default: Fail(StrCat("'", value.type_name(), "' object is not iterable"));
  }
}

}  // namespace quern::jinja
