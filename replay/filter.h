#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/replay.pb.h"
#include "replay/record_table.h"

namespace quern {

v1::DataClass ClassOf(v1::Source source, v1::Verdict verdict);

// A v1::Filter resolved against a table's kinds. Valid as long as nothing is appended to the table, which must outlive
// it.
class RowFilter {
 public:
  RowFilter(const v1::Filter& filter, const RecordTable& table);
  // Everything but prompt_contains, which needs the record itself.
  bool Matches(const RecordRow& row) const;
  // The first of the records first..last that matches, and the last one of them; 0: none. They pass over zones that
  // have no match.
  uint64_t FirstMatch(uint64_t first, uint64_t last) const;
  uint64_t LastMatch(uint64_t first, uint64_t last) const;
  // prompt_contains is set: ask MatchesText as well.
  bool needs_text() const { return !filter_.prompt_contains().empty(); }
  bool MatchesText(const v1::Trajectory& trajectory) const;

 private:
  bool MatchesKind(const RecordKind& kind, uint32_t run) const;
  bool MayMatch(const RecordTable::Zone& zone) const;

  v1::Filter filter_;
  const RecordTable* table_;
  uint64_t task_hash_ = 0;
  std::vector<bool> kinds_;  // by kind: passes
};

}  // namespace quern
