#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>

namespace quern::testing {

// Of this process; 0 under a sanitizer, whose own bookkeeping grows.
inline int64_t ResidentBytes() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
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
