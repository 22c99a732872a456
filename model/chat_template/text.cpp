#include "model/chat_template/text.h"

#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/strings.h"
#include "model/tokenizer/unicode.h"

namespace quern::jinja {
namespace {

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

bool Contains(const std::string* chars, char32_t c) {
  if (chars == nullptr) return IsSpace(c);
  for (size_t pos = 0; pos < chars->size();)
    if (NextCodePoint(*chars, &pos) == c) return true;
  return false;
}

template <typename Change>
std::string ChangeCase(std::string_view text, Change change) {
  icu::UnicodeString unicode =
      icu::UnicodeString::fromUTF8(icu::StringPiece(text.data(), static_cast<int>(text.size())));
  change(unicode);
  std::string out;
  unicode.toUTF8String(out);
  return out;
}

std::string Title(std::string_view character) {
  size_t pos = 0;
  std::string out;
  AppendUtf8(static_cast<char32_t>(u_totitle(static_cast<UChar32>(NextCodePoint(character, &pos)))), &out);
  return out;
}

bool EndsLine(char32_t c) {
  return c == '\n' || c == '\r' || c == '\v' || c == '\f' || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

}  // namespace

bool IsSpace(char32_t c) {
  if (c < 0x80) return (c >= 9 && c <= 13) || (c >= 28 && c <= 32);
  return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
         c == 0x202f || c == 0x205f || c == 0x3000;
}

bool IsPrintable(char32_t c) {
  if (c < 0x80) return c >= 0x20 && c < 0x7f;
  constexpr uint32_t kHidden = U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CS_MASK | U_GC_CO_MASK | U_GC_CN_MASK | U_GC_Z_MASK;
  return (U_GET_GC_MASK(static_cast<UChar32>(c)) & kHidden) == 0;
}

LetterClass ClassOf(char32_t c) {
  const uint32_t mask = U_GET_GC_MASK(static_cast<UChar32>(c));
  if (mask & U_GC_ND_MASK) return LetterClass::kDigit;
  if (u_isULowercase(static_cast<UChar32>(c))) return LetterClass::kLower;
  if (u_isUUppercase(static_cast<UChar32>(c)) || (mask & U_GC_LT_MASK)) return LetterClass::kUpper;
  return mask & U_GC_L_MASK ? LetterClass::kLetter : LetterClass::kOther;
}

size_t Length(std::string_view text) {
  return text.size() - static_cast<size_t>(std::count_if(text.begin(), text.end(), IsContinuation));
}

size_t ByteOffset(std::string_view text, size_t index) {
  size_t pos = 0;
  for (; index > 0; --index) NextCodePoint(text, &pos);
  return pos;
}

std::vector<std::string_view> Characters(std::string_view text) {
  std::vector<std::string_view> out;
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    NextCodePoint(text, &pos);
    out.push_back(text.substr(begin, pos - begin));
  }
  return out;
}

std::string_view StripLeft(std::string_view text, const std::string* chars) {
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    if (!Contains(chars, NextCodePoint(text, &pos))) return text.substr(begin);
  }
  return {};
}

std::string_view StripRight(std::string_view text, const std::string* chars) {
  while (!text.empty()) {
    const size_t begin = PreviousBoundary(text, text.size());
    size_t pos = begin;
    if (!Contains(chars, NextCodePoint(text, &pos))) break;
    text = text.substr(0, begin);
  }
  return text;
}

std::string Upper(std::string_view text) {
  if (!IsAscii(text)) return ChangeCase(text, [](icu::UnicodeString& s) { s.toUpper(icu::Locale::getRoot()); });
  std::string out(text);
  for (char& c : out)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return out;
}

std::string Lower(std::string_view text) {
  if (!IsAscii(text)) return ChangeCase(text, [](icu::UnicodeString& s) { s.toLower(icu::Locale::getRoot()); });
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

std::string Capitalize(std::string_view text) {
  if (text.empty()) return {};
  const size_t first = ByteOffset(text, 1);
  return Title(text.substr(0, first)) + Lower(text.substr(first));
}

std::string TitleMethod(std::string_view text) {
  std::string out;
  bool inside = false;  // after a cased character
  for (const std::string_view character : Characters(text)) {
    size_t pos = 0;
    const LetterClass kind = ClassOf(NextCodePoint(character, &pos));
    const bool cased = kind == LetterClass::kUpper || kind == LetterClass::kLower;
    out += !cased ? std::string(character) : inside ? Lower(character) : Title(character);
    inside = cased;
  }
  return out;
}

std::string TitleFilter(std::string_view text) {
  std::string out;
  bool inside = false;
  for (const std::string_view character : Characters(text)) {
    size_t pos = 0;
    const char32_t c = NextCodePoint(character, &pos);
    const bool gap = IsSpace(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    out += gap ? std::string(character) : inside ? Lower(character) : Upper(character);
    inside = !gap;
  }
  return out;
}

std::vector<std::string_view> Split(std::string_view text, const std::string* separator, int64_t limit) {
  std::vector<std::string_view> out;
  if (separator != nullptr) {
    size_t begin = 0;
    for (; limit != 0; --limit) {
      const size_t found = text.find(*separator, begin);
      if (found == std::string_view::npos) break;
      out.push_back(text.substr(begin, found - begin));
      begin = found + separator->size();
    }
    out.push_back(text.substr(begin));
    return out;
  }
  for (text = StripLeft(text, nullptr); !text.empty(); --limit) {
    size_t end = 0;
    for (size_t pos = 0; pos < text.size() && !IsSpace(NextCodePoint(text, &pos));) end = pos;
    if (limit == 0 || end == text.size()) {
      out.push_back(limit == 0 ? text : text.substr(0, end));
      break;
    }
    out.push_back(text.substr(0, end));
    text = StripLeft(text.substr(end), nullptr);
  }
  return out;
}

std::vector<std::string_view> SplitFromRight(std::string_view text, const std::string* separator, int64_t limit) {
  std::vector<std::string_view> out;
  if (separator != nullptr) {
    for (; limit != 0; --limit) {
      const size_t found = text.rfind(*separator);
      if (found == std::string_view::npos) break;
      out.push_back(text.substr(found + separator->size()));
      text = text.substr(0, found);
    }
    out.push_back(text);
  } else {
    for (text = StripRight(text, nullptr); !text.empty(); --limit) {
      size_t begin = text.size();
      while (limit != 0 && begin > 0) {
        const size_t before = PreviousBoundary(text, begin);
        size_t pos = before;
        if (IsSpace(NextCodePoint(text, &pos))) break;
        begin = before;
      }
      if (limit == 0) begin = 0;
      out.push_back(text.substr(begin));
      text = StripRight(text.substr(0, begin), nullptr);
    }
  }
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> out;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t end = pos;
    const char32_t c = NextCodePoint(text, &pos);
    if (!EndsLine(c)) continue;
    if (c == '\r' && pos < text.size() && text[pos] == '\n') ++pos;
    out.push_back(text.substr(begin, (keep_ends ? pos : end) - begin));
    begin = pos;
  }
  if (begin < text.size()) out.push_back(text.substr(begin));
  return out;
}

size_t ReplacedSize(std::string_view text, std::string_view from, std::string_view to, int64_t limit) {
  size_t count = 0;
  const size_t most = limit < 0 ? SIZE_MAX : static_cast<size_t>(limit);
  if (from.empty()) {
    count = Length(text) + 1;
  } else {
    for (size_t pos = text.find(from); pos != std::string_view::npos; pos = text.find(from, pos + from.size())) ++count;
  }
  count = std::min(count, most);
  return text.size() + count * to.size() - count * from.size();
}

std::string Replace(std::string_view text, std::string_view from, std::string_view to, int64_t limit) {
  std::string out;
  size_t pos = 0;
  if (from.empty()) {
    for (; limit != 0; --limit) {
      out += to;
      if (pos == text.size()) return out;
      const size_t begin = pos;
      NextCodePoint(text, &pos);
      out += text.substr(begin, pos - begin);
    }
    return out += text.substr(pos);
  }
  for (; limit != 0; --limit) {
    const size_t found = text.find(from, pos);
    if (found == std::string_view::npos) break;
    out += text.substr(pos, found - pos);
    out += to;
    pos = found + from.size();
  }
  return out += text.substr(pos);
}

std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string_view shortest(buffer, static_cast<size_t>(end - buffer));
  const size_t e = shortest.find('e');
  int exponent = 0;
  std::from_chars(shortest.data() + e + (shortest[e + 1] == '+' ? 2 : 1), end, exponent);
  if (exponent < -4 || exponent >= 16) {
    return StrCat(shortest.substr(0, e), exponent < 0 ? "e-" : "e+", std::abs(exponent) < 10 ? "0" : "",
                  std::abs(exponent));
  }
  const auto fixed = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed).ptr;
  std::string out(buffer, fixed);
  return out.find('.') == std::string::npos ? out + ".0" : out;
}

std::string Repr(std::string_view text) {
  const bool single = text.find('\'') != std::string_view::npos;
  const char quote = single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t c = NextCodePoint(text, &pos);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += {'\\', static_cast<char>(c)};
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (IsPrintable(c)) {
      out += text.substr(begin, pos - begin);
    } else {
      out += c < 0x100     ? StrFormat("\\x%02x", static_cast<unsigned>(c))
             : c < 0x10000 ? StrFormat("\\u%04x", static_cast<unsigned>(c))
                           : StrFormat("\\U%08x", static_cast<unsigned>(c));
    }
  }
  return out += quote;
}

void AppendJsonString(std::string_view text, bool ascii, std::string* out) {
  *out += '"';
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t c = NextCodePoint(text, &pos);
    switch (c) {
      case '"': *out += "\\\""; continue;
      case '\\': *out += "\\\\"; continue;
      case '\n': *out += "\\n"; continue;
      case '\r': *out += "\\r"; continue;
      case '\t': *out += "\\t"; continue;
      case '\f': *out += "\\f"; continue;
      case '\b': *out += "\\b"; continue;
      default: break;
    }
    if (c < 0x20 || (ascii && c >= 0x7f && c < 0x10000)) {
      *out += StrFormat("\\u%04x", static_cast<unsigned>(c));
    } else if (ascii && c >= 0x10000) {
      const unsigned rest = static_cast<unsigned>(c) - 0x10000;
      *out += StrFormat("\\u%04x\\u%04x", 0xd800 + (rest >> 10), 0xdc00 + (rest & 0x3ff));
    } else {
      *out += text.substr(begin, pos - begin);
    }
  }
  *out += '"';
}

}  // namespace quern::jinja
