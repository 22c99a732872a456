#pragma once

#include <cstdint>
#include <vector>

namespace quern {

// What attention leaves out of the cache of what was read. Nothing by default.
struct Compression {
  // Selective attention: positions that each layer attends to at most, itself and the first among them; those that are
  // masked most are evicted. Empty: all.
  std::vector<int64_t> budgets{};
  // ThinK: once a prompt is read, keys are kept in so many channels of each KV head, chosen by the prompt's last
  // `query_window` queries; all but the newest `recent` keys. 0: all channels.
  int64_t key_channels = 0;
  int64_t query_window = 32;
  int64_t recent = 32;

  bool off() const { return budgets.empty() && key_channels == 0; }
  friend bool operator==(const Compression&, const Compression&) = default;
};

}  // namespace quern
