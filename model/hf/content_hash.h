#pragma once

#include <string>

#include "base/status.h"

namespace quern {

// XXH3-128, as 32 hex digits, of what makes a model directory's numbers: the names and bytes of config.json and of
// every
// *.safetensors and *.safetensors.index.json file, in name order.
Result<std::string> DirectoryContentHash(const std::string& dir);

// That the directory has the hash that its weights were published under; kDataLoss otherwise. Empty: not known, no
// error.
Status CheckContentHash(const std::string& dir, const std::string& published);

}  // namespace quern
