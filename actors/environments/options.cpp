#include "actors/environments/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"

namespace quern {

OptionReader::OptionReader(std::string owner, const Options& options) : owner_(std::move(owner)), options_(options) {}

const std::string* OptionReader::Find(const std::string& name) {
  known_.insert(name);
  const auto it = options_.find(name);
  return it == options_.end() ? nullptr : &it->second;
}

void OptionReader::Fail(const std::string& name, const std::string& value, const std::string& want) {
  if (status_.ok()) status_ = InvalidArgument(StrCat(owner_, ": ", name, ": \"", value, "\" is not ", want));
}

std::string OptionReader::Text(const std::string& name, const std::string& fallback) {
  const std::string* value = Find(name);
  return value ? *value : fallback;
}

int OptionReader::Integer(const std::string& name, int fallback, int least, int most) {
  const std::string* value = Find(name);
  if (!value) return fallback;
  int number = 0;
  const char* end = value->data() + value->size();
  const auto [at, error] = std::from_chars(value->data(), end, number);
  if (error != std::errc() || at != end || number < least || number > most) {
    Fail(name, *value, StrCat("a whole number from ", least, " to ", most));
    return fallback;
  }
  return number;
}

double OptionReader::Number(const std::string& name, double fallback, double least, double most) {
  const std::string* value = Find(name);
  if (!value) return fallback;
  char* at = nullptr;
  const double number = std::strtod(value->c_str(), &at);
  if (value->empty() || *at != '\0' || !(number >= least && number <= most)) {
    Fail(name, *value, StrCat("a number from ", least, " to ", most));
    return fallback;
  }
  return number;
}

bool OptionReader::Flag(const std::string& name, bool fallback) {
  const std::string* value = Find(name);
  if (!value) return fallback;
  if (*value != "true" && *value != "false") Fail(name, *value, "true or false");
  return *value == "true";
}

std::string OptionReader::Choice(const std::string& name, const std::vector<std::string>& choices) {
  const std::string* value = Find(name);
  if (!value) return choices.front();
  if (std::find(choices.begin(), choices.end(), *value) == choices.end()) {
    Fail(name, *value, StrCat("one of ", StrJoin(choices, ", ")));
    return choices.front();
  }
  return *value;
}

Status OptionReader::Finish() const {
  for (const auto& [name, value] : options_) {
    if (known_.count(name) == 0) {
      return UnknownName(StrCat("option of ", owner_), name, {known_.begin(), known_.end()});
    }
  }
  return status_;
}

Status UnknownName(const std::string& what, const std::string& name, const std::vector<std::string>& known) {
  const std::string nearest = NearestName(name, known);
  return InvalidArgument(StrCat("unknown ", what, ": \"", name, "\"",
                                nearest.empty() ? "" : StrCat("; did you mean \"", nearest, "\"?"),
                                known.empty() ? " (there are none)" : StrCat(" (known: ", StrJoin(known, ", "), ")")));
}

std::string ResolvePath(const std::string& base_dir, const std::string& file) {
  return file.starts_with('/') || base_dir.empty() ? file : JoinPath(base_dir, file);
}

uint64_t PickTask(uint64_t seed, uint64_t count, bool in_turn) {
  return in_turn ? seed % count : Random(seed, kTaskStream).Below(count);
}

std::vector<std::string> DistinctCharacters(const std::vector<std::string>& texts) {
  std::set<std::string> characters;
  for (const std::string& text : texts) {
    size_t begin = 0;
    for (size_t i = 1; i <= text.size(); ++i) {
      if (i < text.size() && (static_cast<unsigned char>(text[i]) & 0xc0) == 0x80) continue;  // a continuation byte
      characters.insert(text.substr(begin, i - begin));
      begin = i;
    }
  }
  return {characters.begin(), characters.end()};
}

std::string Trim(const std::string& text) {
  const char* const space = " \t\r\n";
  const size_t begin = text.find_first_not_of(space);
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

}  // namespace quern
