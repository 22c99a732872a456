#include "methods/graders/numbers.h"

#include <array>
#include <cstdlib>
#include <string>

#include "base/strings.h"
#include "methods/graders/characters.h"
#include "methods/graders/graders.h"

namespace quern {

namespace {

constexpr std::string_view kMinus = "\xe2\x88\x92";  // U+2212

bool DigitAt(std::string_view text, size_t at) { return at < text.size() && IsDigit(text[at]); }
bool CharAt(std::string_view text, size_t at, char c) { return at < text.size() && text[at] == c; }
bool TextAt(std::string_view text, size_t at, std::string_view part) {
  return at <= text.size() && text.substr(at, part.size()) == part;
}

size_t DigitsEnd(std::string_view text, size_t at) {
  while (DigitAt(text, at)) ++at;
  return at;
}

struct Literal {
  size_t end = 0;
  bool whole = true;  // digits alone, no point and no exponent
  std::optional<Rational> value;
};

size_t SeparatorAt(std::string_view text, size_t at) {
  for (const std::string_view separator : {",", "{,}", "\\,"})
    if (TextAt(text, at, separator)) return separator.size();
  return 0;
}

// Digits with separators, point and exponent; text[at] is a digit, or a point before one.
Literal ReadLiteral(std::string_view text, size_t at) {
  Literal out;
  size_t end = DigitsEnd(text, at);
  std::string digits(text.substr(at, end - at));
  if (!digits.empty() && digits.size() <= 3) {
    while (const size_t separator = SeparatorAt(text, end)) {
      const size_t group = end + separator;
      if (DigitsEnd(text, group) != group + 3) break;
      digits += text.substr(group, 3);
      end = group + 3;
    }
  }
  if (CharAt(text, end, '.') && DigitAt(text, end + 1)) {
    const size_t point = end;
    end = DigitsEnd(text, point + 1);
    digits += text.substr(point, end - point);
    out.whole = false;
  }
  out.value = Rational::FromDecimal(digits);
  if (CharAt(text, end, 'e') || CharAt(text, end, 'E')) {
    const size_t sign = CharAt(text, end + 1, '-') || CharAt(text, end + 1, '+') ? 1 : 0;
    const size_t first = end + 1 + sign;
    const size_t last = DigitsEnd(text, first);
    if (last > first && (last == text.size() || !InWord(text[last]))) {
      const int exponent = last - first > 3 ? 1000 : std::atoi(std::string(text.substr(first, last - first)).c_str());
      const std::optional<Rational> scale = Power(Rational(10), text[end + 1] == '-' ? -exponent : exponent);
      out.value = out.value && scale ? Multiply(*out.value, *scale) : std::nullopt;
      out.whole = false;
      end = last;
    }
  }
  out.end = end;
  return out;
}

// "^10" or "^{10}" behind a literal.
void ReadPower(std::string_view text, Literal* literal) {
  if (!CharAt(text, literal->end, '^')) return;
  const bool brace = CharAt(text, literal->end + 1, '{');
  size_t at = literal->end + (brace ? 2 : 1);
  const bool negative = CharAt(text, at, '-');
  if (negative) ++at;
  const size_t end = DigitsEnd(text, at);
  if (end == at || (brace && !CharAt(text, end, '}'))) return;
  const int exponent = end - at > 3 ? 1000 : std::atoi(std::string(text.substr(at, end - at)).c_str());
  if (literal->value) literal->value = Power(*literal->value, negative ? -exponent : exponent);
  literal->whole = false;
  literal->end = end + (brace ? 1 : 0);
}

// Behind "a" of "a/b", "a / b": the literal b. A second stroke (a date) makes it no fraction.
bool ReadFraction(std::string_view text, Literal* literal) {
  size_t at = literal->end;
  const bool spaced = CharAt(text, at, ' ');
  if (spaced) ++at;
  if (!CharAt(text, at, '/')) return false;
  ++at;
  if (CharAt(text, at, ' ')) ++at;
  const bool negative = CharAt(text, at, '-');
  if (negative) ++at;
  if (!DigitAt(text, at) && !(CharAt(text, at, '.') && DigitAt(text, at + 1))) return false;
  Literal under = ReadLiteral(text, at);
  ReadPower(text, &under);
  if (CharAt(text, under.end, '/') && DigitAt(text, under.end + 1)) {
    while (CharAt(text, under.end, '/') && DigitAt(text, under.end + 1)) under = ReadLiteral(text, under.end + 1);
    *literal = under;
    literal->value.reset();
    return true;
  }
  literal->value = literal->value && under.value ? Divide(*literal->value, *under.value) : std::nullopt;
  if (literal->value && negative) literal->value = literal->value->Negated();
  literal->whole = false;
  literal->end = under.end;
  return true;
}

// \frac{a}{b} (dfrac, tfrac); a and b are numbers of their own.
std::optional<Literal> ReadLatexFraction(std::string_view text, size_t at) {
  for (const std::string_view name : {"\\frac", "\\dfrac", "\\tfrac"}) {
    if (!TextAt(text, at, name)) continue;
    std::array<Rational, 2> parts;
    size_t end = at + name.size();
    bool readable = true;
    for (Rational& part : parts) {
      if (!CharAt(text, end, '{')) return std::nullopt;
      ++end;
      const bool negative = CharAt(text, end, '-');
      if (negative) ++end;
      if (!DigitAt(text, end) && !CharAt(text, end, '.')) return std::nullopt;
      const Literal literal = ReadLiteral(text, end);
      if (!CharAt(text, literal.end, '}')) return std::nullopt;
      readable = readable && literal.value;
      if (literal.value) part = negative ? literal.value->Negated() : *literal.value;
      end = literal.end + 1;
    }
    Literal out;
    out.whole = false;
    out.end = end;
    if (readable) out.value = Divide(parts[0], parts[1]);
    return out;
  }
  return std::nullopt;
}

// "1 1/2" and "1\frac{1}{2}": a whole number and a proper fraction.
void ReadMixed(std::string_view text, Literal* literal) {
  const size_t at = literal->end + (CharAt(text, literal->end, ' ') ? 1 : 0);
  std::optional<Literal> part = ReadLatexFraction(text, at);
  if (!part && at > literal->end && DigitAt(text, at)) {
    Literal over = ReadLiteral(text, at);
    if (!over.whole || !CharAt(text, over.end, '/') || !DigitAt(text, over.end + 1)) return;
    if (ReadFraction(text, &over)) part = over;
  }
  if (!part || !part->value || part->value->IsZero() || !part->value->LessThanOne() ||
      Less(*part->value, Rational(0)) || !literal->value)
    return;
  literal->value = Add(*literal->value, *part->value);
  literal->whole = false;
  literal->end = part->end;
}

// Where the sign before the number begins, if there is one; else `begin`, moved over a currency sign.
size_t ReadSign(std::string_view text, size_t begin, size_t end, bool* negative) {
  size_t at = begin;
  for (const std::string_view currency : {"\\$", "$", "\xe2\x82\xac", "\xc2\xa3", "\xc2\xa5", "\xe2\x82\xb9"}) {
    if (at >= currency.size() && TextAt(text, at - currency.size(), currency)) {
      at -= currency.size();
      break;
    }
  }
  const size_t unsigned_begin = at;
  size_t spaces = 0;
  while (at > 0 && text[at - 1] == ' ') {
    --at;
    ++spaces;
  }
  size_t minus = 0;
  if (at > 0 && text[at - 1] == '-') minus = 1;
  if (at >= kMinus.size() && TextAt(text, at - kMinus.size(), kMinus)) minus = kMinus.size();
  if (minus == 0) return unsigned_begin;
  at -= minus;
  const char before = at == 0 ? '\n' : text[at - 1];
  if (spaces == 0) {
    const bool between =
        IsDigit(before) || IsLetter(before) || before == ')' || before == ']' || before == '}' || before == '%';
    if (between) return unsigned_begin;
  } else {
    size_t from = at;
    while (from > 0 && text[from - 1] == ' ') --from;
    const char sign = from == 0 ? '\n' : text[from - 1];
    const bool alone = TrimView(text.substr(0, at)).empty() && TrimView(text.substr(end)).empty();
    if (sign != '=' && sign != '(' && sign != ':' && !alone) return unsigned_begin;
  }
  *negative = true;
  return at;
}

bool ReadPercent(std::string_view text, size_t* end) {
  const size_t space = CharAt(text, *end, ' ') ? 1 : 0;
  for (const std::string_view sign : {"%", "\\%", "percent"}) {
    if (!TextAt(text, *end + space, sign)) continue;
    *end += space + sign.size();
    return true;
  }
  return false;
}

// Digits at `at` that belong to a word, an index or an exponent.
bool PartOfName(std::string_view text, size_t at) {
  if (at == 0) return false;
  const char before = text[at - 1];
  if (IsLetter(before)) return true;
  if (before == '^') return true;
  if (at == 1) return false;
  if (before == '_') return InWord(text[at - 2]) || text[at - 2] == '}';
  return before == '{' && (text[at - 2] == '^' || text[at - 2] == '_');
}

class NumberGrader : public Grader {
 public:
  explicit NumberGrader(Rational tolerance) : tolerance_(tolerance) {}
  std::optional<std::string> Extract(std::string_view completion) const override {
    const std::optional<NumberInText> number = LastNumber(completion);
    if (!number || !number->value) return std::nullopt;
    return std::string(completion.substr(number->begin, number->end - number->begin));
  }
  std::string Normalise(std::string_view extracted) const override {
    const std::optional<NumberInText> number = LastNumber(extracted);
    return number && number->value ? number->value->ToString() : "";
  }
  bool Matches(std::string_view extracted, std::string_view truth) const override {
    const std::optional<NumberInText> a = LastNumber(extracted);
    const std::optional<NumberInText> b = LastNumber(truth);
    if (!a || !b || !a->value || !b->value) return false;
    if (Near(*a->value, *b->value, tolerance_)) return true;
    if (a->percent == b->percent) return false;
    const auto share = [](const NumberInText& n) { return n.percent ? Divide(*n.value, Rational(100)) : n.value; };
    const std::optional<Rational> x = share(*a);
    const std::optional<Rational> y = share(*b);
    return x && y && Near(*x, *y, tolerance_);
  }

 private:
  Rational tolerance_;
};

}  // namespace

std::optional<NumberInText> LastNumber(std::string_view text) {
  std::optional<NumberInText> last;
  for (size_t at = 0; at < text.size();) {
    const bool digit = IsDigit(text[at]);
    const bool point = text[at] == '.' && DigitAt(text, at + 1) && (at == 0 || !IsDigit(text[at - 1]));
    std::optional<Literal> literal;
    if (digit || point) {
      literal = ReadLiteral(text, at);
      if (PartOfName(text, at)) {
        at = literal->end;
        continue;
      }
      ReadPower(text, &*literal);
      if (!ReadFraction(text, &*literal) && literal->whole) ReadMixed(text, &*literal);
    } else if (text[at] == '\\') {
      literal = ReadLatexFraction(text, at);
    }
    if (!literal) {
      ++at;
      continue;
    }
    // A time or a ratio is no number.
    while (CharAt(text, literal->end, ':') && DigitAt(text, literal->end + 1)) {
      *literal = ReadLiteral(text, literal->end + 1);
      literal->value.reset();
    }
    NumberInText number;
    bool negative = false;
    number.begin = ReadSign(text, at, literal->end, &negative);
    number.end = literal->end;
    number.value = literal->value;
    if (negative && number.value) number.value = number.value->Negated();
    number.percent = ReadPercent(text, &number.end);
    last = number;
    at = number.end;
  }
  return last;
}

GraderResult MakeNumberGrader(GraderOptions& options) {
  const std::string text = options.Take("tolerance", "0");
  const std::optional<Rational> tolerance = Rational::FromDecimal(text);
  if (!tolerance) return InvalidArgument(StrCat("grader number: tolerance: \"", text, "\" is not a decimal number"));
  return std::unique_ptr<Grader>(std::make_unique<NumberGrader>(*tolerance));
}

}  // namespace quern
