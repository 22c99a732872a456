#pragma once

#include <string>

#include "base/status.h"
#include "model/hf/json_reader.h"

namespace quern {

// The settings that the Metaspace pre-tokenizer and decoder share.
struct MetaspaceOptions {
  enum class Prepend { kNever, kFirst, kAlways };
  std::string replacement;  // one character, usually U+2581
  Prepend prepend = Prepend::kAlways;
  bool split = true;
};

Result<MetaspaceOptions> ReadMetaspace(const Json& json, const std::string& where);

}  // namespace quern
