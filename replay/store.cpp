#include "replay/store.h"

#include <algorithm>

#include "base/strings.h"
#include "replay/store_impl.h"

namespace quern {

namespace {

constexpr uint32_t kDefaultPage = 1000;
constexpr size_t kPageBytes = size_t{16} << 20;
constexpr size_t kReturnValues = 16;   // different returns that are shown each for itself
constexpr size_t kReturnBuckets = 10;  // of equal width, where there are more

// A histogram.
void AddReturns(std::vector<double>& returns, v1::StatsReply& reply) {
  std::sort(returns.begin(), returns.end());
  std::vector<double> values;
  for (const double value : returns)
    if ((values.empty() || value != values.back()) && values.size() <= kReturnValues) values.push_back(value);
  const auto below = [&](double bound) { return std::lower_bound(returns.begin(), returns.end(), bound); };
  const bool few = values.size() <= kReturnValues;
  for (size_t i = 0; i < (few ? values.size() : kReturnBuckets); ++i) {
    v1::ReturnBucket& bucket = *reply.add_returns();
    const double width = (returns.back() - returns.front()) / kReturnBuckets;
    const bool last = few ? i + 1 == values.size() : i + 1 == kReturnBuckets;
    bucket.set_low(few ? values[i] : returns.front() + width * static_cast<double>(i));
    bucket.set_high(few ? values[i] : last ? returns.back() : bucket.low() + width);
    const auto next = few && !last ? values[i + 1] : returns.front() + width * static_cast<double>(i + 1);
    bucket.set_records(static_cast<uint64_t>((last ? returns.end() : below(next)) - below(bucket.low())));
  }
}

}  // namespace

Result<v1::ContainsReply> Store::Contains(const v1::ContainsRequest& request) {
  const RecordLimits& limits = impl_->options.limits;
  if (static_cast<size_t>(request.uids_size()) > limits.uids_per_question)
    return InvalidArgument(
        StrCat("contains: ", request.uids_size(), " uids, over the limit of ", limits.uids_per_question));
  std::shared_lock lock(impl_->state_mutex);
  QUERN_RETURN_IF_ERROR(impl_->CheckOpen());
  v1::ContainsReply reply;
  for (const std::string& uid : request.uids()) reply.add_stored(impl_->table.Find(uid) != 0);
  return reply;
}

Status Store::Impl::ReadRecord(uint64_t number, std::string* bytes) const {
  const RecordRow& row = table.row(number);
  return log->Read(number, row.place, row.bytes, bytes);
}

Result<bool> Store::Impl::TextMatches(uint64_t number, const RowFilter& filter) const {
  std::string bytes;
  QUERN_RETURN_IF_ERROR(ReadRecord(number, &bytes));
  v1::Trajectory trajectory;
  if (!trajectory.ParseFromString(bytes)) return DataLoss(StrCat(directory, ": record ", number, " does not parse"));
  return filter.MatchesText(trajectory);
}

Result<v1::SampleReply> Store::Sample(const v1::SampleRequest& request) {
  std::shared_lock lock(impl_->state_mutex);
  QUERN_ASSIGN_OR_RETURN(const Sampler::Choice choice,
                         impl_->sampler.Choose(impl_->table, request, [this](uint64_t number, const RowFilter& filter) {
                           return impl_->TextMatches(number, filter);
                         }));
  v1::SampleReply reply;
  reply.set_candidates(choice.candidates);
  for (const v1::PartSummary& part : choice.parts) *reply.add_parts() = part;
  for (const uint64_t number : choice.numbers) {
    QUERN_RETURN_IF_ERROR(impl_->ReadRecord(number, reply.add_trajectories()));
    reply.add_numbers(number);
  }
  return reply;
}

Result<v1::QueryReply> Store::Query(const v1::QueryRequest& request) {
  std::shared_lock lock(impl_->state_mutex);
  QUERN_RETURN_IF_ERROR(impl_->CheckOpen());
  const RecordTable& table = impl_->table;
  const RowFilter filter(request.filter(), table, request.pruned_too());
  if (request.pruned_too() && (!request.count_only() || filter.needs_text()))
    return InvalidArgument("query: of pruned records nothing but their number is left, by all but the prompt");
  const uint32_t limit = request.limit() == 0 ? kDefaultPage : request.limit();
  v1::QueryReply reply;
  uint64_t count = 0;
  size_t bytes = 0;
  const bool down = request.newest_first();
  const uint64_t newest = table.newest();
  uint64_t number =
      down ? (request.after() == 0 ? newest : std::min(newest, request.after() - 1)) : request.after() + 1;
  for (; number != 0 && number <= newest; down ? --number : ++number) {
    number = down ? filter.LastMatch(1, number) : filter.FirstMatch(number, newest);
    if (number == 0) break;
    const bool full = !request.count_only() && (count >= limit || bytes >= kPageBytes);
    if (full && !filter.needs_text()) {
      reply.set_more(true);
      break;
    }
    if (request.count_only() && !filter.needs_text()) {
      ++count;
      continue;
    }
    std::string record;
    QUERN_RETURN_IF_ERROR(impl_->ReadRecord(number, &record));
    if (filter.needs_text()) {
      v1::Trajectory trajectory;
      if (!trajectory.ParseFromString(record))
        return DataLoss(StrCat(impl_->directory, ": record ", number, " does not parse"));
      if (!filter.MatchesText(trajectory)) continue;
    }
    if (full) {
      reply.set_more(true);
      break;
    }
    ++count;
    if (request.count_only()) continue;
    bytes += record.size();
    reply.add_trajectories(std::move(record));
    reply.add_numbers(number);
  }
  reply.set_count(count);
  return reply;
}

Result<v1::StatsReply> Store::Stats(const v1::StatsRequest& request) {
  v1::StatsReply reply;
  {
    std::lock_guard lock(impl_->write_mutex);
    reply.set_duplicates(impl_->duplicates);
    for (const auto& [name, state] : impl_->writers) *reply.add_writers() = state;
  }
  std::shared_lock lock(impl_->state_mutex);
  QUERN_RETURN_IF_ERROR(impl_->CheckOpen());
  const RecordTable& table = impl_->table;
  const RowFilter filter(request.filter(), table);
  reply.set_watermark(table.newest());
  uint64_t tokens = 0;
  uint64_t bytes = 0;
  uint64_t successes = 0;
  uint64_t records = 0;
  // Wide enough that sums of doubles of ordinary size are exact: the order of arrival does not show in a result.
  __float128 sum = 0;
  __float128 squares = 0;
  std::vector<uint64_t> kinds(table.kinds());
  std::vector<double> returns;
  for (uint64_t number = 0; (number = filter.FirstMatch(number + 1, table.newest())) != 0;) {
    const RecordRow& row = table.row(number);
    if (filter.needs_text()) {
      QUERN_ASSIGN_OR_RETURN(const bool matches, impl_->TextMatches(number, filter));
      if (!matches) continue;
    }
    ++records;
    tokens += row.tokens;
    bytes += row.bytes;
    successes += row.success ? 1 : 0;
    const double value = row.episode_return;
    sum += value;
    squares += static_cast<__float128>(value) * value;
    if (request.breakdown()) returns.push_back(value);
    reply.set_min_return(records == 1 ? value : std::min(reply.min_return(), value));
    reply.set_max_return(records == 1 ? value : std::max(reply.max_return(), value));
    ++kinds[row.kind];
  }
  reply.set_records(records);
  reply.set_tokens(tokens);
  reply.set_bytes(bytes);
  if (records > 0) {
    const __float128 mean = sum / records;
    reply.set_mean_return(static_cast<double>(mean));
    reply.set_return_variance(std::max(0.0, static_cast<double>(squares / records - mean * mean)));
    reply.set_success_rate(static_cast<double>(successes) / static_cast<double>(records));
  }
  std::map<std::string, uint64_t> tags;
  std::map<std::string, uint64_t> runs;
  for (size_t id = 0; id < kinds.size(); ++id) {
    if (kinds[id] == 0) continue;
    const RecordKind& kind = table.kind(static_cast<uint32_t>(id));
    if (request.breakdown()) {
      runs[table.name(kind.run)] += kinds[id];
      (*reply.mutable_versions())[kind.version] += kinds[id];
      (*reply.mutable_depths())[kind.depth] += kinds[id];
    }
    if (kind.source == v1::SOURCE_REAL)
      reply.set_real(reply.real() + kinds[id]);
    else
      reply.set_generated(reply.generated() + kinds[id]);
    for (const uint32_t tag : table.tag_set(kind.tag_set)) tags[table.name(tag)] += kinds[id];
  }
  const auto add = [](const std::map<std::string, uint64_t>& counts, auto* to) {
    for (const auto& [name, count] : counts) {
      v1::TagCount* entry = to->Add();
      entry->set_tag(name);
      entry->set_records(count);
    }
  };
  add(tags, reply.mutable_tags());
  add(runs, reply.mutable_runs());
  if (request.breakdown()) AddReturns(returns, reply);
  return reply;
}

void Store::ObserveCommits(std::function<void(double seconds, uint64_t records)> observer) {
  std::lock_guard lock(impl_->write_mutex);
  impl_->observer = std::move(observer);
}

uint64_t Store::watermark() const {
  std::shared_lock lock(impl_->state_mutex);
  return impl_->table.newest();
}

std::string Store::read_only_reason() const {
  std::lock_guard lock(impl_->write_mutex);
  return impl_->read_only;
}

const std::string& Store::directory() const { return impl_->directory; }

}  // namespace quern
