#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>

namespace quern::testing {

// Of this process; 0 under a sanitizer, whose own bookkeeping grows. ThreadSanitizer is known by the macro that our
// flags leave it (cmake/quern_targets.cmake).
inline int64_t ResidentBytes() {
#if defined(__SANITIZE_ADDRESS__) || defined(_GLIBCXX_TSAN)
  return 0;
#else
  long pages = 0, resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  if (std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
  std::fclose(file);
  return int64_t{resident} * sysconf(_SC_PAGESIZE);
#endif
}

}  // namespace quern::testing
