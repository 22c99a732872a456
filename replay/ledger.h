#pragma once

#include <cstdint>
#include <string_view>

namespace quern {

// One number over everything that was acknowledged to a writer, in order: starts at 0, goes on from record to record. A
// writer and its store that agree on it agree on every record.
uint64_t ExtendLedger(uint64_t ledger, std::string_view uid);

}  // namespace quern
