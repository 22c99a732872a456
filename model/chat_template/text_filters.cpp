// Filters on one value: text, numbers, JSON.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "base/strings.h"
#include "model/chat_template/evaluator.h"
#include "model/chat_template/text.h"

namespace quern::jinja {
namespace {

// Text filters take any value as its text.
template <std::string (*change)(std::string_view)>
Value Changed(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  Bind("the filter", arguments, {});
  const std::string text = evaluator.Str(input);
  evaluator.Scan(4 * text.size());
  return evaluator.Text(change(text));
}

Value Trim(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("trim", arguments, {"chars"});
  const std::string* chars = bound[0] != nullptr && !bound[0]->is(Kind::kNone) ? &StringOf("trim", *bound[0]) : nullptr;
  const std::string text = evaluator.Str(input);
  evaluator.ScanFor(text.size(), chars != nullptr ? chars->size() : 0);
  return evaluator.Text(StripRight(StripLeft(text, chars), chars));
}

Value ReplaceFilter(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("replace", arguments, {"old", "new", "count"});
  if (bound[0] == nullptr || bound[1] == nullptr) Fail("replace needs the old and the new text");
  const std::string text = evaluator.Str(input);
  const std::string from = evaluator.Str(*bound[0]);
  const std::string to = evaluator.Str(*bound[1]);
  const int64_t limit = bound[2] != nullptr && !bound[2]->is(Kind::kNone) ? WholeNumber("replace", *bound[2]) : -1;
  evaluator.ScanFor(4 * text.size(), from.size() / 2);
  evaluator.Work(ReplacedSize(text, from, to, limit));
  return Replace(text, from, to, limit);
}

Value Indent(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("indent", arguments, {"width", "first", "blank"});
  std::string space(4, ' ');
  if (bound[0] != nullptr && bound[0]->is(Kind::kString)) {
    space = bound[0]->string();
  } else if (bound[0] != nullptr) {
    space.assign(static_cast<size_t>(std::clamp<int64_t>(WholeNumber("indent", *bound[0]), 0, 100'000)), ' ');
  }
  const bool first = bound[1] != nullptr && bound[1]->IsTrue();
  const bool blank = bound[2] != nullptr && bound[2]->IsTrue();
  const std::string text = evaluator.Str(input) + "\n";
  evaluator.Scan(4 * text.size());
  std::string out;
  bool later = false;
  for (const std::string_view line : SplitLines(text, false)) {
    if (later) out += '\n';
    if (later ? blank || !line.empty() : first) out += space;
    evaluator.Work(space.size() + line.size());
    out += line;
    later = true;
  }
  return evaluator.Text(out);
}

std::optional<int64_t> ParseWhole(std::string text, int base) {
  std::erase(text, '_');
  std::string_view rest = StripRight(StripLeft(text, nullptr), nullptr);
  const bool negative = rest.starts_with('-');
  if (negative || rest.starts_with('+')) rest.remove_prefix(1);
  const auto prefix = [&](std::string_view marks) {
    if (rest.size() > 2 && rest[0] == '0' && marks.find(rest[1]) != std::string_view::npos) rest.remove_prefix(2);
  };
  if (base == 16) prefix("xX");
  if (base == 8) prefix("oO");
  if (base == 2) prefix("bB");
  int64_t value = 0;
  const auto [stop, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value, base);
  if (error != std::errc() || stop != rest.data() + rest.size() || value < 0) return std::nullopt;
  return negative ? -value : value;
}

std::optional<double> ParseFloat(std::string text) {
  std::erase(text, '_');
  const std::string trimmed(StripRight(StripLeft(text, nullptr), nullptr));
  if (trimmed.empty() || trimmed.find_first_of("xX") != std::string::npos) return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(trimmed.c_str(), &end);
  return end == trimmed.c_str() + trimmed.size() ? std::optional(value) : std::nullopt;
}

std::optional<int64_t> Truncated(double value) {
  if (!(std::fabs(value) < 9.2e18)) return std::nullopt;
  return static_cast<int64_t>(value);
}

Value Int(Evaluator&, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("int", arguments, {"default", "base"});
  const Value fallback = bound[0] != nullptr ? *bound[0] : Value(int64_t{0});
  const int64_t base = bound[1] != nullptr ? WholeNumber("int", *bound[1]) : 10;
  if (base < 2 || base > 36) Fail("int: the base must be 2 to 36");
  std::optional<int64_t> value;
  if (input.is_whole()) value = input.integer();
  if (input.is(Kind::kFloat)) value = Truncated(input.number());
  if (input.is(Kind::kString)) {
    value = ParseWhole(input.string(), static_cast<int>(base));
    const auto number = value ? std::nullopt : ParseFloat(input.string());
    if (number) value = Truncated(*number);
  }
  return value ? Value(*value) : fallback;
}

Value Float(Evaluator&, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("float", arguments, {"default"});
  if (input.is_number()) return input.number();
  const auto number = input.is(Kind::kString) ? ParseFloat(input.string()) : std::nullopt;
  if (number) return *number;
  return bound[0] != nullptr ? *bound[0] : Value(0.0);
}

Value String(Evaluator& evaluator, const Value& input, const Arguments&) {
  return input.is(Kind::kString) ? input : evaluator.Text(evaluator.Str(input));
}

Value Abs(Evaluator& evaluator, const Value& input, const Arguments&) {
  if (!input.is_number()) Fail(StrCat("abs needs a number, not ", input.type_name()));
  if (input.is(Kind::kFloat)) return std::fabs(input.number());
  return input.integer() < 0 ? evaluator.Binary("-", int64_t{0}, input) : Value(input.integer());
}

Value Round(Evaluator&, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("round", arguments, {"precision", "method"});
  if (!input.is_number()) Fail(StrCat("round needs a number, not ", input.type_name()));
  const int64_t precision = bound[0] != nullptr ? std::clamp<int64_t>(WholeNumber("round", *bound[0]), -300, 300) : 0;
  const std::string method = bound[1] != nullptr ? StringOf("round", *bound[1]) : "common";
  const double value = input.number();
  if (method == "common" && input.is_whole() && precision >= 0) return input.integer();
  if (method == "common") {
    if (precision >= 0 && std::isfinite(value))
      return std::strtod(StrFormat("%.*f", static_cast<int>(precision), value).c_str(), nullptr);
    const double scale = std::pow(10.0, static_cast<double>(-precision));
    return std::nearbyint(value / scale) * scale;
  }
  if (method != "ceil" && method != "floor") Fail("round: the method must be common, ceil or floor");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  return (method == "ceil" ? std::ceil(value * scale) : std::floor(value * scale)) / scale;
}

Value Default(Evaluator&, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("default", arguments, {"default_value", "boolean"});
  const bool falsy = bound[1] != nullptr && bound[1]->IsTrue() && !input.IsTrue();
  if (!input.is(Kind::kUndefined) && !falsy) return input;
  return bound[0] != nullptr ? *bound[0] : Value(std::string());
}

Value Center(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("center", arguments, {"width"});
  Arguments width;
  width.positional.push_back(bound[0] != nullptr ? *bound[0] : Value(int64_t{80}));
  const Value text = String(evaluator, input, {});
  return FindMethod(text, "center")(evaluator, text, width);
}

Value Truncate(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("truncate", arguments, {"length", "killwords", "end", "leeway"});
  const int64_t length = bound[0] != nullptr ? WholeNumber("truncate", *bound[0]) : 255;
  const std::string end = bound[2] != nullptr ? StringOf("truncate", *bound[2]) : "...";
  const int64_t leeway = bound[3] != nullptr && !bound[3]->is(Kind::kNone) ? WholeNumber("truncate", *bound[3]) : 5;
  const auto end_length = static_cast<int64_t>(Length(end));
  if (length < end_length || leeway < 0) Fail("truncate: the length must hold the end, the leeway be at least 0");
  const Value text = String(evaluator, input, {});
  const int64_t size = evaluator.LengthOf(text);
  if (size <= length || size - length <= leeway) return text;
  std::string_view kept =
      std::string_view(text.string()).substr(0, ByteOffset(text.string(), static_cast<size_t>(length - end_length)));
  if (bound[1] == nullptr || !bound[1]->IsTrue()) kept = kept.substr(0, kept.rfind(' '));
  return evaluator.Text(std::string(kept) + end);
}

Value WordCount(Evaluator& evaluator, const Value& input, const Arguments&) {
  const std::string text = evaluator.Str(input);
  evaluator.Scan(4 * text.size());
  return static_cast<int64_t>(Split(text, nullptr, -1).size());
}

Value Escape(Evaluator& evaluator, const Value& input, const Arguments&) { return evaluator.Escaped(input); }

// Nothing is escaped, but + takes the text for markup.
Value Safe(Evaluator& evaluator, const Value& input, const Arguments&) {
  const Value text = evaluator.Text(evaluator.Str(input));
  return evaluator.json_dialect() ? text : text.AsMarkup();
}

Value UrlEncode(Evaluator& evaluator, const Value& input, const Arguments&) {
  std::string out;
  const std::string text = evaluator.Str(input);
  evaluator.Work(3 * text.size());
  for (const char c : text) {
    const bool kept = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                      std::string_view("_.-~/").find(c) != std::string_view::npos;
    out += kept ? std::string(1, c) : StrFormat("%%%02X", static_cast<unsigned>(static_cast<unsigned char>(c)));
  }
  return evaluator.Text(out);
}

// printf as Python has it: %s %r %d %i %x %o %f %e %g %c %%, with flags, width and precision.
Value Format(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const std::string& format = StringOf("format", input);
  evaluator.Scan(4 * format.size());
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    const size_t begin = i++;
    while (i < format.size() && std::string_view("-+ #0123456789.").find(format[i]) != std::string_view::npos) ++i;
    if (i >= format.size() || i - begin > 12) Fail("format: incomplete or too long conversion");
    const char kind = format[i];
    if (kind == '%') {
      out += '%';
      continue;
    }
    if (next >= arguments.positional.size() || !arguments.named.empty())
      Fail("format: not enough arguments, or named ones");
    const Value& value = arguments.positional[next++];
    const std::string spec = format.substr(begin, i - begin);
    if (spec.find_first_of("123456789") != std::string::npos &&
        std::strtol(spec.c_str() + spec.find_first_of("123456789"), nullptr, 10) > 1000)
      Fail("format: widths go up to 1000");
    const size_t dot = spec.find('.');
    if (dot != std::string::npos && std::strtol(spec.c_str() + dot + 1, nullptr, 10) > 1000)
      Fail("format: precisions go up to 1000");
    std::string piece;
    if (kind == 's' || kind == 'r') {
      std::string text = evaluator.Str(value);
      if (kind == 'r') {
        text.clear();
        evaluator.AppendRepr(value, &text);
      }
      // Width and precision count characters.
      const size_t length = Length(text);
      const auto number = [&](size_t at) { return static_cast<size_t>(std::strtol(spec.c_str() + at, nullptr, 10)); };
      if (dot != std::string::npos && number(dot + 1) < length)
        text = text.substr(0, ByteOffset(text, number(dot + 1)));
      const size_t width_at = spec.find_first_of("123456789");
      const size_t width = width_at < std::min(dot, spec.size()) ? number(width_at) : 0;
      const std::string pad(width - std::min(width, Length(text)), ' ');
      piece = spec.find('-') != std::string::npos ? text + pad : pad + text;
    } else if (kind == 'd' || kind == 'i' || kind == 'x' || kind == 'X' || kind == 'o') {
      if (!value.is_number())
        Fail(StrCat("format: %", std::string(1, kind), " needs a number, not ", value.type_name()));
      const auto whole = value.is_whole() ? value.integer() : Truncated(value.number()).value_or(0);
      piece = StrFormat((spec + "ll" + kind).c_str(), static_cast<long long>(whole));
    } else if (std::string_view("feEgGF").find(kind) != std::string_view::npos) {
      if (!value.is_number())
        Fail(StrCat("format: %", std::string(1, kind), " needs a number, not ", value.type_name()));
      piece = StrFormat((spec + kind).c_str(), value.number());
    } else {
      Fail(StrCat("format: unknown conversion %", Repr(std::string_view(&kind, 1))));
    }
    evaluator.Work(piece.size());
    out += piece;
  }
  if (next < arguments.positional.size()) Fail("format: not all arguments were used");
  return evaluator.Text(out);
}

Value ToJson(Evaluator& evaluator, const Value& input, const Arguments& arguments) {
  const auto bound = Bind("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  Evaluator::JsonStyle style;
  style.ascii = bound[0] != nullptr && bound[0]->IsTrue();
  style.sort_keys = bound[3] != nullptr && bound[3]->IsTrue();
  if (bound[1] != nullptr && bound[1]->is(Kind::kString)) {
    style.indent = bound[1]->string();
  } else if (bound[1] != nullptr && !bound[1]->is(Kind::kNone)) {
    style.indent =
        std::string(static_cast<size_t>(std::clamp<int64_t>(WholeNumber("tojson", *bound[1]), 0, 1000)), ' ');
  }
  if (style.indent) style.item_separator = ",";
  if (bound[2] != nullptr && !bound[2]->is(Kind::kNone)) {
    if (!bound[2]->is(Kind::kList) || bound[2]->list()->items.size() != 2)
      Fail("tojson: separators must be two strings");
    style.item_separator = StringOf("tojson", bound[2]->list()->items[0]);
    style.key_separator = StringOf("tojson", bound[2]->list()->items[1]);
  }
  std::string out;
  evaluator.AppendJson(input, style, 0, &out);
  return evaluator.Text(out);
}

struct NamedFilter {
  std::string_view name;
  Filter filter;
};
constexpr std::array<NamedFilter, 24> kFilters = {{{"abs", Abs},
                                                   {"capitalize", Changed<Capitalize>},
                                                   {"center", Center},
                                                   {"d", Default},
                                                   {"default", Default},
                                                   {"e", Escape},
                                                   {"escape", Escape},
                                                   {"float", Float},
                                                   {"forceescape", Escape},
                                                   {"format", Format},
                                                   {"indent", Indent},
                                                   {"int", Int},
                                                   {"lower", Changed<Lower>},
                                                   {"replace", ReplaceFilter},
                                                   {"round", Round},
                                                   {"safe", Safe},
                                                   {"string", String},
                                                   {"title", Changed<TitleFilter>},
                                                   {"tojson", ToJson},
                                                   {"trim", Trim},
                                                   {"truncate", Truncate},
                                                   {"upper", Changed<Upper>},
                                                   {"urlencode", UrlEncode},
                                                   {"wordcount", WordCount}}};

}  // namespace

Filter FindTextFilter(std::string_view name) {
  for (const NamedFilter& item : kFilters)
    if (item.name == name) return item.filter;
  return nullptr;
}

}  // namespace quern::jinja
