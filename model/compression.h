#pragma once

#include <cstdint>
#include <vector>

namespace quern {

// What attention leaves out of the cache of what was read. Nothing by default.
struct Compression {
  // Selective attention: positions that each layer attends to at most, itself and the first among them; those that are
  // masked most are evicted. Empty: all.
  std::vector<int64_t> budgets{};

  bool off() const { return budgets.empty(); }
  friend bool operator==(const Compression&, const Compression&) = default;
};

}  // namespace quern
