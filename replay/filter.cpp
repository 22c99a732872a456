#include "replay/filter.h"

#include <algorithm>

namespace quern {

v1::DataClass ClassOf(v1::Source source, v1::Verdict verdict) {
  if (source == v1::SOURCE_REAL) return v1::DATA_CLASS_REAL;
  if (verdict == v1::VERDICT_VERIFIED) return v1::DATA_CLASS_VERIFIED;
  if (verdict == v1::VERDICT_HINTED) return v1::DATA_CLASS_HINTED;
  return v1::DATA_CLASS_UNVERIFIED;
}

RowFilter::RowFilter(const v1::Filter& filter, const RecordTable& table, bool pruned_too)
    : filter_(filter),
      table_(&table),
      pruned_too_(pruned_too),
      task_hash_(HashTask(filter.task())),
      kinds_(table.kinds()) {
  std::string& prompt = *filter_.mutable_prompt();
  prompt.resize(prompt.find_last_not_of(" \t\r\n") + 1);
  if (!prompt.empty()) prompt_ = HashPrompt(prompt);
  const uint32_t run = filter.run().empty() ? RecordTable::kNoName : table.FindName(filter.run());
  if (!filter.run().empty() && run == RecordTable::kNoName) return;  // no record has it
  std::vector<uint32_t> with;
  std::vector<uint32_t> without;
  for (const std::string& tag : filter.tags()) {
    with.push_back(table.FindName(tag));
    if (with.back() == RecordTable::kNoName) return;
  }
  for (const std::string& tag : filter.without_tags()) without.push_back(table.FindName(tag));
  std::vector<bool> tag_sets;
  for (size_t i = 0; i < table.tag_sets(); ++i) {
    const std::vector<uint32_t>& set = table.tag_set(static_cast<uint32_t>(i));
    const auto in_set = [&](uint32_t id) { return std::binary_search(set.begin(), set.end(), id); };
    tag_sets.push_back(std::all_of(with.begin(), with.end(), in_set) &&
                       std::none_of(without.begin(), without.end(), in_set));
  }
  for (size_t i = 0; i < table.kinds(); ++i) {
    const RecordKind& kind = table.kind(static_cast<uint32_t>(i));
    kinds_[i] = tag_sets[kind.tag_set] && MatchesKind(kind, run);
  }
}

bool RowFilter::MatchesKind(const RecordKind& kind, uint32_t run) const {
  if (run != RecordTable::kNoName && kind.run != run) return false;
  if (filter_.source() != v1::SOURCE_UNSPECIFIED && kind.source != filter_.source()) return false;
  if (filter_.has_min_version() && kind.version < filter_.min_version()) return false;
  if (filter_.has_max_version() && kind.version > filter_.max_version()) return false;
  if (filter_.verdict() != v1::VERDICT_UNSPECIFIED && kind.verdict != filter_.verdict()) return false;
  if (filter_.has_guideline() && kind.guideline != filter_.guideline()) return false;
  if (filter_.has_min_depth() && kind.depth < filter_.min_depth()) return false;
  if (filter_.has_max_depth() && kind.depth > filter_.max_depth()) return false;
  return filter_.data_class() == v1::DATA_CLASS_UNSPECIFIED ||
         ClassOf(kind.source, kind.verdict) == filter_.data_class();
}

bool RowFilter::Matches(const RecordRow& row) const {
  if ((row.pruned && !pruned_too_) || !kinds_[row.kind]) return false;
  if (prompt_ != 0 && row.prompt != prompt_ && row.prompt != 0) return false;
  if (filter_.has_min_tokens() && row.tokens < filter_.min_tokens()) return false;
  if (filter_.has_max_tokens() && row.tokens > filter_.max_tokens()) return false;
  if (filter_.has_min_return() && row.episode_return < filter_.min_return()) return false;
  if (filter_.has_max_return() && row.episode_return > filter_.max_return()) return false;
  return filter_.task().empty() || row.task_hash == task_hash_;
}

bool RowFilter::MayMatch(const RecordTable::Zone& zone) const {
  if (filter_.has_min_return() && zone.max_return < filter_.min_return()) return false;
  if (filter_.has_max_return() && zone.min_return > filter_.max_return()) return false;
  if (!filter_.task().empty() && !zone.MayHaveTask(task_hash_)) return false;
  if (prompt_ != 0 && !zone.MayHavePrompt(prompt_)) return false;
  return std::any_of(zone.kinds.begin(), zone.kinds.end(), [this](uint32_t kind) { return kinds_[kind]; });
}

uint64_t RowFilter::FirstMatch(uint64_t first, uint64_t last) const {
  for (uint64_t number = first; number <= last;) {
    const uint64_t end = std::min(last, (number - 1) / RecordTable::kZoneRows * RecordTable::kZoneRows +
                                            RecordTable::kZoneRows);  // the zone's last
    if (!MayMatch(table_->ZoneOf(number))) {
      number = end + 1;
      continue;
    }
    for (; number <= end; ++number)
      if (Matches(table_->row(number))) return number;
  }
  return 0;
}

uint64_t RowFilter::LastMatch(uint64_t first, uint64_t last) const {
  for (uint64_t number = last; number >= first && number > 0;) {
    const uint64_t begin = std::max(first, (number - 1) / RecordTable::kZoneRows * RecordTable::kZoneRows + 1);
    if (!MayMatch(table_->ZoneOf(number))) {
      number = begin - 1;
      continue;
    }
    for (; number >= begin && number > 0; --number)
      if (Matches(table_->row(number))) return number;
  }
  return 0;
}

// The prompt is what comes before the first assistant message; records that are only tokens have their task instead.
bool RowFilter::MatchesText(const v1::Trajectory& trajectory) const {
  if (prompt_ != 0 && PromptOf(trajectory) != filter_.prompt()) return false;
  const std::string& wanted = filter_.prompt_contains();
  if (wanted.empty()) return true;
  if (trajectory.messages_size() == 0) return trajectory.task().find(wanted) != std::string::npos;
  for (const v1::Message& message : trajectory.messages()) {
    if (message.role() == "assistant") return false;
    if (message.content().find(wanted) != std::string::npos) return true;
  }
  return false;
}

}  // namespace quern
