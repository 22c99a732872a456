#pragma once

#include <string>

namespace quern {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, const std::string& message = {});
}  // namespace quern

// Broken invariants end the process with file, line and condition. Never for user input: that is a Status.
#define QUERN_CHECK(condition, ...)                                                    \
  do {                                                                                 \
    if (!(condition)) [[unlikely]]                                                     \
      ::quern::CheckFailed(__FILE__, __LINE__, #condition __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)
