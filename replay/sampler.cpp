#include "replay/sampler.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <unordered_set>

#include "base/check.h"
#include "base/random.h"
#include "base/strings.h"

namespace quern {

namespace {

constexpr size_t kEntries = 16;
constexpr int kRounds = 8;
// Small ranges use a larger domain: a Feistel network over a handful of values has few distinct orders.
constexpr int kMinHalfBits = 3;

std::string FilterKey(const v1::Filter& filter) { return filter.SerializeAsString(); }

Status NothingMatches(uint64_t watermark) {
  return NotFound(StrCat("sample: no record up to number ", watermark, " matches the filter"));
}

v1::PartSummary Describe(const RecordTable& table, const std::vector<uint64_t>& numbers, size_t size) {
  v1::PartSummary summary;
  std::unordered_set<uint64_t> texts;
  for (size_t i = 0; i < size; ++i) {
    const RecordRow& row = table.row(numbers[i]);
    texts.insert(row.text_hash);
    ++(*summary.mutable_depths())[row.depth];
  }
  summary.set_records(size);
  summary.set_unique(texts.size());
  return summary;
}

}  // namespace

Permutation::Permutation(uint64_t size, uint64_t seed, uint64_t epoch)
    : size_(size), seed_(seed), epoch_(epoch), half_bits_(kMinHalfBits) {
  QUERN_CHECK(size > 0 && size <= (uint64_t{1} << 62));
  while ((uint64_t{1} << (2 * half_bits_)) < size) ++half_bits_;
}

uint64_t Permutation::operator()(uint64_t index) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  do {
    uint64_t left = index >> half_bits_;
    uint64_t right = index & mask;
    for (uint32_t round = 0; round < kRounds; ++round) {
      const auto noise = Philox4x32(
          {static_cast<uint32_t>(right), round, static_cast<uint32_t>(epoch_), static_cast<uint32_t>(epoch_ >> 32)},
          {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
      const uint64_t next = left ^ (noise[0] & mask);
      left = right;
      right = next;
    }
    index = (left << half_bits_) | right;
  } while (index >= size_);
  return index;
}

std::vector<uint64_t> SequenceIndices(uint64_t size, uint64_t seed, uint64_t first, uint64_t count) {
  std::vector<uint64_t> indices;
  indices.reserve(count);
  while (indices.size() < count) {
    const uint64_t position = first + indices.size();
    const Permutation permutation(size, seed, position / size);
    for (uint64_t j = position % size; j < size && indices.size() < count; ++j) indices.push_back(permutation(j));
  }
  return indices;
}

void Sampler::Clear() {
  std::lock_guard lock(mutex_);
  entries_.clear();
}

Sampler::Numbers Sampler::Find(const std::string& key, uint64_t watermark) {
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    if (it->key != key || it->watermark != watermark) continue;
    entries_.splice(entries_.begin(), entries_, it);
    return it->numbers;
  }
  return nullptr;
}

void Sampler::Remember(const std::string& key, uint64_t watermark, Numbers numbers) {
  entries_.push_front({key, watermark, std::move(numbers)});
  if (entries_.size() > kEntries) entries_.pop_back();
}

Result<Sampler::Numbers> Sampler::Candidates(const RecordTable& table, const v1::Filter& filter, uint64_t watermark,
                                             const TextMatcher& matches_text) {
  const std::string key = FilterKey(filter);
  if (Numbers found = Find(key, watermark)) return found;
  // The nearest older list is extended; without one, a newer list is cut.
  const Entry* older = nullptr;
  const Entry* newer = nullptr;
  for (const Entry& entry : entries_) {
    if (entry.key != key) continue;
    if (entry.watermark < watermark && (older == nullptr || entry.watermark > older->watermark)) older = &entry;
    if (entry.watermark > watermark && (newer == nullptr || entry.watermark < newer->watermark)) newer = &entry;
  }
  auto numbers = std::make_shared<std::vector<uint64_t>>();
  if (older == nullptr && newer != nullptr) {
    std::copy_if(newer->numbers->begin(), newer->numbers->end(), std::back_inserter(*numbers),
                 [&](uint64_t number) { return number <= watermark; });
  } else {
    const auto before = [&](uint64_t a, uint64_t b) { return table.Before(a, b); };
    const RowFilter row_filter(filter, table);
    std::vector<uint64_t> fresh;
    for (uint64_t number = older == nullptr ? 1 : older->watermark + 1; number <= watermark; ++number) {
      if (!row_filter.Matches(table.row(number))) continue;
      if (row_filter.needs_text()) {
        QUERN_ASSIGN_OR_RETURN(const bool matches, matches_text(number, row_filter));
        if (!matches) continue;
      }
      fresh.push_back(number);
    }
    std::sort(fresh.begin(), fresh.end(), before);
    if (older == nullptr) {
      *numbers = std::move(fresh);
    } else {
      numbers->reserve(older->numbers->size() + fresh.size());
      std::merge(older->numbers->begin(), older->numbers->end(), fresh.begin(), fresh.end(),
                 std::back_inserter(*numbers), before);
    }
  }
  Remember(key, watermark, numbers);
  return Numbers(numbers);
}

Result<Sampler::Numbers> Sampler::TopCandidates(const RecordTable& table, const v1::Filter& filter, float top_fraction,
                                                uint64_t watermark, const TextMatcher& matches_text,
                                                uint64_t* matched) {
  QUERN_ASSIGN_OR_RETURN(const Numbers all, Candidates(table, filter, watermark, matches_text));
  *matched += all->size();
  if (top_fraction == 0 || top_fraction == 1 || all->empty()) return all;
  const std::string key = StrCat(FilterKey(filter), "|top|", top_fraction);
  if (Numbers found = Find(key, watermark)) return found;
  const double share = static_cast<double>(all->size()) * top_fraction;
  // The allowance keeps a tenth of ten records at one, though the nearest float to 0.1 lies above it.
  const auto keep = static_cast<size_t>(std::max(1.0, std::ceil(share - 1e-6 * share)));
  std::vector<uint64_t> best = *all;
  std::nth_element(best.begin(), best.begin() + static_cast<ptrdiff_t>(keep - 1), best.end(),
                   [&](uint64_t a, uint64_t b) {
                     const double x = table.row(a).episode_return;
                     const double y = table.row(b).episode_return;
                     return x != y ? x > y : table.Before(a, b);
                   });
  best.resize(keep);
  std::sort(best.begin(), best.end(), [&](uint64_t a, uint64_t b) { return table.Before(a, b); });
  auto numbers = std::make_shared<const std::vector<uint64_t>>(std::move(best));
  Remember(key, watermark, numbers);
  return Numbers(numbers);
}

Result<Sampler::Choice> Sampler::Choose(const RecordTable& table, const v1::SampleRequest& request,
                                        const TextMatcher& matches_text) {
  const uint64_t watermark = request.watermark();
  if (watermark == 0) return InvalidArgument("sample: watermark 0; give the newest record's number to sample up to");
  if (watermark > table.newest())
    return FailedPrecondition(
        StrCat("sample: watermark ", watermark, ", but the newest record is number ", table.newest()));
  if (!(request.top_fraction() >= 0 && request.top_fraction() <= 1))
    return InvalidArgument(StrCat("sample: top_fraction ", request.top_fraction(), " is not between 0 and 1"));

  std::lock_guard lock(mutex_);
  Choice choice;
  if (!request.parts().empty()) {
    QUERN_RETURN_IF_ERROR(ChooseParts(table, request, matches_text, choice));
    return choice;
  }
  if (request.count() == 0) return InvalidArgument("sample: count 0");
  if (request.step() > ~uint64_t{0} / request.count() - 1)
    return InvalidArgument(StrCat("sample: step ", request.step(), " is out of range"));
  QUERN_ASSIGN_OR_RETURN(const Numbers from, TopCandidates(table, request.filter(), request.top_fraction(), watermark,
                                                           matches_text, &choice.candidates));
  if (from->empty()) return NothingMatches(watermark);
  const uint64_t first = request.step() * request.count();
  for (const uint64_t index : SequenceIndices(from->size(), request.seed(), first, request.count()))
    choice.numbers.push_back((*from)[index]);
  return choice;
}

Status Sampler::ChooseParts(const RecordTable& table, const v1::SampleRequest& request, const TextMatcher& matches_text,
                            Choice& choice) {
  if (request.filter().data_class() != v1::DATA_CLASS_UNSPECIFIED)
    return InvalidArgument("sample: a request in parts cannot be filtered by class");
  if (request.count() != 0 || request.step() != 0)
    return InvalidArgument("sample: a request in parts has no step and count of its own");
  v1::Filter filter = request.filter();
  for (const v1::SamplePart& part : request.parts()) {
    if (part.first() > ~uint64_t{0} - part.count())
      return InvalidArgument(StrCat("sample: first ", part.first(), " is out of range"));
    filter.set_data_class(part.data_class());
    QUERN_ASSIGN_OR_RETURN(const Numbers from, TopCandidates(table, filter, request.top_fraction(), request.watermark(),
                                                             matches_text, &choice.candidates));
    const size_t size = part.limit() == 0 ? from->size() : std::min<size_t>(part.limit(), from->size());
    if (request.describe()) choice.parts.push_back(Describe(table, *from, size));
    if (part.count() == 0) continue;
    if (size == 0) return NothingMatches(request.watermark());
    // Real records are drawn as if there were nothing else, the classes independently of each other.
    const uint64_t seed = part.data_class() <= v1::DATA_CLASS_REAL
                              ? request.seed()
                              : MixSeed(request.seed(), static_cast<uint64_t>(part.data_class()));
    for (const uint64_t index : SequenceIndices(size, seed, part.first(), part.count()))
      choice.numbers.push_back((*from)[index]);
  }
  return {};
}

}  // namespace quern
