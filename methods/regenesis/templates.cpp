#include "methods/regenesis/templates.h"

#include <algorithm>
#include <set>

#include "base/strings.h"
#include "methods/regenesis/embedded.h"

namespace quern {

namespace {

const std::vector<std::string>& KnownPlaceholders() {
  static const std::vector<std::string> names = {"adapted", "answer", "guideline", "hint",     "nl",
                                                 "path",    "prompt", "question",  "structure"};
  return names;
}

// Calls text(piece) and placeholder(name) in order.
template <class OnText, class OnPlaceholder>
void Walk(const std::string& source, OnText&& text, OnPlaceholder&& placeholder) {
  size_t at = 0;
  while (at < source.size()) {
    const size_t open = source.find('{', at);
    if (open == std::string::npos) return text(source.substr(at));
    size_t close = open + 1;
    while (close < source.size() && source[close] >= 'a' && source[close] <= 'z') ++close;
    if (close == open + 1 || close == source.size() || source[close] != '}') {
      text(source.substr(at, open + 1 - at));
      at = open + 1;
      continue;
    }
    text(source.substr(at, open - at));
    placeholder(source.substr(open + 1, close - open - 1));
    at = close + 1;
  }
}

std::string TrimLines(const std::string& text) {
  const size_t begin = text.find_first_not_of("\r\n");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of("\r\n") - begin + 1);
}

bool IsBlank(const std::string& line) { return line.find_first_not_of(" \t\r") == std::string::npos; }

std::string* Section(ChainTemplates& t, const std::string& name) {
  const std::map<std::string, std::string ChainTemplates::*> sections = {
      {"adapt", &ChainTemplates::adapt},   {"plan", &ChainTemplates::plan},   {"solve", &ChainTemplates::solve},
      {"direct", &ChainTemplates::direct}, {"check", &ChainTemplates::check}, {"hint", &ChainTemplates::hint},
      {"opener", &ChainTemplates::opener}};
  const auto it = sections.find(name);
  return it == sections.end() ? nullptr : &(t.*(it->second));
}

Result<ChainTemplates> Parse(ChainTemplates templates, const std::string& text, const std::string& source) {
  std::string* section = nullptr;
  std::set<std::string*> seen;
  int number = 0;
  for (const std::string& line : StrSplit(text, '\n')) {
    ++number;
    const std::string bare = TrimLines(line);
    if (bare.size() > 2 && bare.front() == '[' && bare.back() == ']' &&
        std::all_of(bare.begin() + 1, bare.end() - 1, [](char c) { return c >= 'a' && c <= 'z'; })) {
      const std::string name = bare.substr(1, bare.size() - 2);
      section = Section(templates, name);
      if (section == nullptr)
        return InvalidArgument(StrCat(source, ":", number, ": unknown section [", name,
                                      "]; known: adapt, plan, solve, direct, check, hint, opener"));
      if (!seen.insert(section).second)
        return InvalidArgument(StrCat(source, ":", number, ": section [", name, "] is given twice"));
      section->clear();
      continue;
    }
    if (section == nullptr) {
      if (IsBlank(line) || line[0] == '#') continue;
      return InvalidArgument(StrCat(source, ":", number, ": text before the first section; a section is a line such as",
                                    " [solve] and the text after it"));
    }
    std::string unknown;
    Walk(
        line, [](const std::string&) {},
        [&](const std::string& name) {
          const auto& known = KnownPlaceholders();
          if (std::find(known.begin(), known.end(), name) == known.end()) unknown = name;
        });
    if (!unknown.empty())
      return InvalidArgument(StrCat(source, ":", number, ": unknown placeholder {", unknown,
                                    "}; known: ", StrJoin(KnownPlaceholders(), ", ")));
    *section += line + "\n";
  }
  for (std::string* given : seen) *given = TrimLines(*given);
  return templates;
}

}  // namespace

const ChainTemplates& DefaultTemplates() {
  static const ChainTemplates templates = Parse({}, kEmbeddedTemplates, "templates.txt").value();
  return templates;
}

const std::vector<std::string>& DefaultGuidelines() {
  static const std::vector<std::string> guidelines = ParseGuidelines(kEmbeddedGuidelines, "guidelines.txt").value();
  return guidelines;
}

Result<ChainTemplates> ParseTemplates(const std::string& text, const std::string& source) {
  return Parse(DefaultTemplates(), text, source);
}

Result<std::vector<std::string>> ParseGuidelines(const std::string& text, const std::string& source) {
  std::vector<std::string> guidelines;
  for (const std::string& line : StrSplit(text, '\n')) {
    const std::string bare = TrimLines(line);
    if (!IsBlank(bare) && bare[0] != '#') guidelines.push_back(bare);
  }
  if (guidelines.empty()) return InvalidArgument(source + ": no guidelines in it; give one a line");
  return guidelines;
}

std::string ExpandTemplate(const std::string& text, const Placeholders& values) {
  std::string out;
  Walk(
      text, [&](const std::string& piece) { out += piece; },
      [&](const std::string& name) {
        const auto it = values.find(name);
        if (it != values.end()) out += it->second;
      });
  return out;
}

bool HasPlaceholder(const std::string& text, const std::string& name) {
  bool found = false;
  Walk(
      text, [](const std::string&) {}, [&](const std::string& seen) { found = found || seen == name; });
  return found;
}

}  // namespace quern
