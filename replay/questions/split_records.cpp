#include "base/strings.h"
#include "replay/questions/question_file.h"

namespace quern {

namespace {

bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

std::vector<QuestionRecord> SplitLines(std::string_view file) {
  std::vector<QuestionRecord> records;
  uint64_t line = 1;
  for (size_t begin = 0; begin < file.size(); ++line) {
    size_t end = file.find('\n', begin);
    if (end == std::string_view::npos) end = file.size();
    std::string_view text = file.substr(begin, end - begin);
    while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
    if (!text.empty()) records.push_back({line, text});
    begin = end + 1;
  }
  return records;
}

// Where the JSON value at `at` ends: behind its closing bracket, or before the next comma or bracket. npos: it does
// not.
size_t ValueEnd(std::string_view file, size_t at) {
  int depth = 0;
  bool in_string = false;
  for (; at < file.size(); ++at) {
    const char c = file[at];
    if (in_string) {
      if (c == '\\') ++at;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      if (depth == 0) return at;
      if (--depth == 0) return at + 1;
    } else if (c == ',' && depth == 0) {
      return at;
    }
  }
  return std::string_view::npos;
}

// The elements of a JSON list, as text: a bad one does not make the others unreadable.
Result<std::vector<QuestionRecord>> SplitList(std::string_view file) {
  std::vector<QuestionRecord> records;
  uint64_t line = 1;
  size_t at = 0;
  const auto skip = [&] {
    for (; at < file.size() && IsSpace(file[at]); ++at) line += file[at] == '\n' ? 1 : 0;
    return at < file.size() ? file[at] : '\0';
  };
  if (skip() != '[') return InvalidArgument(StrCat(line, ": not a JSON list"));
  ++at;
  if (skip() == ']') return records;
  while (true) {
    skip();
    const size_t end = ValueEnd(file, at);
    if (end == std::string_view::npos)
      return InvalidArgument(StrCat(line, ": what begins here is not closed; is the file cut off?"));
    records.push_back({line, file.substr(at, end - at)});
    for (; at < end; ++at) line += file[at] == '\n' ? 1 : 0;
    const char next = skip();
    ++at;
    if (next == ']') return records;
    if (next != ',') return InvalidArgument(StrCat(line, ": expected a comma or the list's end"));
  }
}

}  // namespace

std::optional<std::string_view> FirstListElement(std::string_view file) {
  size_t at = 0;
  for (const bool bracket : {true, false}) {
    while (at < file.size() && IsSpace(file[at])) ++at;
    if (at == file.size()) return std::nullopt;
    if (bracket && file[at++] != '[') return std::nullopt;
  }
  const size_t end = ValueEnd(file, at);
  if (end == std::string_view::npos) return std::nullopt;
  return file.substr(at, end - at);
}

Result<std::vector<QuestionRecord>> SplitRecords(QuestionFormat format, std::string_view file) {
  if (file.starts_with("\xef\xbb\xbf")) file.remove_prefix(3);
  if (format == QuestionFormat::kSvamp || format == QuestionFormat::kStrategyQa) return SplitList(file);
  std::vector<QuestionRecord> records = SplitLines(file);
  const bool header = format == QuestionFormat::kGame24 && !records.empty() && records[0].text.starts_with("Rank,");
  if (header) records.erase(records.begin());
  return records;
}

}  // namespace quern
