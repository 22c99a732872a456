#include <algorithm>
#include <array>

#include "base/strings.h"
#include "model/chat_template/evaluator.h"
#include "model/chat_template/text.h"
#include "model/tokenizer/unicode.h"

namespace quern::jinja {
namespace {

const std::string* OptionalString(std::string_view function, const Value* value) {
  return value == nullptr || value->is(Kind::kNone) ? nullptr : &StringOf(function, *value);
}

template <bool left, bool right>
Value Strip(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const std::string* chars = OptionalString("strip", Bind("strip", arguments, {"chars"})[0]);
  evaluator.ScanFor(self.string().size(), chars != nullptr ? chars->size() : 0);
  std::string_view text = self.string();
  if (left) text = StripLeft(text, chars);
  if (right) text = StripRight(text, chars);
  return evaluator.Text(text);
}

template <std::string (*change)(std::string_view)>
Value Changed(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  Bind("the method", arguments, {});
  evaluator.Scan(4 * self.string().size());
  return evaluator.Text(change(self.string()));
}

std::string SwapCase(std::string_view text) {
  std::string out;
  for (const std::string_view character : Characters(text)) {
    size_t pos = 0;
    out += ClassOf(NextCodePoint(character, &pos)) == LetterClass::kUpper ? Lower(character) : Upper(character);
  }
  return out;
}

Value TextList(Evaluator& evaluator, const std::vector<std::string_view>& parts, bool is_tuple = false) {
  std::vector<Value> out;
  for (const std::string_view part : parts) out.push_back(evaluator.Text(part));
  return evaluator.MakeList(std::move(out), is_tuple);
}

template <bool from_right>
Value SplitText(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("split", arguments, {"sep", "maxsplit"});
  const std::string* separator = OptionalString("split", bound[0]);
  if (separator != nullptr && separator->empty()) Fail("split: empty separator");
  const int64_t limit = bound[1] != nullptr ? WholeNumber("split", *bound[1]) : -1;
  evaluator.ScanFor(8 * self.string().size(), separator != nullptr ? separator->size() / 8 : 0);
  return TextList(
      evaluator, from_right ? SplitFromRight(self.string(), separator, limit) : Split(self.string(), separator, limit));
}

Value SplitTextLines(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("splitlines", arguments, {"keepends"});
  evaluator.Scan(4 * self.string().size());
  return TextList(evaluator, SplitLines(self.string(), bound[0] != nullptr && bound[0]->IsTrue()));
}

template <bool from_right>
Value Partition(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("partition", arguments, {"sep"});
  if (bound[0] == nullptr) Fail("partition needs a separator");
  const std::string& separator = StringOf("partition", *bound[0]);
  if (separator.empty()) Fail("partition: empty separator");
  const std::string_view text = self.string();
  evaluator.ScanFor(text.size(), separator.size());
  const size_t at = from_right ? text.rfind(separator) : text.find(separator);
  if (at == std::string_view::npos)
    return TextList(
        evaluator,
        from_right ? std::vector<std::string_view>{"", "", text} : std::vector<std::string_view>{text, "", ""}, true);
  return TextList(evaluator,
                  {text.substr(0, at), text.substr(at, separator.size()), text.substr(at + separator.size())}, true);
}

// The part of the text between the optional bounds; *offset: where it begins, in code points.
std::string_view Part(Evaluator& evaluator, const Value& self, const Value* begin, const Value* end, int64_t* offset) {
  const int64_t size = evaluator.LengthOf(self);
  const auto at = [&](const Value* bound, int64_t fallback) {
    if (bound == nullptr || bound->is(Kind::kNone)) return fallback;
    const int64_t position = WholeNumber("the method", *bound);
    return std::clamp<int64_t>(position < 0 ? std::max(position, -size) + size : position, 0, size);
  };
  *offset = at(begin, 0);
  const int64_t stop = std::max(at(end, size), *offset);
  const size_t first = ByteOffset(self.string(), static_cast<size_t>(*offset));
  return std::string_view(self.string()).substr(first, ByteOffset(self.string(), static_cast<size_t>(stop)) - first);
}

template <bool at_end>
Value HasAffix(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind(at_end ? "endswith" : "startswith", arguments, {"affix", "start", "end"});
  if (bound[0] == nullptr) Fail("startswith and endswith need a string");
  int64_t offset = 0;
  const std::string_view text = Part(evaluator, self, bound[1], bound[2], &offset);
  const auto matches = [&](const Value& affix) {
    const std::string& wanted = StringOf(at_end ? "endswith" : "startswith", affix);
    evaluator.Scan(std::min(wanted.size(), text.size()));
    return at_end ? text.ends_with(wanted) : text.starts_with(wanted);
  };
  if (!bound[0]->is(Kind::kList) || !bound[0]->list()->is_tuple) return matches(*bound[0]);
  const auto& affixes = bound[0]->list()->items;
  return std::any_of(affixes.begin(), affixes.end(), matches);
}

// find, rfind, index, rindex
template <bool from_right, bool must_exist>
Value FindText(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("find", arguments, {"sub", "start", "end"});
  if (bound[0] == nullptr) Fail("find needs a string");
  const std::string& wanted = StringOf("find", *bound[0]);
  int64_t offset = 0;
  const std::string_view text = Part(evaluator, self, bound[1], bound[2], &offset);
  evaluator.ScanFor(text.size(), wanted.size());
  const size_t at = from_right ? text.rfind(wanted) : text.find(wanted);
  if (at != std::string_view::npos) return offset + static_cast<int64_t>(Length(text.substr(0, at)));
  if (must_exist) Fail("index: substring not found");
  return int64_t{-1};
}

Value CountText(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("count", arguments, {"sub", "start", "end"});
  if (bound[0] == nullptr) Fail("count needs a string");
  const std::string& wanted = StringOf("count", *bound[0]);
  int64_t offset = 0;
  const std::string_view text = Part(evaluator, self, bound[1], bound[2], &offset);
  evaluator.ScanFor(text.size(), wanted.size());
  if (wanted.empty()) return static_cast<int64_t>(Length(text)) + 1;
  int64_t count = 0;
  for (size_t at = text.find(wanted); at != std::string_view::npos; at = text.find(wanted, at + wanted.size())) ++count;
  return count;
}

Value ReplaceText(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("replace", arguments, {"old", "new", "count"});
  if (bound[0] == nullptr || bound[1] == nullptr) Fail("replace needs the old and the new text");
  const std::string& from = StringOf("replace", *bound[0]);
  const std::string& to = StringOf("replace", *bound[1]);
  const int64_t limit = bound[2] != nullptr && !bound[2]->is(Kind::kNone) ? WholeNumber("replace", *bound[2]) : -1;
  evaluator.ScanFor(4 * self.string().size(), from.size() / 2);
  evaluator.Work(ReplacedSize(self.string(), from, to, limit));
  return Replace(self.string(), from, to, limit);
}

Value JoinText(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("join", arguments, {"iterable"});
  if (bound[0] == nullptr) Fail("join needs values");
  std::string out;
  bool first = true;
  const auto elements = evaluator.Iterate(*bound[0]);
  for (const Value& item : elements->items) {
    if (!std::exchange(first, false)) out += self.string();
    out += StringOf("join", item);
    evaluator.Step();
    evaluator.Work(self.string().size() + item.string().size());
  }
  return evaluator.Text(out);
}

template <bool suffix>
Value RemoveAffix(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("removeprefix", arguments, {"affix"});
  if (bound[0] == nullptr) Fail("removeprefix and removesuffix need a string");
  const std::string& affix = StringOf("removeprefix", *bound[0]);
  std::string_view text = self.string();
  if (suffix && text.ends_with(affix)) text.remove_suffix(affix.size());
  if (!suffix && text.starts_with(affix)) text.remove_prefix(affix.size());
  return evaluator.Text(text);
}

// All characters satisfy `test`, and there is one.
template <bool (*test)(char32_t)>
Value All(Evaluator& evaluator, const Value& self, const Arguments&) {
  evaluator.Scan(4 * self.string().size());
  for (size_t pos = 0; pos < self.string().size();)
    if (!test(NextCodePoint(self.string(), &pos))) return false;
  return !self.string().empty();
}
bool IsDigit(char32_t c) { return ClassOf(c) == LetterClass::kDigit; }
bool IsAlnum(char32_t c) { return ClassOf(c) != LetterClass::kOther; }
bool IsAlpha(char32_t c) { return IsAlnum(c) && !IsDigit(c); }
bool IsAsciiChar(char32_t c) { return c < 0x80; }

// There is a cased character, and all of them are of this class.
template <LetterClass wanted>
Value AllCased(Evaluator& evaluator, const Value& self, const Arguments&) {
  evaluator.Scan(4 * self.string().size());
  bool found = false;
  for (size_t pos = 0; pos < self.string().size();) {
    const LetterClass kind = ClassOf(NextCodePoint(self.string(), &pos));
    if (kind != LetterClass::kUpper && kind != LetterClass::kLower) continue;
    if (kind != wanted) return false;
    found = true;
  }
  return found;
}

// Pads to `width`: left and right say where.
template <bool left, bool right>
Value Pad(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("center", arguments, {"width", "fillchar"});
  if (bound[0] == nullptr) Fail("center, ljust and rjust need a width");
  const std::string fill = bound[1] != nullptr ? StringOf("center", *bound[1]) : " ";
  if (Length(fill) != 1) Fail("the fill character must be one character");
  const int64_t width = WholeNumber("center", *bound[0]);
  const int64_t length = evaluator.LengthOf(self);
  const int64_t pad = std::max<int64_t>(width - length, 0);
  evaluator.Work(static_cast<size_t>(std::min<int64_t>(pad, INT64_MAX / 8)) * fill.size() + self.string().size());
  const int64_t before = left && right ? pad / 2 + (pad & width & 1) : left ? pad : 0;
  std::string out;
  for (int64_t i = 0; i < before; ++i) out += fill;
  out += self.string();
  for (int64_t i = before; i < pad; ++i) out += fill;
  return out;
}

Value ZeroFill(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const auto bound = Bind("zfill", arguments, {"width"});
  if (bound[0] == nullptr) Fail("zfill needs a width");
  const int64_t pad = std::max<int64_t>(WholeNumber("zfill", *bound[0]) - evaluator.LengthOf(self), 0);
  evaluator.Work(static_cast<size_t>(pad) + self.string().size());
  const bool sign = self.string().starts_with('-') || self.string().starts_with('+');
  return self.string().substr(0, sign) + std::string(static_cast<size_t>(pad), '0') + self.string().substr(sign);
}

// {}, {0} and {name}, without format specifications or attributes.
Value FormatText(Evaluator& evaluator, const Value& self, const Arguments& arguments) {
  const std::string& format = self.string();
  evaluator.Scan(4 * format.size());
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    const char c = format[i];
    if ((c == '{' || c == '}') && i + 1 < format.size() && format[i + 1] == c) {
      out += format[i++];
      continue;
    }
    if (c == '}') Fail("format: single } in the text");
    if (c != '{') {
      out += c;
      continue;
    }
    const size_t end = format.find('}', i);
    if (end == std::string::npos) Fail("format: { is not closed");
    const std::string field = format.substr(i + 1, end - i - 1);
    i = end;
    const Value* value = nullptr;
    if (field.find_first_not_of("0123456789") == std::string::npos && field.size() < 9) {
      const size_t index = field.empty() ? next++ : static_cast<size_t>(std::stoul(field));
      if (index < arguments.positional.size()) value = &arguments.positional[index];
    }
    for (const auto& [name, named] : arguments.named)
      if (name == field) value = &named;
    if (value == nullptr) Fail(StrCat("format: no argument for {", field.substr(0, 60), "}"));
    const std::string text = evaluator.Str(*value);
    evaluator.Work(text.size());
    out += text;
  }
  return evaluator.Text(out);
}

struct NamedMethod {
  std::string_view name;
  Method method;
};
constexpr std::array<NamedMethod, 40> kStringMethods = {{{"strip", Strip<true, true>},
                                                         {"lstrip", Strip<true, false>},
                                                         {"rstrip", Strip<false, true>},
                                                         {"upper", Changed<Upper>},
                                                         {"lower", Changed<Lower>},
                                                         {"casefold", Changed<Lower>},
                                                         {"title", Changed<TitleMethod>},
                                                         {"capitalize", Changed<Capitalize>},
                                                         {"swapcase", Changed<SwapCase>},
                                                         {"split", SplitText<false>},
                                                         {"rsplit", SplitText<true>},
                                                         {"splitlines", SplitTextLines},
                                                         {"partition", Partition<false>},
                                                         {"rpartition", Partition<true>},
                                                         {"startswith", HasAffix<false>},
                                                         {"endswith", HasAffix<true>},
                                                         {"find", FindText<false, false>},
                                                         {"rfind", FindText<true, false>},
                                                         {"index", FindText<false, true>},
                                                         {"rindex", FindText<true, true>},
                                                         {"count", CountText},
                                                         {"replace", ReplaceText},
                                                         {"join", JoinText},
                                                         {"removeprefix", RemoveAffix<false>},
                                                         {"removesuffix", RemoveAffix<true>},
                                                         {"isspace", All<IsSpace>},
                                                         {"isdigit", All<IsDigit>},
                                                         {"isdecimal", All<IsDigit>},
                                                         {"isnumeric", All<IsNumeric>},
                                                         {"isalpha", All<IsAlpha>},
                                                         {"isalnum", All<IsAlnum>},
                                                         {"isascii", All<IsAsciiChar>},
                                                         {"isprintable", All<IsPrintable>},
                                                         {"isupper", AllCased<LetterClass::kUpper>},
                                                         {"islower", AllCased<LetterClass::kLower>},
                                                         {"center", Pad<true, true>},
                                                         {"ljust", Pad<false, true>},
                                                         {"rjust", Pad<true, false>},
                                                         {"zfill", ZeroFill},
                                                         {"format", FormatText}}};

}  // namespace

Method FindStringMethod(std::string_view name) {
  for (const NamedMethod& item : kStringMethods)
    if (item.name == name) return item.method;
  return nullptr;
}

}  // namespace quern::jinja
