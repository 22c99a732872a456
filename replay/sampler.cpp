#include "replay/sampler.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/check.h"
#include "base/random.h"
#include "base/strings.h"

namespace quern {

namespace {

constexpr size_t kEntries = 16;
constexpr int kRounds = 8;
// Small ranges use a larger domain: a Feistel network over a handful of values has few distinct orders.
constexpr int kMinHalfBits = 3;
constexpr uint64_t kRealStream = 1;
constexpr uint64_t kGeneratedStream = 2;

std::string FilterKey(const v1::Filter& filter) { return filter.SerializeAsString(); }

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

MixPlan PlanMix(uint64_t step, uint32_t count, float generated_share, bool any_generated, bool any_real) {
  const uint64_t first = step * count;
  MixPlan plan;
  if (!any_generated || !any_real) {
    (any_real ? plan.real_first : plan.generated_first) = first;
    (any_real ? plan.real_count : plan.generated_count) = count;
    return plan;
  }
  const auto share = static_cast<uint64_t>(std::llround(static_cast<double>(generated_share) * (1 << 20)));
  const auto generated_before = [&](uint64_t position) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(position) * share) >> 20);
  };
  plan.generated_first = generated_before(first);
  plan.generated_count = generated_before(first + count) - plan.generated_first;
  plan.real_first = first - plan.generated_first;
  plan.real_count = count - plan.generated_count;
  return plan;
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
  if (request.count() == 0) return InvalidArgument("sample: count 0");
  if (!(request.top_fraction() >= 0 && request.top_fraction() <= 1))
    return InvalidArgument(StrCat("sample: top_fraction ", request.top_fraction(), " is not between 0 and 1"));
  if (!(request.generated_share() >= 0 && request.generated_share() <= 1))
    return InvalidArgument(StrCat("sample: generated_share ", request.generated_share(), " is not between 0 and 1"));
  if (request.step() > ~uint64_t{0} / request.count() - 1)
    return InvalidArgument(StrCat("sample: step ", request.step(), " is out of range"));

  std::lock_guard lock(mutex_);
  Choice choice;
  const auto draw = [&](const Numbers& from, uint64_t seed, uint64_t first, uint64_t count) {
    if (count == 0) return;
    for (const uint64_t index : SequenceIndices(from->size(), seed, first, count))
      choice.numbers.push_back((*from)[index]);
  };
  const auto none = [&] {
    return NotFound(StrCat("sample: no record up to number ", watermark, " matches the filter"));
  };
  if (!request.mix()) {
    QUERN_ASSIGN_OR_RETURN(const Numbers from, TopCandidates(table, request.filter(), request.top_fraction(), watermark,
                                                             matches_text, &choice.candidates));
    if (from->empty()) return none();
    draw(from, request.seed(), request.step() * request.count(), request.count());
    return choice;
  }
  if (request.filter().source() != v1::SOURCE_UNSPECIFIED)
    return InvalidArgument("sample: a mix of real and generated records cannot be filtered by source");
  v1::Filter part = request.filter();
  part.set_source(v1::SOURCE_REAL);
  QUERN_ASSIGN_OR_RETURN(const Numbers real, TopCandidates(table, part, request.top_fraction(), watermark, matches_text,
                                                           &choice.candidates));
  part.set_source(v1::SOURCE_GENERATED);
  QUERN_ASSIGN_OR_RETURN(const Numbers generated, TopCandidates(table, part, request.top_fraction(), watermark,
                                                                matches_text, &choice.candidates));
  if (real->empty() && generated->empty()) return none();
  const MixPlan plan =
      PlanMix(request.step(), request.count(), request.generated_share(), !generated->empty(), !real->empty());
  draw(real, MixSeed(request.seed(), kRealStream), plan.real_first, plan.real_count);
  draw(generated, MixSeed(request.seed(), kGeneratedStream), plan.generated_first, plan.generated_count);
  return choice;
}

}  // namespace quern
