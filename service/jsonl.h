#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "base/status.h"

namespace quern {

// Calls `row` for every line of a JSON Lines file ("-": standard input) that is not blank. A line that is not a JSON
// object, or an error of `row`, ends it: "FILE:LINE: reason".
Status ForEachJsonLine(const std::string& path, const std::function<Status(const nlohmann::json& row)>& row);

// The same, with the members of objects in the order of the file.
Status ForEachOrderedJsonLine(const std::string& path,
                              const std::function<Status(const nlohmann::ordered_json& row)>& row);

// A number that prints with at most 9 significant digits: enough to give every float back.
double NineDigits(double value);

}  // namespace quern
