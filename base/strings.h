#pragma once

#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace quern {

// StrCat("layer ", 3, ": ", name). Numbers print as by operator<<.
template <typename... Args>
std::string StrCat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return std::move(out).str();
}

// printf into a std::string.
std::string StrFormat(const char* format, ...) __attribute__((format(printf, 1, 2)));

std::vector<std::string> StrSplit(std::string_view text, char separator);
std::string StrJoin(const std::vector<std::string>& parts, std::string_view separator);
// The candidate with the smallest edit distance to `word`, or "" when none is near (for "did you mean").
std::string NearestName(std::string_view word, const std::vector<std::string>& candidates);
// "1.5 KiB", "30.4 MiB".
std::string HumanBytes(double bytes);

}  // namespace quern
