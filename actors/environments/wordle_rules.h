#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/status.h"

namespace quern {

// The marks of one guess as a base-3 number, first letter in the lowest digit: 0 black, 1 yellow, 2 green.
using Marks = uint16_t;

// Green where the letters agree; then, from the left, yellow for a letter that the hidden word still has unmatched.
Marks MarkGuess(const std::string& guess, const std::string& hidden);
// "<b> <y> <b> <g> <b>\n" and back.
std::string MarksText(Marks marks, int length);
std::optional<Marks> ParseMarks(const std::string& text, int length);
// "s t a r e\n" and back; nullopt when the text is not single letters a-z between single spaces. The closing newline
// may be missing in what is parsed.
std::string SpelledWord(const std::string& word);
std::optional<std::string> ParseSpelledWord(const std::string& text);

// The public words: what may be guessed and what may be hidden. Immutable, thread-safe.
class WordList {
 public:
  // Words of one length (2 to 8), lower-case a-z, no duplicates; one to a line, blank lines and lines from '#' are
  // skipped. `source` names the file in errors.
  static Result<std::shared_ptr<const WordList>> Parse(const std::string& text, const std::string& source, int limit);
  static const char* BuiltIn();

  int size() const { return static_cast<int>(words_.size()); }
  int length() const { return static_cast<int>(words_[0].size()); }
  const std::string& word(int index) const { return words_[index]; }
  int Find(const std::string& word) const;  // -1: not in the list
  // The marks of guess against hidden by index: from a table when the list is short enough (kTableWords), built on
  // first use.
  Marks Mark(int guess, int hidden) const;
  static constexpr int kTableWords = 4096;

 private:
  std::vector<std::string> words_;
  std::unordered_map<std::string, int> index_;
  mutable std::once_flag table_once_;
  mutable std::vector<Marks> table_;  // [guess][hidden]
};

}  // namespace quern
