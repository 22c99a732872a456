#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/replay.pb.h"
#include "replay/record_table.h"

namespace quern {

v1::DataClass ClassOf(v1::Source source, v1::Verdict verdict);

// A v1::Filter resolved against a table's names. Valid as long as nothing is appended to the table.
class RowFilter {
 public:
  RowFilter(const v1::Filter& filter, const RecordTable& table);
  // Everything but prompt_contains, which needs the record itself.
  bool Matches(const RecordRow& row) const;
  // prompt_contains is set: ask MatchesText as well.
  bool needs_text() const { return !filter_.prompt_contains().empty(); }
  bool MatchesText(const v1::Trajectory& trajectory) const;

 private:
  v1::Filter filter_;
  bool impossible_ = false;  // it asks for a name that no record has
  uint32_t run_ = RecordTable::kNoName;
  uint64_t task_hash_ = 0;
  std::vector<bool> tag_sets_;  // by tag set: passes
};

}  // namespace quern
