#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "base/status.h"

namespace quern {

class CommandSet;

void AddGenerateCommands(CommandSet& commands);  // generate, score

// A row's "token_ids".
Result<std::vector<int32_t>> TokenIdsOf(const nlohmann::json& row);

}  // namespace quern
