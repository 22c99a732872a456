// What values look like in text: as Python's str() and repr(), as the JSON dialect prints, and as json.dumps.
#include <algorithm>
#include <cmath>

#include "base/strings.h"
#include "model/chat_template/evaluator.h"
#include "model/chat_template/text.h"

namespace quern::jinja {

std::string Evaluator::Str(const Value& value) {
  Step();
  switch (value.kind()) {
    case Kind::kUndefined: return "";
    case Kind::kString: return value.string();
    case Kind::kNone:
      if (json_dialect()) return "";
      break;
    default: break;
  }
  std::string text;
  AppendRepr(value, &text);
  Work(text.size());
  return text;
}

void Evaluator::AppendRepr(const Value& value, std::string* out) {
  Step();
  Work(out->size() > options_.limits.output_bytes ? out->size() : 0);
  const bool json = json_dialect();
  switch (value.kind()) {
    case Kind::kUndefined: *out += json ? "undefined" : "Undefined"; return;
    case Kind::kNone: *out += json ? "null" : "None"; return;
    case Kind::kBool: *out += json ? (value.boolean() ? "true" : "false") : value.boolean() ? "True" : "False"; return;
    case Kind::kInt: *out += std::to_string(value.integer()); return;
    case Kind::kFloat: *out += FloatText(value.number()); return;
    case Kind::kString:
      Scan(value.string().size());
      if (json) return AppendJsonString(value.string(), false, out);
      *out += value.is_markup() ? "Markup(" + Repr(value.string()) + ")" : Repr(value.string());
      return;
    case Kind::kList: {
      const List& list = *value.list();
      const bool tuple = list.is_tuple && !json;
      *out += tuple ? '(' : '[';
      for (size_t i = 0; i < list.items.size(); ++i) {
        if (i > 0) *out += ", ";
        AppendRepr(list.items[i], out);
      }
      if (tuple && list.items.size() == 1) *out += ',';
      *out += tuple ? ')' : ']';
      return;
    }
    case Kind::kDict: {
      *out += '{';
      bool first = true;
      for (const auto& [key, member] : value.dict().items) {
        if (!std::exchange(first, false)) *out += ", ";
        AppendRepr(key, out);
        *out += ": ";
        AppendRepr(member, out);
      }
      *out += '}';
      return;
    }
    case Kind::kGenerator: *out += "<generator object>"; return;
    case Kind::kNamespace: *out += "<Namespace>"; return;
    case Kind::kLoop:
      *out += StrCat("<LoopContext ", value.loop()->index + 1, "/", value.loop()->items->items.size(), ">");
      return;
    case Kind::kCallable: *out += StrCat("<function ", value.callable()->name, ">"); return;
  }
}

Value Evaluator::Escaped(const Value& value) {
  if (value.is_markup()) return value;
  std::string out;
  const std::string text = Str(value);
  Work(5 * text.size());
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&#34;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return Text(out).AsMarkup();
}

namespace {

std::string JsonKey(const Value& key) {
  switch (key.kind()) {
    case Kind::kString: return key.string();
    case Kind::kNone: return "null";
    case Kind::kBool: return key.boolean() ? "true" : "false";
    case Kind::kInt: return std::to_string(key.integer());
    case Kind::kFloat: return FloatText(key.number());
    default: Fail(StrCat("JSON keys must be strings, not ", key.type_name()));
  }
}

std::string JsonFloat(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  return FloatText(value);
}

}  // namespace

void Evaluator::AppendJson(const Value& value, const JsonStyle& style, int level, std::string* out) {
  Step();
  Work(out->size() > options_.limits.output_bytes ? out->size() : 0);
  const auto new_line = [&](int at) {
    if (!style.indent) return;
    *out += '\n';
    Work(style.indent->size() * static_cast<size_t>(at));
    for (int i = 0; i < at; ++i) *out += *style.indent;
  };
  switch (value.kind()) {
    case Kind::kNone: *out += "null"; return;
    case Kind::kBool: *out += value.boolean() ? "true" : "false"; return;
    case Kind::kInt: *out += std::to_string(value.integer()); return;
    case Kind::kFloat: *out += JsonFloat(value.number()); return;
    case Kind::kString: Scan(value.string().size()); return AppendJsonString(value.string(), style.ascii, out);
    case Kind::kList: {
      const std::vector<Value>& items = value.list()->items;
      *out += '[';
      for (size_t i = 0; i < items.size(); ++i) {
        if (i > 0) *out += style.item_separator;
        new_line(level + 1);
        AppendJson(items[i], style, level + 1, out);
      }
      if (!items.empty()) new_line(level);
      *out += ']';
      return;
    }
    case Kind::kDict: {
      std::vector<const std::pair<Value, Value>*> items;
      for (const auto& item : value.dict().items) items.push_back(&item);
      if (style.sort_keys)
        std::stable_sort(items.begin(), items.end(), [&](auto* a, auto* b) { return Less(a->first, b->first); });
      *out += '{';
      for (size_t i = 0; i < items.size(); ++i) {
        if (i > 0) *out += style.item_separator;
        new_line(level + 1);
        const std::string key = JsonKey(items[i]->first);
        Scan(key.size());
        AppendJsonString(key, style.ascii, out);
        *out += style.key_separator;
        AppendJson(items[i]->second, style, level + 1, out);
      }
      if (!items.empty()) new_line(level);
      *out += '}';
      return;
    }
    default: Fail(StrCat("an object of type ", value.type_name(), " cannot be written as JSON"));
  }
}

}  // namespace quern::jinja
