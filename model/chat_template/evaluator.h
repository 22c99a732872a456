#pragma once

#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/chat_template/jinja.h"
#include "model/chat_template/parser.h"
#include "model/chat_template/value.h"

namespace quern::jinja {

// Bounds the stack: what runs or evaluates one in the other.
class DepthGuard {
 public:
  DepthGuard(int* depth, int limit) : depth_(depth) {
    if (*depth_ >= limit) FailLimit("the template calls itself too deeply");
    ++*depth_;
  }
  ~DepthGuard() { --*depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  int* depth_;
};

struct Scope {
  std::vector<std::pair<std::string, Value>> variables;
  std::shared_ptr<Scope> parent;
  Value* Find(std::string_view name);
  void Set(std::string_view name, Value value);
};

// Runs one template once. Everything that costs time or memory is charged to the limits; what goes wrong is thrown as
// Failure. Values never outlive it: closures point into the template's tree.
class Evaluator {
 public:
  explicit Evaluator(const RenderOptions& options);
  ~Evaluator();
  void SetVariable(const std::string& name, Value value) { scope_->Set(name, std::move(value)); }
  Rendering Run(const Body& body);
  int line() const { return line_; }

  bool json_dialect() const { return options_.dialect == Dialect::kJson; }
  const RenderOptions& options() const { return options_; }

  // Charges. Scan: for looking at `bytes` of text.
  void Step(uint64_t count = 1);
  void Scan(size_t bytes) { Step(1 + bytes / 32); }
  void ScanFor(size_t bytes, size_t wanted) { Step(1 + bytes / 32 + bytes * wanted / 1024); }  // a search, at its worst
  const Value* Find(const Dict& dict, const Value& key);
  void Work(size_t bytes);

  Value Text(std::string_view text);
  Value MakeList(std::vector<Value> items, bool is_tuple = false);
  Value MakePair(Value first, Value second);
  Value MakeDict(std::vector<std::pair<Value, Value>> items);  // keys must be hashable and different
  Value MakeLazy(std::vector<Value> items);                    // a generator, in the JSON dialect a list
  Value MakeFunction(std::string name, int depth, std::function<Value(Evaluator&, const Arguments&)> call);
  Value MakeNamespace(std::vector<std::pair<std::string, Value>> items);

  // The elements: of a list, keys of a mapping, characters of a string, none of undefined. Uses a generator up.
  std::shared_ptr<const List> Iterate(const Value& value);
  int64_t LengthOf(const Value& value);
  bool Equal(const Value& a, const Value& b);
  bool Less(const Value& a, const Value& b);
  bool Contains(const Value& container, const Value& item);
  Value Attribute(const Value& value, const std::string& name);
  Value Subscript(const Value& value, const Value& key);
  Value Call(const Value& callee, const Arguments& arguments);
  Value CallMethod(Value (*method)(Evaluator&, const Value&, const Arguments&), const Value& self,
                   const Arguments& arguments);
  Value Binary(std::string_view op, const Value& left, const Value& right);

  // What is printed: Python's str(), or the JSON dialect's.
  std::string Str(const Value& value);
  // The value inside a printed container.
  void AppendRepr(const Value& value, std::string* out);
  Value Escaped(const Value& value);  // its text with <, >, &, ' and " as HTML entities

  struct JsonStyle {
    bool ascii = false;
    bool sort_keys = false;
    std::optional<std::string> indent;
    std::string item_separator = ", ";
    std::string key_separator = ": ";
  };
  void AppendJson(const Value& value, const JsonStyle& style, int level, std::string* out);

  Value ApplyFilter(const std::string& name, const Value& input, const Arguments& arguments);
  bool ApplyTest(const std::string& name, const Value& input, const Arguments& arguments);

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  class InScope;

  Flow RunBody(const Body& body);
  Flow Execute(const Stmt& statement);
  Flow ExecuteFor(const Stmt& statement);
  void ExecuteCall(const Stmt& statement);
  std::string Capture(const Body& body);
  Value Closure(const std::string& name, const Parameters& parameters, const Body& body);
  Value RunClosure(const std::string& name, const Parameters& parameters, const Body& body,
                   const std::shared_ptr<Scope>& scope, const Arguments& arguments);
  void Assign(const Expr& target, Value value);
  void Print(std::string_view text);

  Value Eval(const Expr& expr);
  Value EvalCall(const Expr& expr);
  Value EvalCompare(const Expr& expr);
  Value EvalSlice(const Expr& expr);
  Value Slice(const Value& object, const Expr& expr);
  Value EvalDict(const Expr& expr);
  Value ApplyFilters(const Expr* expr, Value input);
  Arguments EvalArguments(const CallArguments& arguments);
  Value Lookup(const std::string& name);

  RenderOptions options_;
  uint64_t steps_ = 0;
  uint64_t work_ = 0;
  int depth_ = 0;
  int line_ = 0;
  std::shared_ptr<Scope> scope_;
  Rendering result_;
  std::string* out_ = nullptr;
  // Cleared at the end: what values can be cycles through.
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  std::vector<std::shared_ptr<Scope>> captured_scopes_;
};

// Variables that every template has: range, namespace, dict, raise_exception, strftime_now. Undefined if not `name`.
Value GlobalFunction(Evaluator& evaluator, std::string_view name);
// The method `name` of a value of this type, or null. Methods that change their object are refused when called.
using Method = Value (*)(Evaluator&, const Value& self, const Arguments&);
Method FindMethod(const Value& value, std::string_view name);
using Filter = Value (*)(Evaluator&, const Value& input, const Arguments&);
Filter FindTextFilter(std::string_view name);
Filter FindSequenceFilter(std::string_view name);
using IsTest = bool (*)(Evaluator&, const Value& input, const Arguments&);
IsTest FindTest(std::string_view name);
// "a.b.0" of an item, as map(attribute=...) and sort(attribute=...) read it.
Value AttributePath(Evaluator& evaluator, const Value& item, const Value& path);

// Arguments by position or name; null where not given. Throws for more, or other names.
std::vector<const Value*> Bind(std::string_view function, const Arguments& arguments,
                               std::initializer_list<std::string_view> names);
// Of the right type, or a Failure that names the function.
int64_t WholeNumber(std::string_view function, const Value& value);
const std::string& StringOf(std::string_view function, const Value& value);

}  // namespace quern::jinja
