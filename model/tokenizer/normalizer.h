#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "model/hf/json_reader.h"

namespace quern {

// Rewrites the text before it is cut: NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Prepend, Replace, ByteLevel
// and sequences of them. Thread-safe.
class TextNormalizer {
 public:
  virtual ~TextNormalizer() = default;
  // *at_start: the text's first character is the first of the whole input; cleared where that one is taken away.
  virtual void Apply(std::string* text, bool* at_start) const = 0;
};

// Null for JSON null.
Result<std::unique_ptr<TextNormalizer>> MakeNormalizer(const Json& json, const std::string& where);

}  // namespace quern
