#include "methods/graders/extract.h"

#include <vector>

#include "methods/graders/characters.h"

namespace quern {

namespace {

struct Box {
  size_t begin = 0;  // of the backslash
  size_t open = 0;   // of the contents
  size_t close = 0;  // of the closing brace
};

// The one that begins last of those that close; of nested ones that is the innermost. \{ and \} are no braces.
std::optional<Box> FindLastBox(std::string_view text) {
  std::optional<Box> last;
  std::vector<Box> open;                    // braces; begin is npos for one that is not a box's
  size_t command = std::string_view::npos;  // of a \boxed whose brace may come next
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '\\') {
      size_t length = 0;
      for (const std::string_view name : {"\\boxed", "\\fbox"})
        if (text.substr(at, name.size()) == name) length = name.size();
      command = length > 0 ? at : std::string_view::npos;
      at += length > 0 ? length - 1 : 1;
    } else if (text[at] == '{') {
      open.push_back({command, at + 1, 0});
      command = std::string_view::npos;
    } else if (text[at] == '}') {
      if (!open.empty()) {
        Box box = open.back();
        open.pop_back();
        box.close = at;
        if (box.begin != std::string_view::npos && (!last || box.begin > last->begin)) last = box;
      }
      command = std::string_view::npos;
    } else if (!IsSpace(text[at])) {
      command = std::string_view::npos;
    }
  }
  return last;
}

bool StartsWithIgnoringCase(std::string_view text, std::string_view lower) {
  if (text.size() < lower.size()) return false;
  for (size_t i = 0; i < lower.size(); ++i)
    if (LowerCase(text[i]) != lower[i]) return false;
  return true;
}

}  // namespace

std::optional<std::string_view> LastBox(std::string_view text) {
  const std::optional<Box> box = FindLastBox(text);
  if (!box) return std::nullopt;
  return text.substr(box->open, box->close - box->open);
}

std::string UnwrapLastBox(std::string_view text) {
  const std::optional<Box> box = FindLastBox(text);
  if (!box) return std::string(text);
  std::string out(text.substr(0, box->begin));
  out += text.substr(box->open, box->close - box->open);
  out += text.substr(box->close + 1);
  return out;
}

std::optional<std::string_view> LastHashLine(std::string_view text) {
  size_t end = text.size();
  while (true) {
    const size_t mark = end < 4 ? std::string_view::npos : text.rfind("####", end - 4);
    if (mark == std::string_view::npos) return std::nullopt;
    size_t begin = mark;
    while (begin > 0 && (text[begin - 1] == ' ' || text[begin - 1] == '#')) --begin;
    if (begin == 0 || text[begin - 1] == '\n') {
      const size_t line_end = text.find('\n', mark);
      return TrimView(text.substr(mark + 4, line_end == std::string_view::npos ? line_end : line_end - mark - 4));
    }
    end = mark + 3;
  }
}

std::optional<std::string_view> AnswerSentence(std::string_view text) {
  for (size_t at = text.size(); at-- > 0;) {
    if (LowerCase(text[at]) != 'a' || (at > 0 && InWord(text[at - 1]))) continue;
    std::string_view rest = text.substr(at);
    size_t length = 0;
    for (const std::string_view mark : {"answer is", "answer:", "answer :"})
      if (StartsWithIgnoringCase(rest, mark)) length = mark.size();
    if (length == 0) continue;
    if (length < rest.size() && rest[length - 1] == 's' && InWord(rest[length])) continue;  // "answer isn't"
    rest.remove_prefix(length);
    while (!rest.empty() && (IsSpace(rest.front()) || rest.front() == ':')) rest.remove_prefix(1);
    size_t end = 0;
    for (; end < rest.size() && rest[end] != '\n'; ++end) {
      const bool stop = rest[end] == '.' || rest[end] == '!' || rest[end] == '?';
      // Sentence ends are followed by space: "3.05" goes on. "A. fog" is a letter with its mark, not a sentence.
      if (!stop || (end + 1 < rest.size() && !IsSpace(rest[end + 1]))) continue;
      if (end != 1 || !IsLetter(rest[0])) break;
    }
    return TrimView(rest.substr(0, end));
  }
  return std::nullopt;
}

}  // namespace quern
