#include <algorithm>
#include <array>
#include <utility>

#include "base/strings.h"
#include "methods/graders/characters.h"
#include "methods/graders/extract.h"
#include "methods/graders/graders.h"

namespace quern {

namespace {

class TextGrader : public Grader {
 public:
  TextGrader(bool keep_case, bool keep_space) : keep_case_(keep_case), keep_space_(keep_space) {}
  std::optional<std::string> Extract(std::string_view completion) const override {
    const std::string_view answer = TrimView(completion);
    return answer.empty() ? std::nullopt : std::optional<std::string>(answer);
  }
  std::string Normalise(std::string_view extracted) const override {
    std::string out;
    for (const char c : TrimView(extracted)) {
      const bool space = !keep_space_ && IsSpace(c);
      if (space && out.back() == ' ') continue;
      out += space ? ' ' : keep_case_ ? c : LowerCase(c);
    }
    return out;
  }
  bool Matches(std::string_view extracted, std::string_view truth) const override {
    return Normalise(extracted) == Normalise(truth);
  }

 private:
  bool keep_case_;
  bool keep_space_;
};

// Answers that are one of a few names.
class NameGrader : public Grader {
 public:
  bool Matches(std::string_view extracted, std::string_view truth) const override {
    const std::string name = Normalise(extracted);
    return !name.empty() && name == Normalise(truth);
  }
};

class ChoiceGrader : public NameGrader {
 public:
  explicit ChoiceGrader(std::string letters) : letters_(std::move(letters)) {}

  std::optional<std::string> Extract(std::string_view completion) const override {
    // Where the text says "answer", only what it says then counts: the other choices may be discussed before.
    if (const std::optional<std::string_view> said = AnswerSentence(completion)) {
      if (const std::string letter = Normalise(*said); !letter.empty()) return letter;
    }
    if (const char letter = BehindAnswer(completion)) return std::string(1, letter);
    const std::string letter = Normalise(completion);
    return letter.empty() ? std::nullopt : std::optional<std::string>(letter);
  }

  std::string Normalise(std::string_view text) const override {
    text = TrimView(text);
    // Alone, a small letter will do: "c", "(c)".
    std::string bare;
    for (const char c : text)
      if (InWord(c)) bare += c;
    if (bare.size() == 1 && text.size() <= 12) {
      const char letter = Upper(bare[0]);
      return letters_.find(letter) == std::string::npos ? std::string() : std::string(1, letter);
    }
    // Letters that are marked as choices go before letters that just stand there.
    for (const bool marked : {true, false}) {
      std::string found;
      for (size_t i = 0; i < text.size(); ++i) {
        if (letters_.find(text[i]) == std::string::npos || found.find(text[i]) != std::string::npos) continue;
        if (Stands(text, i) && (!marked || Marked(text, i))) found += text[i];
      }
      if (found.size() == 1) return found;
      if (found.size() > 1) return "";
    }
    return "";
  }

 private:
  // The letter of the last "Answer D", "ANSWER - (D)": hardly anything between the word and it.
  char BehindAnswer(std::string_view text) const {
    constexpr std::string_view kWord = "answer";
    for (size_t at = text.size(); at-- > 0;) {
      if (at > 0 && InWord(text[at - 1])) continue;
      size_t same = 0;
      while (same < kWord.size() && at + same < text.size() && LowerCase(text[at + same]) == kWord[same]) ++same;
      if (same < kWord.size()) continue;
      size_t next = at + same;
      while (next < text.size() && next < at + same + 5 && !InWord(text[next]) && text[next] != '\n') ++next;
      if (next == at + same || next == text.size() || letters_.find(text[next]) == std::string::npos) continue;
      if (Stands(text, next)) return text[next];
    }
    return '\0';
  }
  static char Upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; }
  // A word of its own, and not the article of "A bird ..." nor the start of "A's".
  static bool Stands(std::string_view text, size_t at) {
    if (at > 0 && (InWord(text[at - 1]) || text[at - 1] == '\'' || text[at - 1] == '\\')) return false;
    if (at + 1 == text.size()) return true;
    if (InWord(text[at + 1]) || text[at + 1] == '\'') return false;
    return !(text[at] == 'A' && at + 2 < text.size() && text[at + 1] == ' ' && text[at + 2] >= 'a' &&
             text[at + 2] <= 'z' && !NotANoun(text.substr(at + 2)));
  }
  // "A is", "A because": no article.
  static bool NotANoun(std::string_view rest) {
    size_t length = 0;
    while (length < rest.size() && InWord(rest[length])) ++length;
    const std::string_view word = rest.substr(0, length);
    constexpr std::array<std::string_view, 10> kWords = {"is",    "because", "since", "and",    "or",
                                                         "would", "was",     "as",    "option", "has"};
    return std::find(kWords.begin(), kWords.end(), word) != kWords.end();
  }
  static bool Marked(std::string_view text, size_t at) {
    const char before = at == 0 ? ' ' : text[at - 1];
    const char after = at + 1 == text.size() ? ' ' : text[at + 1];
    if (after == ')' || after == ']' || after == '}' || before == '*' || before == '$') return true;
    const bool open = at + 2 < text.size() && InWord(text[at + 2]);  // "C.P" and "A:b" are names
    if ((after == ':' || after == '.') && !open) return at == 0 || before == ' ' || before == '\n';
    return false;
  }

  std::string letters_;
};

class YesNoGrader : public NameGrader {
 public:
  std::optional<std::string> Extract(std::string_view completion) const override {
    if (const std::optional<std::string_view> said = AnswerSentence(completion)) {
      if (const std::string name = Normalise(*said); !name.empty()) return name;
    }
    const std::string name = Normalise(completion);
    return name.empty() ? std::nullopt : std::optional<std::string>(name);
  }
  // By the first or the last word; contradicting ones are no answer.
  std::string Normalise(std::string_view text) const override {
    size_t begin = 0;
    while (begin < text.size() && !InWord(text[begin])) ++begin;
    size_t first_end = begin;
    while (first_end < text.size() && InWord(text[first_end])) ++first_end;
    size_t end = text.size();
    while (end > begin && !InWord(text[end - 1])) --end;
    size_t last_begin = end;
    while (last_begin > begin && InWord(text[last_begin - 1])) --last_begin;
    const std::string first = Name(text.substr(begin, first_end - begin));
    const std::string last = Name(text.substr(last_begin, end - last_begin));
    if (first.empty() || first == last) return last;
    return last.empty() ? first : "";
  }

 private:
  static std::string Name(std::string_view word) {
    std::string lower;
    for (const char c : word) lower += LowerCase(c);
    if (lower == "yes" || lower == "true") return "yes";
    if (lower == "no" || lower == "false") return "no";
    return "";
  }
};

}  // namespace

GraderResult MakeExactGrader(GraderOptions&) {
  return std::unique_ptr<Grader>(std::make_unique<TextGrader>(/*keep_case=*/true, /*keep_space=*/true));
}

GraderResult MakeTextGrader(GraderOptions& options) {
  const std::string letter_case = options.Take("case", "ignore");
  if (letter_case != "ignore" && letter_case != "keep")
    return InvalidArgument(StrCat("grader text: case: \"", letter_case, "\" is not one of ignore, keep"));
  return std::unique_ptr<Grader>(std::make_unique<TextGrader>(letter_case == "keep", /*keep_space=*/false));
}

GraderResult MakeChoiceGrader(GraderOptions& options) {
  const std::string letters = options.Take("letters", "ABCDEFGH");
  for (const char c : letters)
    if (!(c >= 'A' && c <= 'Z'))
      return InvalidArgument(StrCat("grader choice: letters: \"", letters, "\" is not a row of capital letters"));
  if (letters.size() < 2) return InvalidArgument("grader choice: letters: give two or more, e.g. ABCD");
  return std::unique_ptr<Grader>(std::make_unique<ChoiceGrader>(letters));
}

GraderResult MakeYesNoGrader(GraderOptions&) { return std::unique_ptr<Grader>(std::make_unique<YesNoGrader>()); }

}  // namespace quern
