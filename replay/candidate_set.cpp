#include "replay/candidate_set.h"

#include <algorithm>

#include "base/check.h"

namespace quern {

void CandidateSet::Reset(int bits) {
  bits_ = bits;
  buckets_.assign(size_t{1} << bits, {});
  sums_.assign(buckets_.size() + 1, 0);
}

// Sizes to tree, in place: each node hands on what it has to the next one that covers it.
void CandidateSet::AddUp() {
  size_ = 0;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    sums_[i + 1] = static_cast<uint32_t>(buckets_[i].size());
    size_ += buckets_[i].size();
  }
  for (size_t i = 1; i < sums_.size(); ++i)
    if (const size_t next = i + (i & -i); next < sums_.size()) sums_[next] += sums_[i];
}

// All at once: scattered by the first bits of the order, then each bucket sorted by the rest, with the orders beside
// the numbers so that sorting does not look at the rows.
void CandidateSet::Build(const std::vector<uint32_t>& numbers) {
  struct Keyed {
    uint64_t order;
    uint32_t number;
  };
  int bits = kFirstBits;
  while ((kBucketRows << bits) < numbers.size()) ++bits;
  Reset(bits);
  std::vector<uint64_t> begins(buckets_.size() + 1);
  for (const uint32_t number : numbers) ++begins[BucketOf(table_->row(number).order) + 1];
  for (size_t i = 1; i < begins.size(); ++i) begins[i] += begins[i - 1];
  std::vector<Keyed> keyed(numbers.size());
  std::vector<uint64_t> next(begins.begin(), begins.end() - 1);
  for (const uint32_t number : numbers) {
    const uint64_t order = table_->row(number).order;
    keyed[next[BucketOf(order)]++] = {order, number};
  }
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const auto begin = keyed.begin() + static_cast<ptrdiff_t>(begins[i]);
    const auto end = keyed.begin() + static_cast<ptrdiff_t>(begins[i + 1]);
    std::sort(begin, end, [&](const Keyed& a, const Keyed& b) {
      return a.order != b.order ? a.order < b.order : table_->Before(a.number, b.number);
    });
    buckets_[i].reserve(static_cast<size_t>(end - begin));
    for (auto it = begin; it != end; ++it) buckets_[i].push_back(it->number);
  }
  AddUp();
}

void CandidateSet::Insert(uint32_t number) {
  const size_t bucket = BucketOf(table_->row(number).order);
  std::vector<uint32_t>& in = buckets_[bucket];
  in.insert(
      std::upper_bound(in.begin(), in.end(), number, [&](uint32_t a, uint32_t b) { return table_->Before(a, b); }),
      number);
  for (size_t i = bucket + 1; i < sums_.size(); i += i & -i) ++sums_[i];
  ++size_;
}

void CandidateSet::Extend(const std::vector<uint32_t>& numbers, uint64_t watermark) {
  QUERN_CHECK(watermark >= watermark_);
  watermark_ = watermark;
  // Many new ones, or buckets that have become long: all are sorted anew, which on the whole costs each record little.
  const uint64_t after = size_ + numbers.size();
  if (numbers.size() > size_ / 2 || after > 2 * kBucketRows * buckets_.size()) {
    std::vector<uint32_t> all;
    all.reserve(after);
    for (const std::vector<uint32_t>& bucket : buckets_) all.insert(all.end(), bucket.begin(), bucket.end());
    all.insert(all.end(), numbers.begin(), numbers.end());
    Build(all);
    return;
  }
  for (const uint32_t number : numbers) Insert(number);
}

std::shared_ptr<CandidateSet> CandidateSet::At(uint64_t watermark) const {
  QUERN_CHECK(watermark <= watermark_);
  auto earlier = std::make_shared<CandidateSet>(table_);
  earlier->watermark_ = watermark;
  earlier->Reset(bits_);
  for (size_t i = 0; i < buckets_.size(); ++i)
    std::copy_if(buckets_[i].begin(), buckets_[i].end(), std::back_inserter(earlier->buckets_[i]),
                 [&](uint32_t number) { return number <= watermark; });
  earlier->AddUp();
  return earlier;
}

uint64_t CandidateSet::operator[](uint64_t rank) const {
  QUERN_CHECK(rank < size_);
  size_t bucket = 0;
  for (size_t step = buckets_.size(); step > 0; step /= 2) {
    if (bucket + step >= sums_.size() || sums_[bucket + step] > rank) continue;
    bucket += step;
    rank -= sums_[bucket];
  }
  return buckets_[bucket][rank];
}

std::vector<uint64_t> CandidateSet::InOrder() const {
  std::vector<uint64_t> numbers;
  numbers.reserve(size_);
  for (const std::vector<uint32_t>& bucket : buckets_) numbers.insert(numbers.end(), bucket.begin(), bucket.end());
  return numbers;
}

}  // namespace quern
