#include "replay/filter.h"

#include <algorithm>

namespace quern {

v1::DataClass ClassOf(v1::Source source, v1::Verdict verdict) {
  if (source == v1::SOURCE_REAL) return v1::DATA_CLASS_REAL;
  if (verdict == v1::VERDICT_VERIFIED) return v1::DATA_CLASS_VERIFIED;
  if (verdict == v1::VERDICT_HINTED) return v1::DATA_CLASS_HINTED;
  return v1::DATA_CLASS_UNVERIFIED;
}

RowFilter::RowFilter(const v1::Filter& filter, const RecordTable& table)
    : filter_(filter), task_hash_(HashTask(filter.task())) {
  if (!filter.run().empty()) {
    run_ = table.FindName(filter.run());
    impossible_ = run_ == RecordTable::kNoName;
  }
  std::vector<uint32_t> with;
  std::vector<uint32_t> without;
  for (const std::string& tag : filter.tags()) {
    with.push_back(table.FindName(tag));
    if (with.back() == RecordTable::kNoName) impossible_ = true;
  }
  for (const std::string& tag : filter.without_tags()) without.push_back(table.FindName(tag));
  for (size_t i = 0; i < table.tag_sets(); ++i) {
    const std::vector<uint32_t>& set = table.tag_set(static_cast<uint32_t>(i));
    const auto in_set = [&](uint32_t id) { return std::binary_search(set.begin(), set.end(), id); };
    tag_sets_.push_back(std::all_of(with.begin(), with.end(), in_set) &&
                        std::none_of(without.begin(), without.end(), in_set));
  }
}

bool RowFilter::Matches(const RecordRow& row) const {
  if (impossible_ || row.pruned || !tag_sets_[row.tag_set]) return false;
  if (run_ != RecordTable::kNoName && row.run != run_) return false;
  if (filter_.source() != v1::SOURCE_UNSPECIFIED && row.source != filter_.source()) return false;
  if (filter_.has_min_return() && row.episode_return < filter_.min_return()) return false;
  if (filter_.has_max_return() && row.episode_return > filter_.max_return()) return false;
  if (filter_.has_min_version() && row.version < filter_.min_version()) return false;
  if (filter_.has_max_version() && row.version > filter_.max_version()) return false;
  if (filter_.verdict() != v1::VERDICT_UNSPECIFIED && row.verdict != filter_.verdict()) return false;
  if (filter_.has_guideline() && row.guideline != filter_.guideline()) return false;
  if (filter_.has_min_depth() && row.depth < filter_.min_depth()) return false;
  if (filter_.has_max_depth() && row.depth > filter_.max_depth()) return false;
  if (filter_.data_class() != v1::DATA_CLASS_UNSPECIFIED && ClassOf(row.source, row.verdict) != filter_.data_class())
    return false;
  return filter_.task().empty() || row.task_hash == task_hash_;
}

// The prompt is what comes before the first assistant message; records that are only tokens have their task instead.
bool RowFilter::MatchesText(const v1::Trajectory& trajectory) const {
  const std::string& wanted = filter_.prompt_contains();
  if (trajectory.messages_size() == 0) return trajectory.task().find(wanted) != std::string::npos;
  for (const v1::Message& message : trajectory.messages()) {
    if (message.role() == "assistant") return false;
    if (message.content().find(wanted) != std::string::npos) return true;
  }
  return false;
}

}  // namespace quern
