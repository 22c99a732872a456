#include "model/chat_template/lexer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>

#include "base/strings.h"
#include "model/chat_template/text.h"
#include "model/chat_template/value.h"
#include "model/tokenizer/unicode.h"

namespace quern::jinja {
namespace {

// Longest first.
constexpr std::array<std::string_view, 26> kOperators = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "*",
                                                         "/",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                         ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};

std::string NormalNewlines(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r') {
      out += text[i];
    } else {
      out += '\n';
      if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  std::vector<Token> Run() {
    while (pos_ < source_.size()) {
      const size_t tag = FindTag();
      if (tag == std::string_view::npos) {
        AddText(source_.substr(pos_));
        Advance(source_.size());
        break;
      }
      const char kind = source_[tag + 1];
      const size_t after = tag + 2;
      const char sign = after < source_.size() && (source_[after] == '-' || source_[after] == '+') ? source_[after] : 0;
      AddTextBeforeTag(tag, sign, kind != '{');
      Advance(after + (sign != 0));
      if (kind == '#') {
        Comment();
      } else if (kind == '{') {
        Tag(TokenKind::kVariableBegin, TokenKind::kVariableEnd, "}}");
      } else if (!Raw()) {
        Tag(TokenKind::kBlockBegin, TokenKind::kBlockEnd, "%}");
      }
    }
    Add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  void Advance(size_t to) {
    line_ += static_cast<int>(
        std::count(source_.begin() + static_cast<ptrdiff_t>(pos_), source_.begin() + static_cast<ptrdiff_t>(to), '\n'));
    pos_ = to;
  }

  Token& Add(TokenKind kind, std::string_view text) {
    tokens_.push_back({.kind = kind, .text = std::string(text), .line = line_});
    return tokens_.back();
  }

  void AddText(std::string_view text) {
    if (!text.empty()) Add(TokenKind::kText, text);
  }

  size_t FindTag() const {
    for (size_t i = source_.find('{', pos_); i != std::string_view::npos; i = source_.find('{', i + 1))
      if (i + 1 < source_.size() && (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#')) return i;
    return std::string_view::npos;
  }

  // The text up to `end`, where a tag begins: a minus takes white space away, lstrip_blocks the indentation of a line
  // that begins with a block or comment.
  void AddTextBeforeTag(size_t end, char sign, bool strips_indentation) {
    std::string_view text = source_.substr(pos_, end - pos_);
    if (sign == '-') {
      text = StripRight(text, nullptr);
    } else if (sign != '+' && strips_indentation) {
      const size_t newline = text.rfind('\n');
      const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line > 0 || line_starting_) && StripLeft(text.substr(line), nullptr).empty()) text = text.substr(0, line);
    }
    AddText(text);
  }

  // Passes the end of a block, comment or raw tag, whose sign is before `end`: with a minus the white space behind it
  // too, without a sign one newline.
  void PassEnd(size_t end, char sign, bool trims_newline) {
    if (sign == '-') {
      const std::string_view rest = source_.substr(end);
      end = source_.size() - StripLeft(rest, nullptr).size();
    } else if (sign != '+' && trims_newline && end < source_.size() && source_[end] == '\n') {
      ++end;
    }
    line_starting_ = source_[end - 1] == '\n';
    Advance(end);
  }

  void Comment() {
    const size_t end = source_.find("#}", pos_);
    if (end == std::string_view::npos) FailAt(line_, "a comment is not closed with #}");
    const char sign = end > pos_ ? source_[end - 1] : 0;
    PassEnd(end + 2, sign, true);
  }

  size_t SkipSpace(size_t pos) const { return source_.size() - StripLeft(source_.substr(pos), nullptr).size(); }

  // After "{%" and its sign: {% raw %} ... {% endraw %}.
  bool Raw() {
    size_t sign_at = 0;
    size_t end = 0;
    if (!TagIs(pos_, "raw", &sign_at, &end) || source_[sign_at] == '+') return false;
    PassEnd(end, source_[sign_at], false);
    for (size_t i = source_.find("{%", pos_); i != std::string_view::npos; i = source_.find("{%", i + 1)) {
      size_t name = i + 2;
      const char sign = name < source_.size() && (source_[name] == '-' || source_[name] == '+') ? source_[name] : 0;
      if (sign != 0) ++name;
      if (!TagIs(name, "endraw", &sign_at, &end)) continue;
      AddTextBeforeTag(i, sign, true);
      PassEnd(end, source_[sign_at], true);
      return true;
    }
    FailAt(line_, "{% raw %} is not closed with {% endraw %}");
  }

  // Whether `word` and the end of a block are at `pos`.
  bool TagIs(size_t pos, std::string_view word, size_t* sign_at, size_t* end) const {
    pos = SkipSpace(pos);
    if (source_.substr(pos, word.size()) != word) return false;
    pos = SkipSpace(pos + word.size());
    *sign_at = pos;
    if (pos < source_.size() && (source_[pos] == '-' || source_[pos] == '+')) ++pos;
    *end = pos + 2;
    return source_.substr(pos, 2) == "%}";
  }

  void Tag(TokenKind begin, TokenKind end, std::string_view closing) {
    const int opened = line_;
    Add(begin, "");
    std::string open_brackets;
    for (;;) {
      Advance(SkipSpace(pos_));
      if (pos_ == source_.size()) FailAt(opened, StrCat("a tag is not closed with ", closing));
      if (open_brackets.empty()) {
        const bool block = begin == TokenKind::kBlockBegin;
        const char sign = source_[pos_] == '-' || (block && source_[pos_] == '+') ? source_[pos_] : 0;
        const size_t at = pos_ + (sign != 0);
        if (source_.substr(at, 2) == closing) {
          Add(end, "");
          return PassEnd(at + 2, sign, block);
        }
      }
      Expression(&open_brackets);
    }
  }

  void Expression(std::string* open_brackets) {
    const char c = source_[pos_];
    if (IsDigit(c)) return Number();
    if (IsNameStart(c)) {
      size_t end = pos_;
      while (end < source_.size() && (IsNameStart(source_[end]) || IsDigit(source_[end]))) ++end;
      Add(TokenKind::kName, source_.substr(pos_, end - pos_));
      return Advance(end);
    }
    if (c == '\'' || c == '"') return String();
    for (const std::string_view op : kOperators) {
      if (source_.substr(pos_, op.size()) != op) continue;
      if (c == '(' || c == '[' || c == '{') *open_brackets += c == '(' ? ')' : static_cast<char>(c + 2);
      if (c == ')' || c == ']' || c == '}') {
        if (open_brackets->empty() || open_brackets->back() != c) FailAt(line_, StrCat("unexpected ", op));
        open_brackets->pop_back();
      }
      Add(TokenKind::kOperator, op);
      return Advance(pos_ + op.size());
    }
    FailAt(line_, StrCat("unexpected character ", Repr(source_.substr(pos_, 1))));
  }

  // Digits with single underscores between them; the position behind.
  size_t Digits(size_t pos) const {
    while (pos < source_.size() &&
           (IsDigit(source_[pos]) || (source_[pos] == '_' && pos + 1 < source_.size() && IsDigit(source_[pos + 1]))))
      ++pos;
    return pos;
  }

  void Number() {
    int base = 10;
    size_t end = Digits(pos_);
    bool is_float = false;
    const char marker = pos_ + 1 < source_.size() ? static_cast<char>(source_[pos_ + 1] | 0x20) : '\0';
    if (source_[pos_] == '0' && (marker == 'x' || marker == 'o' || marker == 'b')) {
      base = marker == 'x' ? 16 : marker == 'o' ? 8 : 2;
      end = pos_ + 2;
      while (end < source_.size() && (std::isxdigit(static_cast<unsigned char>(source_[end])) || source_[end] == '_'))
        ++end;
    } else if (pos_ == 0 || source_[pos_ - 1] != '.') {  // matrix.0.1 is two subscripts
      const auto digit_at = [&](size_t i) { return i < source_.size() && IsDigit(source_[i]); };
      if (end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
        end = Digits(end + 1);
        is_float = true;
      }
      if (end < source_.size() && (source_[end] | 0x20) == 'e') {
        const size_t sign = end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-');
        if (digit_at(end + 1 + sign)) {
          end = Digits(end + 1 + sign);
          is_float = true;
        }
      }
    }
    std::string digits(source_.substr(pos_, end - pos_));
    std::erase(digits, '_');
    Token& token = Add(is_float ? TokenKind::kFloat : TokenKind::kInt, digits);
    if (is_float) {
      token.number = std::strtod(digits.c_str(), nullptr);
    } else {
      const char* begin = digits.data() + (base == 10 ? 0 : 2);
      const auto [stop, error] = std::from_chars(begin, digits.data() + digits.size(), token.integer, base);
      if (error != std::errc() || stop != digits.data() + digits.size())
        FailAt(line_, StrCat("the number ", digits.substr(0, 40), " is malformed or beyond 64 bits"));
    }
    Advance(end);
  }

  void String() {
    const char quote = source_[pos_];
    const int line = line_;
    std::string out;
    size_t i = pos_ + 1;
    for (;; ++i) {
      if (i >= source_.size()) FailAt(line, "a string is not closed");
      if (source_[i] == quote) break;
      if (source_[i] != '\\') {
        out += source_[i];
      } else {
        i = Escape(i + 1, &out);
      }
    }
    Add(TokenKind::kString, out);
    Advance(i + 1);
  }

  // Python's escapes; gives the position of the last character of the escape.
  size_t Escape(size_t i, std::string* out) const {
    if (i >= source_.size()) return i;
    const char c = source_[i];
    constexpr std::string_view kNames = "abfnrtv\\'\"";
    constexpr std::string_view kMeanings = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t known = kNames.find(c); known != std::string_view::npos) {
      *out += kMeanings[known];
      return i;
    }
    if (c == '\n') return i;
    if (c == 'x' || c == 'u' || c == 'U') {
      const size_t length = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      return CodePoint(i + 1, std::min(length, source_.size() - i - 1), length, 16, out);
    }
    if (c >= '0' && c <= '7') {
      size_t length = 1;
      while (length < 3 && i + length < source_.size() && source_[i + length] >= '0' && source_[i + length] <= '7')
        ++length;
      return CodePoint(i, length, length, 8, out);
    }
    *out += '\\';
    *out += c;
    return i;
  }

  size_t CodePoint(size_t begin, size_t available, size_t length, int base, std::string* out) const {
    uint32_t code = 0;
    const char* first = source_.data() + begin;
    const auto [stop, error] = std::from_chars(first, first + available, code, base);
    if (available < length || error != std::errc() || stop != first + length || code > 0x10ffff)
      FailAt(line_, "malformed \\x, \\u or \\U escape in a string");
    AppendUtf8(code >= 0xd800 && code < 0xe000 ? 0xfffd : code, out);
    return begin + length - 1;
  }

  std::string_view source_;
  size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> Tokenize(std::string_view text) {
  const std::string source = NormalNewlines(text);
  return Lexer(source).Run();
}

}  // namespace quern::jinja
