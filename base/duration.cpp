#include "base/duration.h"

#include <charconv>

namespace quern {

std::optional<int64_t> ParseSeconds(std::string_view text) {
  int64_t value = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, value);
  if (error != std::errc() || value < 0 || value > 100000) return std::nullopt;
  const std::string_view unit(end, static_cast<size_t>(last - end));
  if (unit.empty() || unit == "s") return value;
  if (unit == "m") return value * 60;
  if (unit == "h") return value * 3600;
  if (unit == "d") return value * 86400;
  return std::nullopt;
}

}  // namespace quern
