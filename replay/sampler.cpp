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
constexpr uint64_t kMostNumbers = uint64_t{1} << 26;  // in all that is remembered of one kind
constexpr int kRounds = 8;
// Small ranges use a larger domain: a Feistel network over a handful of values has few distinct orders.
constexpr int kMinHalfBits = 3;

std::string FilterKey(const v1::Filter& filter) { return filter.SerializeAsString(); }

Status NothingMatches(uint64_t watermark) {
  return NotFound(StrCat("sample: no record up to number ", watermark, " matches the filter"));
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

RankDraws::RankDraws(uint64_t size, double exponent) {
  // 2^36 at most each: 2^28 records fit.
  constexpr double kScale = 68719476736.0;
  sums_.reserve(size);
  uint64_t sum = 0;
  for (uint64_t rank = 1; rank <= size; ++rank) {
    sum += std::max<uint64_t>(1, static_cast<uint64_t>(std::llround(kScale * std::pow(rank, -exponent))));
    sums_.push_back(sum);
  }
}

uint64_t RankDraws::operator()(uint64_t seed, uint64_t position) const {
  const auto noise = Philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0x72616e6b, 0},
                                {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t uniform = uint64_t{noise[0]} << 32 | noise[1];
  const auto at = static_cast<uint64_t>((static_cast<unsigned __int128>(uniform) * sums_.back()) >> 64);
  return static_cast<uint64_t>(std::upper_bound(sums_.begin(), sums_.end(), at) - sums_.begin());
}

double RankDraws::Probability(uint64_t index) const {
  const uint64_t before = index == 0 ? 0 : sums_[index - 1];
  return static_cast<double>(sums_[index] - before) / static_cast<double>(sums_.back());
}

v1::PartSummary Sampler::Describe(const RecordTable& table, const Pool& pool) {
  v1::PartSummary summary;
  std::unordered_set<uint64_t> texts;
  for (uint64_t i = 0; i < pool.size; ++i) {
    const uint64_t number = pool[i];
    texts.insert(table.row(number).text_hash);
    ++(*summary.mutable_depths())[table.KindOf(number).depth];
  }
  summary.set_records(pool.size);
  summary.set_unique(texts.size());
  return summary;
}

void Sampler::Clear() {
  std::lock_guard lock(mutex_);
  sets_.clear();
  lists_.clear();
}

Sampler::Numbers Sampler::Find(const std::string& key, uint64_t watermark) {
  for (auto it = lists_.begin(); it != lists_.end(); ++it) {
    if (it->key != key || it->watermark != watermark) continue;
    lists_.splice(lists_.begin(), lists_, it);
    return it->numbers;
  }
  return nullptr;
}

void Sampler::Remember(const std::string& key, uint64_t watermark, Numbers numbers) {
  lists_.push_front({key, watermark, std::move(numbers)});
  uint64_t size = 0;
  for (const List& list : lists_) size += list.numbers->size();
  while (lists_.size() > kEntries || (lists_.size() > 1 && size > kMostNumbers)) {
    size -= lists_.back().numbers->size();
    lists_.pop_back();
  }
}

Sampler::Set& Sampler::RememberSet(const std::string& key, std::shared_ptr<CandidateSet> candidates) {
  sets_.push_front({key, std::move(candidates)});
  uint64_t size = 0;
  for (const Set& set : sets_) size += set.candidates->size();
  while (sets_.size() > kEntries || (sets_.size() > 1 && size > kMostNumbers)) {
    size -= sets_.back().candidates->size();
    sets_.pop_back();
  }
  return sets_.front();
}

Result<std::shared_ptr<const CandidateSet>> Sampler::Candidates(const RecordTable& table, const v1::Filter& filter,
                                                                uint64_t watermark, const TextMatcher& matches_text) {
  const std::string key = FilterKey(filter);
  // The set of this watermark, else the newest older one, which grows, else a newer one, which is cut.
  auto found = sets_.end();
  for (auto it = sets_.begin(); it != sets_.end(); ++it) {
    if (it->key != key) continue;
    const auto fits = [&](const Set& set) { return set.candidates->watermark() <= watermark; };
    const bool better =
        found == sets_.end() || (fits(*it) && !fits(*found)) ||
        (fits(*it) == fits(*found) && (fits(*it) ? it->candidates->watermark() > found->candidates->watermark()
                                                 : it->candidates->watermark() < found->candidates->watermark()));
    if (better) found = it;
  }
  if (found != sets_.end()) sets_.splice(sets_.begin(), sets_, found);
  if (found != sets_.end() && found->candidates->watermark() > watermark)
    return std::shared_ptr<const CandidateSet>(RememberSet(key, found->candidates->At(watermark)).candidates);
  const std::shared_ptr<CandidateSet> set =
      found != sets_.end() ? found->candidates : RememberSet(key, std::make_shared<CandidateSet>(&table)).candidates;
  if (set->watermark() == watermark) return std::shared_ptr<const CandidateSet>(set);
  const RowFilter row_filter(filter, table);
  std::vector<uint32_t> fresh;
  for (uint64_t number = set->watermark(); (number = row_filter.FirstMatch(number + 1, watermark)) != 0;) {
    if (row_filter.needs_text()) {
      QUERN_ASSIGN_OR_RETURN(const bool matches, matches_text(number, row_filter));
      if (!matches) continue;
    }
    fresh.push_back(static_cast<uint32_t>(number));
  }
  set->Extend(fresh, watermark);
  return std::shared_ptr<const CandidateSet>(set);
}

Result<Sampler::Numbers> Sampler::TopCandidates(const RecordTable& table, const v1::SampleRequest& request,
                                                const std::string& filter, const CandidateSet& all) {
  const std::string key = StrCat(filter, "|top|", request.top_fraction());
  if (Numbers found = Find(key, request.watermark())) return found;
  const double share = static_cast<double>(all.size()) * request.top_fraction();
  // The allowance keeps a tenth of ten records at one, though the nearest float to 0.1 lies above it.
  const auto keep = static_cast<size_t>(std::max(1.0, std::ceil(share - 1e-6 * share)));
  std::vector<uint64_t> best = all.InOrder();
  std::nth_element(best.begin(), best.begin() + static_cast<ptrdiff_t>(keep - 1), best.end(),
                   [&](uint64_t a, uint64_t b) {
                     const double x = table.row(a).episode_return;
                     const double y = table.row(b).episode_return;
                     return x != y ? x > y : table.Before(a, b);
                   });
  best.resize(keep);
  std::sort(best.begin(), best.end(), [&](uint64_t a, uint64_t b) { return table.Before(a, b); });
  auto numbers = std::make_shared<const std::vector<uint64_t>>(std::move(best));
  Remember(key, request.watermark(), numbers);
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

  if (request.selector() < v1::SELECTOR_UNIFORM || request.selector() > v1::SELECTOR_FIFO)
    return InvalidArgument(StrCat("sample: unknown selector ", static_cast<int>(request.selector())));
  if (!(request.priority_exponent() >= 0 && request.priority_exponent() <= 16))
    return InvalidArgument(
        StrCat("sample: priority_exponent ", request.priority_exponent(), " is not between 0 and 16"));

  std::lock_guard lock(mutex_);
  Choice choice;
  if (!request.parts().empty()) {
    QUERN_RETURN_IF_ERROR(ChooseParts(table, request, matches_text, choice));
    return choice;
  }
  if (request.count() == 0) return InvalidArgument("sample: count 0");
  if (request.step() > ~uint64_t{0} / request.count() - 1)
    return InvalidArgument(StrCat("sample: step ", request.step(), " is out of range"));
  QUERN_ASSIGN_OR_RETURN(const Pool from, Arranged(table, request, request.filter(), 0, matches_text, &choice));
  if (from.size == 0) return NothingMatches(watermark);
  const uint64_t first = request.step() * request.count();
  QUERN_RETURN_IF_ERROR(Draw(request, from, request.seed(), first, request.count(), &choice.numbers));
  return choice;
}

Result<Sampler::Pool> Sampler::Arranged(const RecordTable& table, const v1::SampleRequest& request,
                                        const v1::Filter& filter, uint64_t limit, const TextMatcher& matches_text,
                                        Choice* choice) {
  Pool pool;
  QUERN_ASSIGN_OR_RETURN(pool.set, Candidates(table, filter, request.watermark(), matches_text));
  choice->candidates += pool.set->size();
  pool.size = pool.set->size();
  const std::string filter_key = FilterKey(filter);
  const bool top = request.top_fraction() > 0 && request.top_fraction() < 1 && pool.size > 0;
  if (top) {
    QUERN_ASSIGN_OR_RETURN(pool.list, TopCandidates(table, request, filter_key, *pool.set));
    pool.size = pool.list->size();
  }
  if (limit > 0) pool.size = std::min(limit, pool.size);
  const bool windowed = request.window() > 0 && request.window() < pool.size;
  if (!windowed && request.selector() == v1::SELECTOR_UNIFORM) return pool;
  const std::string key = StrCat(filter_key, "|", request.top_fraction(), "|", pool.size, "|", request.window(), "|",
                                 static_cast<int>(request.selector()));
  if (Numbers found = Find(key, request.watermark())) return Pool{.set = nullptr, .list = found, .size = found->size()};
  std::vector<uint64_t> numbers = top ? *pool.list : pool.set->InOrder();
  numbers.resize(pool.size);
  if (windowed) {
    std::sort(numbers.begin(), numbers.end());
    numbers.erase(numbers.begin(), numbers.end() - static_cast<ptrdiff_t>(request.window()));
  }
  switch (request.selector()) {
    case v1::SELECTOR_FIFO: std::sort(numbers.begin(), numbers.end()); break;
    case v1::SELECTOR_PRIORITISED:
      std::sort(numbers.begin(), numbers.end(), [&](uint64_t a, uint64_t b) {
        const double x = table.row(a).episode_return;
        const double y = table.row(b).episode_return;
        return x != y ? x > y : table.Before(a, b);
      });
      break;
    default: std::sort(numbers.begin(), numbers.end(), [&](uint64_t a, uint64_t b) { return table.Before(a, b); });
  }
  auto arranged = std::make_shared<const std::vector<uint64_t>>(std::move(numbers));
  Remember(key, request.watermark(), arranged);
  return Pool{.set = nullptr, .list = arranged, .size = arranged->size()};
}

Status Sampler::Draw(const v1::SampleRequest& request, const Pool& from, uint64_t seed, uint64_t first, uint64_t count,
                     std::vector<uint64_t>* numbers) {
  switch (request.selector()) {
    case v1::SELECTOR_FIFO:
      if (first >= from.size)
        return NotFound(StrCat("sample: all ", from.size, " records up to number ", request.watermark(),
                               " were given once; fifo gives none twice: make fewer steps"));
      for (uint64_t i = first; i < from.size && i - first < count; ++i) numbers->push_back(from[i]);
      return {};
    case v1::SELECTOR_PRIORITISED: {
      if (ranks_ == nullptr || ranks_size_ != from.size || ranks_exponent_ != request.priority_exponent()) {
        ranks_size_ = from.size;
        ranks_exponent_ = request.priority_exponent();
        ranks_ = std::make_shared<const RankDraws>(ranks_size_, ranks_exponent_);
      }
      for (uint64_t i = 0; i < count; ++i) numbers->push_back(from[(*ranks_)(seed, first + i)]);
      return {};
    }
    default:
      for (const uint64_t index : SequenceIndices(from.size, seed, first, count)) numbers->push_back(from[index]);
      return {};
  }
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
    QUERN_ASSIGN_OR_RETURN(const Pool from, Arranged(table, request, filter, part.limit(), matches_text, &choice));
    if (request.describe()) choice.parts.push_back(Describe(table, from));
    if (part.count() == 0) continue;
    if (from.size == 0) return NothingMatches(request.watermark());
    // Real records are drawn as if there were nothing else, the classes independently of each other.
    const uint64_t seed = part.data_class() <= v1::DATA_CLASS_REAL
                              ? request.seed()
                              : MixSeed(request.seed(), static_cast<uint64_t>(part.data_class()));
    QUERN_RETURN_IF_ERROR(Draw(request, from, seed, part.first(), part.count(), &choice.numbers));
  }
  return {};
}

}  // namespace quern
