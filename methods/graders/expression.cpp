#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "methods/graders/characters.h"
#include "methods/graders/graders.h"
#include "methods/graders/rational.h"

namespace quern {

namespace {

constexpr int kMaxDepth = 64;  // of parentheses: the parser recurses

struct Expression {
  std::vector<Rational> numbers;  // in the order of Order
  std::optional<Rational> value;  // nothing after a division by zero
};

bool operator==(const Expression& a, const Expression& b) {
  return a.value && a.value == b.value && a.numbers == b.numbers;
}

// Any order that is the same for the same numbers.
void Order(std::vector<Rational>* numbers) {
  std::sort(numbers->begin(), numbers->end(),
            [](const Rational& a, const Rational& b) { return a.ToString() < b.ToString(); });
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  // The whole text as one expression of at least two numbers.
  std::optional<Expression> Parse() {
    std::optional<Rational> value = Sum(0);
    Skip();
    if (bad_ || at_ != text_.size() || numbers_.size() < 2) return std::nullopt;
    Order(&numbers_);
    return Expression{std::move(numbers_), value};
  }

 private:
  void Skip() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }
  char Next() {
    Skip();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  std::optional<Rational> Sum(int depth) {
    std::optional<Rational> left = Product(depth);
    for (char sign = Next(); !bad_ && (sign == '+' || sign == '-'); sign = Next()) {
      ++at_;
      std::optional<Rational> right = Product(depth);
      if (right && sign == '-') right = right->Negated();
      left = left && right ? Add(*left, *right) : std::nullopt;
    }
    return left;
  }
  std::optional<Rational> Product(int depth) {
    std::optional<Rational> left = Term(depth);
    for (char sign = Next(); !bad_ && (sign == '*' || sign == '/'); sign = Next()) {
      ++at_;
      const std::optional<Rational> right = Term(depth);
      left = !left || !right ? std::nullopt : sign == '*' ? Multiply(*left, *right) : Divide(*left, *right);
    }
    return left;
  }
  std::optional<Rational> Term(int depth) {
    if (Next() == '(') {
      if (depth >= kMaxDepth) return Fail();
      ++at_;
      const std::optional<Rational> inner = Sum(depth + 1);
      if (Next() != ')') return Fail();
      ++at_;
      return inner;
    }
    const size_t begin = at_;
    while (at_ < text_.size() && (IsDigit(text_[at_]) || text_[at_] == '.')) ++at_;
    const std::optional<Rational> number = Rational::FromDecimal(text_.substr(begin, at_ - begin));
    if (!number) return Fail();
    numbers_.push_back(*number);
    return number;
  }
  std::optional<Rational> Fail() {
    bad_ = true;
    return std::nullopt;
  }

  std::string_view text_;
  size_t at_ = 0;
  bool bad_ = false;
  std::vector<Rational> numbers_;
};

// One spelling of the operators and parentheses.
std::string PlainOperators(std::string_view text) {
  static constexpr std::pair<std::string_view, std::string_view> kSpellings[] = {
      {"\xc3\x97", "*"}, {"\xc2\xb7", "*"}, {"\xe2\x8b\x85", "*"}, {"\\times", "*"}, {"\\cdot", "*"},
      {"\xc3\xb7", "/"}, {"\\div", "/"},    {"\xe2\x88\x92", "-"}, {"\\left(", "("}, {"\\right)", ")"},
      {"$", " "},        {"\\(", " "},      {"\\)", " "}};
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const auto* spelling = std::find_if(std::begin(kSpellings), std::end(kSpellings), [&](const auto& one) {
      return text.substr(at, one.first.size()) == one.first;
    });
    if (spelling != std::end(kSpellings)) {
      out += spelling->second;
      at += spelling->first.size();
    } else {
      out += text[at++];
    }
  }
  return out;
}

bool InExpression(std::string_view text, size_t at) {
  const char c = text[at];
  if (c == '.') return at + 1 < text.size() && IsDigit(text[at + 1]);
  return IsDigit(c) || (c != '\0' && std::string_view("+-*/() ").find(c) != std::string_view::npos);
}

// The expression that a run of such characters is, perhaps behind a list mark ("- ", "* ", "2)").
std::optional<std::string_view> WholeExpression(std::string_view run) {
  run = TrimView(run);
  size_t mark = 0;
  if (run.size() > 1 && (run[0] == '-' || run[0] == '*' || run[0] == '+') && run[1] == ' ') mark = 1;
  while (mark == 0 && mark < run.size() && IsDigit(run[mark])) {
    size_t end = 0;
    while (end < run.size() && IsDigit(run[end])) ++end;
    if (end < run.size() && run[end] == ')') mark = end + 1;
    break;
  }
  for (const std::string_view text : {run, TrimView(run.substr(mark))})
    if (Parser(text).Parse()) return text;
  return std::nullopt;
}

std::optional<std::string> LastExpression(std::string_view completion) {
  const std::string text = PlainOperators(completion);
  // From the end: the first run that is an expression is the last one.
  for (size_t end = text.size(); end > 0;) {
    if (!InExpression(text, end - 1)) {
      --end;
      continue;
    }
    size_t begin = end;
    while (begin > 0 && InExpression(text, begin - 1)) --begin;
    if (const auto found = WholeExpression(std::string_view(text).substr(begin, end - begin)))
      return std::string(*found);
    end = begin;
  }
  return std::nullopt;
}

// "4 6 11 11 = 24", or an expression with or without its value behind an equals sign.
std::optional<Expression> ReadTruth(std::string_view truth) {
  const std::string text = PlainOperators(truth);
  const std::string_view left = TrimView(std::string_view(text).substr(0, text.find('=')));
  if (std::optional<Expression> expression = Parser(left).Parse()) return expression;
  const size_t sign = text.find('=');
  if (sign == std::string::npos) return std::nullopt;
  Expression out;
  for (const std::string& word : StrSplit(left, ' ')) {
    if (word.empty()) continue;
    const std::optional<Rational> number = Rational::FromDecimal(word);
    if (!number) return std::nullopt;
    out.numbers.push_back(*number);
  }
  out.value = Rational::FromDecimal(TrimView(std::string_view(text).substr(sign + 1)));
  if (!out.value || out.numbers.size() < 2) return std::nullopt;
  Order(&out.numbers);
  return out;
}

class ExpressionGrader : public Grader {
 public:
  std::optional<std::string> Extract(std::string_view completion) const override { return LastExpression(completion); }
  // "24 of 4 6 11 11": another way to the same value counts as the same answer.
  std::string Normalise(std::string_view extracted) const override {
    const std::optional<std::string> text = LastExpression(extracted);
    const std::optional<Expression> expression = text ? Parser(*text).Parse() : std::nullopt;
    if (!expression || !expression->value) return "";
    std::string out = expression->value->ToString() + " of";
    for (const Rational& number : expression->numbers) out += " " + number.ToString();
    return out;
  }
  bool Matches(std::string_view extracted, std::string_view truth) const override {
    const std::optional<std::string> text = LastExpression(extracted);
    const std::optional<Expression> said = text ? Parser(*text).Parse() : std::nullopt;
    const std::optional<Expression> known = ReadTruth(truth);
    return said && known && *said == *known;
  }
};

}  // namespace

GraderResult MakeExpressionGrader(GraderOptions&) {
  return std::unique_ptr<Grader>(std::make_unique<ExpressionGrader>());
}

}  // namespace quern
