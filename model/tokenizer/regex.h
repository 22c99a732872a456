#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/hf/json_reader.h"

namespace quern {

struct Match {
  size_t begin = 0;
  size_t end = 0;
};

// What Split and Replace search for: a literal text, or a regular expression in Oniguruma's syntax (as tokenizer.json
// files use it) run by PCRE2. Thread-safe.
class Pattern {
 public:
  static std::shared_ptr<const Pattern> Literal(const std::string& text);
  static Result<std::shared_ptr<const Pattern>> Regex(const std::string& regex, const std::string& where);
  // {"String": ".."}, {"Regex": ".."} or a plain string.
  static Result<std::shared_ptr<const Pattern>> FromJson(const Json& json, const std::string& where);
  virtual ~Pattern() = default;
  // All matches from left to right, appended to `matches`; `text` is valid UTF-8.
  virtual void FindAll(std::string_view text, std::vector<Match>* matches) const = 0;
};

// Oniguruma's syntax in PCRE2's terms: \s, \d, \w, \h and properties are spelled out so that both mean the same
// characters; what cannot be said is an error.
Result<std::string> TranslateRegex(std::string_view regex);

}  // namespace quern
