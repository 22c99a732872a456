#pragma once

#include <optional>
#include <string>

#include "base/status.h"

namespace quern {

// DIRECTORY/server.address: where the server that has a store open can be asked. Left behind by a killed server.
Status WriteServerAddress(const std::string& directory, const std::string& address);
void RemoveServerAddress(const std::string& directory);
std::optional<std::string> ReadServerAddress(const std::string& directory);

}  // namespace quern
