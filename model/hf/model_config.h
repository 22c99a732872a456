#pragma once

#include <string>
#include <vector>

#include "model/config.h"
#include "model/hf/json_reader.h"

namespace quern {

// Reads a config.json document as far as it goes and appends one line per problem (wrong, missing or unsupported). The
// result is usable only where there was none.
ModelConfig ReadModelConfig(const Json& json, std::vector<std::string>* problems);

}  // namespace quern
