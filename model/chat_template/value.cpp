#include "model/chat_template/value.h"

namespace quern::jinja {

void Fail(std::string message) { throw Failure{StatusCode::kInvalidArgument, std::move(message)}; }
void FailAt(int line, std::string message) { throw Failure{StatusCode::kInvalidArgument, std::move(message), line}; }
void FailLimit(std::string message) { throw Failure{StatusCode::kResourceExhausted, std::move(message)}; }

const Value* Dict::Find(std::string_view key) const {
  for (const auto& [name, value] : items)
    if (name.is(Kind::kString) && name.string() == key) return &value;
  return nullptr;
}

const Value* Dict::Find(const Value& key) const {
  if (key.is(Kind::kString)) return Find(std::string_view(key.string()));
  for (const auto& [name, value] : items) {
    if (name.is_number() && key.is_number() && name.number() == key.number()) return &value;
    if (name.is(Kind::kNone) && key.is(Kind::kNone)) return &value;
  }
  return nullptr;
}

std::string Value::undefined_reason() const {
  const auto& reason = std::get<Undefined>(data_).reason;
  return reason ? *reason : "the value is undefined";
}

const char* Value::type_name() const {
  switch (kind()) {
    case Kind::kUndefined: return "Undefined";
    case Kind::kNone: return "NoneType";
    case Kind::kBool: return "bool";
    case Kind::kInt: return "int";
    case Kind::kFloat: return "float";
    case Kind::kString: return "str";
    case Kind::kList: return list()->is_tuple ? "tuple" : "list";
    case Kind::kDict: return "dict";
    case Kind::kGenerator: return "generator";
    case Kind::kNamespace: return "Namespace";
    case Kind::kLoop: return "LoopContext";
    case Kind::kCallable: return "function";
  }
  return "";
}

int Value::depth() const {
  switch (kind()) {
    case Kind::kList: return list()->depth;
    case Kind::kDict: return dict().depth;
    // One level more than their list, which generators give away when they are used.
    case Kind::kGenerator: return generator().items ? generator().items->depth + 1 : 1;
    case Kind::kLoop: return loop()->items->depth + 1;
    case Kind::kCallable: return callable()->depth;
    default: return 0;
  }
}

bool Value::IsTrue() const {
  switch (kind()) {
    case Kind::kUndefined:
    case Kind::kNone: return false;
    case Kind::kBool: return boolean();
    case Kind::kInt: return integer() != 0;
    case Kind::kFloat: return number() != 0;
    case Kind::kString: return !string().empty();
    case Kind::kList: return !list()->items.empty();
    case Kind::kDict: return !dict().items.empty();
    default: return true;
  }
}

bool Value::SameObject(const Value& other) const {
  if (kind() != other.kind()) return false;
  switch (kind()) {
    case Kind::kUndefined:
    case Kind::kNone: return true;
    case Kind::kBool: return boolean() == other.boolean();
    case Kind::kInt: return integer() == other.integer();
    case Kind::kFloat: return number() == other.number();
    case Kind::kString: return string() == other.string();
    case Kind::kList: return list() == other.list();
    case Kind::kDict: return dict_pointer() == other.dict_pointer();
    case Kind::kGenerator: return &generator() == &other.generator();
    case Kind::kNamespace: return &name_space() == &other.name_space();
    case Kind::kLoop: return loop() == other.loop();
    case Kind::kCallable: return callable() == other.callable();
  }
  return false;
}

}  // namespace quern::jinja
