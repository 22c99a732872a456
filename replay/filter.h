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
  // `pruned_too`: rows whose records are gone match as well.
  RowFilter(const v1::Filter& filter, const RecordTable& table, bool pruned_too = false);
  // Everything but what needs the record itself.
  bool Matches(const RecordRow& row) const;
  // The first of the records first..last that matches, and the last one of them; 0: none. They pass over zones that
  // have no match.
  uint64_t FirstMatch(uint64_t first, uint64_t last) const;
  uint64_t LastMatch(uint64_t first, uint64_t last) const;
  // prompt or prompt_contains is set: ask MatchesText as well.
  bool needs_text() const { return prompt_ != 0 || !filter_.prompt_contains().empty(); }
  bool MatchesText(const v1::Trajectory& trajectory) const;

 private:
  bool MatchesKind(const RecordKind& kind, uint32_t run) const;
  bool MayMatch(const RecordTable::Zone& zone) const;

  v1::Filter filter_;
  const RecordTable* table_;
  bool pruned_too_;
  uint64_t task_hash_ = 0;
  uint16_t prompt_ = 0;      // 0: any
  std::vector<bool> kinds_;  // by kind: passes
};

}  // namespace quern
