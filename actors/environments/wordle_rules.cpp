#include "actors/environments/wordle_rules.h"

#include <array>

#include "actors/environments/options.h"
#include "base/strings.h"

namespace quern {

namespace {

constexpr char kMarkLetters[] = "byg";

}  // namespace

Marks MarkGuess(const std::string& guess, const std::string& hidden) {
  std::array<int, 26> unmatched{};
  for (size_t i = 0; i < guess.size(); ++i) {
    if (guess[i] != hidden[i]) ++unmatched[hidden[i] - 'a'];
  }
  int marks = 0;
  int place = 1;
  for (size_t i = 0; i < guess.size(); ++i, place *= 3) {
    if (guess[i] == hidden[i]) {
      marks += 2 * place;
    } else if (unmatched[guess[i] - 'a'] > 0) {
      --unmatched[guess[i] - 'a'];
      marks += place;
    }
  }
  return static_cast<Marks>(marks);
}

std::string MarksText(Marks marks, int length) {
  std::string text;
  for (int i = 0; i < length; ++i, marks /= 3) {
    text += i > 0 ? " <" : "<";
    text += kMarkLetters[marks % 3];
    text += '>';
  }
  return text + "\n";
}

std::optional<Marks> ParseMarks(const std::string& text, int length) {
  int marks = 0;
  int place = 1;
  for (int i = 0; i < length; ++i, place *= 3) {
    const size_t at = 4 * static_cast<size_t>(i);
    if (at + 2 >= text.size()) return std::nullopt;
    const size_t value = std::string_view(kMarkLetters).find(text[at + 1]);
    if (text[at] != '<' || text[at + 2] != '>' || value == std::string_view::npos) return std::nullopt;
    marks += static_cast<int>(value) * place;
  }
  return static_cast<Marks>(marks);
}

std::string SpelledWord(const std::string& word) {
  std::string text;
  for (const char letter : word) {
    if (!text.empty()) text += ' ';
    text += letter;
  }
  return text + "\n";
}

std::optional<std::string> ParseSpelledWord(const std::string& text) {
  size_t size = text.size();
  if (size > 0 && text[size - 1] == '\n') --size;
  if (size % 2 == 0) return std::nullopt;
  std::string word;
  for (size_t i = 0; i < size; ++i) {
    if (i % 2 == 1) {
      if (text[i] != ' ') return std::nullopt;
    } else {
      if (text[i] < 'a' || text[i] > 'z') return std::nullopt;
      word += text[i];
    }
  }
  return word;
}

Result<std::shared_ptr<const WordList>> WordList::Parse(const std::string& text, const std::string& source, int limit) {
  auto list = std::make_shared<WordList>();
  int line = 0;
  for (const std::string& row : StrSplit(text, '\n')) {
    ++line;
    const std::string word = Trim(row);
    if (word.empty() || word[0] == '#') continue;
    if (limit > 0 && list->size() == limit) break;
    if (word.find_first_not_of("abcdefghijklmnopqrstuvwxyz") != std::string::npos || word.size() < 2 ||
        word.size() > 8) {
      return InvalidArgument(StrCat(source, ":", line, ": \"", word, "\" is not a word of 2 to 8 letters a-z"));
    }
    if (!list->words_.empty() && word.size() != list->words_[0].size()) {
      return InvalidArgument(StrCat(source, ":", line, ": \"", word, "\" has ", word.size(),
                                    " letters, the words before it ", list->length()));
    }
    if (!list->index_.emplace(word, list->size()).second) {
      return InvalidArgument(StrCat(source, ":", line, ": \"", word, "\" occurs twice"));
    }
    list->words_.push_back(word);
  }
  if (list->words_.empty()) return InvalidArgument(StrCat(source, ": no words in it; give one word a line"));
  if (limit > list->size()) {
    return InvalidArgument(StrCat(source, ": has ", list->size(), " words, fewer than limit ", limit));
  }
  return std::shared_ptr<const WordList>(std::move(list));
}

int WordList::Find(const std::string& word) const {
  const auto it = index_.find(word);
  return it == index_.end() ? -1 : it->second;
}

Marks WordList::Mark(int guess, int hidden) const {
  if (size() > kTableWords) return MarkGuess(words_[guess], words_[hidden]);
  std::call_once(table_once_, [this] {
    table_.reserve(words_.size() * words_.size());
    for (const std::string& row : words_) {
      for (const std::string& column : words_) table_.push_back(MarkGuess(row, column));
    }
  });
  return table_[static_cast<size_t>(guess) * words_.size() + hidden];
}

}  // namespace quern
