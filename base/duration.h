#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace quern {

// Seconds of "90s", "15m", "12h" or "7d"; a number alone is seconds. Nothing for any other text and for more than
// 100,000 of a unit.
std::optional<int64_t> ParseSeconds(std::string_view text);

}  // namespace quern
