#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "replay/record_table.h"

namespace quern {

// The records up to a watermark that a filter passes, in the order of RecordTable::Before, which depends on the set of
// them and not on how it came about. Buckets over the order's hash, and sums over the buckets: another record costs the
// same in a set of ten million as in one of a hundred thousand, and so does the record at a rank. About 8 bytes a
// record. Not thread-safe; a record's row must not change.
class CandidateSet {
 public:
  explicit CandidateSet(const RecordTable* table) : table_(table) { Reset(kFirstBits); }
  uint64_t watermark() const { return watermark_; }
  uint64_t size() const { return size_; }
  // Adds records that are not in the set, all with numbers beyond its watermark, and moves it to `watermark`.
  void Extend(const std::vector<uint32_t>& numbers, uint64_t watermark);
  // The set as it was at an earlier watermark.
  std::shared_ptr<CandidateSet> At(uint64_t watermark) const;
  // The record at a rank below size().
  uint64_t operator[](uint64_t rank) const;
  std::vector<uint64_t> InOrder() const;

 private:
  static constexpr int kFirstBits = 4;
  static constexpr uint64_t kBucketRows = 64;  // on average at most twice as many
  void Reset(int bits);
  void Insert(uint32_t number);
  void Build(const std::vector<uint32_t>& numbers);
  void AddUp();
  size_t BucketOf(uint64_t order) const { return static_cast<size_t>(order >> (64 - bits_)); }

  const RecordTable* table_;
  uint64_t watermark_ = 0;
  uint64_t size_ = 0;
  int bits_ = 0;
  std::vector<std::vector<uint32_t>> buckets_;
  std::vector<uint32_t> sums_;  // a Fenwick tree over the buckets' sizes
};

}  // namespace quern
