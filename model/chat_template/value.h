#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/status.h"

namespace quern::jinja {

class Evaluator;
class Value;
struct Arguments;

// Thrown inside the engine, caught by Template::Parse and Template::Render. Line 0: where the evaluator is.
struct Failure {
  StatusCode code;
  std::string message;
  int line = 0;
};
[[noreturn]] void Fail(std::string message);
[[noreturn]] void FailAt(int line, std::string message);
[[noreturn]] void FailLimit(std::string message);

// Containers never change once a value holds them; a namespace does. `depth`: levels of containers below, which bounds
// every recursion over values, destructors included.
struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  int depth = 1;
};
struct Dict {
  std::vector<std::pair<Value, Value>> items;  // in order of insertion
  int depth = 1;
  const Value* Find(std::string_view key) const;
  const Value* Find(const Value& key) const;
};
// What map(), select() and the like give in the Jinja2 dialect: always true, without length, empty once iterated over.
struct Generator {
  std::shared_ptr<const List> items;
};
// The evaluator clears namespaces at its end, so that cycles through them are no leaks.
struct Namespace {
  std::vector<std::pair<std::string, Value>> items;
};
struct Loop {
  std::shared_ptr<const List> items;
  size_t index = 0;
};
struct Callable {
  std::string name;
  std::function<Value(Evaluator&, const Arguments&)> call;
  int depth = 1;  // of what it holds
};

enum class Kind {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kDict,
  kGenerator,
  kNamespace,
  kLoop,
  kCallable
};

struct Undefined {
  std::shared_ptr<const std::string> reason;  // "'x' is undefined"
};
struct None {};

// A value of the language. Copies are cheap. Strings are valid UTF-8.
class Value {
 public:
  Value() = default;              // undefined
  Value(None) : data_(None{}) {}  // NOLINT: implicit on purpose, as are those below
  Value(bool value) : data_(value) {}
  Value(int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(std::string value) : data_(std::make_shared<const std::string>(std::move(value))) {}
  Value(std::shared_ptr<const List> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Dict> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<Generator> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<Namespace> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<Loop> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Callable> value) : data_(std::move(value)) {}
  Value(const char*) = delete;
  static Value MakeUndefined(std::string reason) {
    Value value;
    value.data_ = Undefined{std::make_shared<const std::string>(std::move(reason))};
    return value;
  }

  Kind kind() const { return static_cast<Kind>(data_.index()); }
  bool is(Kind kind) const { return this->kind() == kind; }
  bool is_number() const { return is(Kind::kBool) || is(Kind::kInt) || is(Kind::kFloat); }
  bool is_whole() const { return is(Kind::kBool) || is(Kind::kInt); }

  bool boolean() const { return std::get<bool>(data_); }
  int64_t integer() const { return is(Kind::kBool) ? boolean() : std::get<int64_t>(data_); }  // of a whole number
  double number() const { return is(Kind::kFloat) ? std::get<double>(data_) : static_cast<double>(integer()); }
  const std::string& string() const { return *std::get<std::shared_ptr<const std::string>>(data_); }
  const std::shared_ptr<const List>& list() const { return std::get<std::shared_ptr<const List>>(data_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data_); }
  const std::shared_ptr<const Dict>& dict_pointer() const { return std::get<std::shared_ptr<const Dict>>(data_); }
  Generator& generator() const { return *std::get<std::shared_ptr<Generator>>(data_); }
  Namespace& name_space() const { return *std::get<std::shared_ptr<Namespace>>(data_); }
  const std::shared_ptr<Loop>& loop() const { return std::get<std::shared_ptr<Loop>>(data_); }
  const std::shared_ptr<const Callable>& callable() const { return std::get<std::shared_ptr<const Callable>>(data_); }
  // A string that `safe` or `escape` gave: what is added to it with + is escaped, as in Jinja2. Tells nothing else.
  bool is_markup() const { return markup_; }
  Value AsMarkup() const {
    Value value = *this;
    value.markup_ = is(Kind::kString);
    return value;
  }
  std::string undefined_reason() const;

  // As Python's type() spells it, for messages.
  const char* type_name() const;
  int depth() const;
  bool IsTrue() const;
  // The same object, for kinds that are objects.
  bool SameObject(const Value& other) const;

 private:
  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, std::shared_ptr<Generator>, std::shared_ptr<Namespace>,
               std::shared_ptr<Loop>, std::shared_ptr<const Callable>>
      data_;
  bool markup_ = false;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

}  // namespace quern::jinja
