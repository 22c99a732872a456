#include "replay/store.h"

#include <rocksdb/write_batch.h>

#include <algorithm>
#include <thread>
#include <unordered_set>

#include "base/strings.h"
#include "replay/store_impl.h"

namespace quern {

namespace {

constexpr uint32_t kDefaultPage = 1000;
constexpr size_t kPageBytes = size_t{16} << 20;

CheckedRequest CheckRequest(const v1::InsertRequest& request, const RecordLimits& limits) {
  CheckedRequest checked;
  checked.request = &request;
  if (static_cast<size_t>(request.trajectories_size()) > limits.records_per_insert) {
    checked.status = InvalidArgument(StrCat("insert of ", request.trajectories_size(),
                                            " trajectories, over the limit of ", limits.records_per_insert));
    return checked;
  }
  v1::Trajectory trajectory;
  for (const std::string& bytes : request.trajectories()) {
    checked.status = ParseTrajectory(bytes, limits, &trajectory);
    if (!checked.status.ok()) return checked;
    checked.records.push_back({&bytes, trajectory.uid(), MakeRow(trajectory, bytes.size())});
  }
  return checked;
}

std::vector<Result<v1::InsertReply>> FailAll(const std::vector<CheckedRequest>& checked, const Status& status) {
  std::vector<Result<v1::InsertReply>> replies;
  for (const CheckedRequest& request : checked) replies.push_back(request.status.ok() ? status : request.status);
  return replies;
}

}  // namespace

Result<v1::InsertReply> Store::Insert(const v1::InsertRequest& request) {
  std::vector<Result<v1::InsertReply>> replies = InsertGroup({&request});
  return std::move(replies[0]);
}

std::vector<Result<v1::InsertReply>> Store::InsertGroup(const std::vector<const v1::InsertRequest*>& requests) {
  std::vector<CheckedRequest> checked;
  for (const v1::InsertRequest* request : requests) checked.push_back(CheckRequest(*request, impl_->options.limits));

  Impl& store = *impl_;
  if (store.options.read_only)
    return FailAll(checked, FailedPrecondition(store.directory + ": opened for reading only"));
  std::lock_guard write_lock(store.write_mutex);
  const bool recovering = !store.read_only.empty();
  for (int attempt = 1;; ++attempt) {
    if (!store.read_only.empty()) {
      if (const Status status = store.Recover(); !status.ok()) return FailAll(checked, status);
    }
    std::vector<Result<v1::InsertReply>> replies = store.Write(checked);
    // A flush of the time when the disk had no room may still report it after the store has recovered.
    if (store.read_only.empty() || !recovering || attempt == 3) return replies;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

// With write_mutex held. Every request that was found sound, in one synced batch.
std::vector<Result<v1::InsertReply>> Store::Impl::Write(const std::vector<CheckedRequest>& checked) {
  std::vector<Result<v1::InsertReply>> replies(checked.size(), v1::InsertReply());
  rocksdb::WriteBatch batch;
  std::unordered_set<std::string> uids;
  std::vector<const StoredRow*> rows;
  uint64_t newest = table.newest();
  uint64_t repeated = duplicates;
  std::string found;
  Writers changed;
  for (size_t r = 0; r < checked.size(); ++r) {
    if (!checked[r].status.ok()) {
      replies[r] = checked[r].status;
      continue;
    }
    const v1::InsertRequest& request = *checked[r].request;
    size_t known = 0;
    if (request.epoch() != 0) {
      const Result<size_t> admitted = Admit(checked[r], &changed);
      if (!admitted.ok()) {
        replies[r] = admitted.status();
        continue;
      }
      known = *admitted;
      const auto state = changed.find(request.writer());
      const uint64_t next = (state != changed.end() ? state->second : writers[request.writer()]).next_sequence();
      replies[r]->set_next_sequence(next);
      replies[r]->set_gap(request.first_sequence() > next);
      if (replies[r]->gap()) continue;
      replies[r]->set_duplicates(known);
      repeated += known;
    }
    for (size_t i = known; i < checked[r].records.size(); ++i) {
      const NewRecord& record = checked[r].records[i];
      bool stored = !uids.insert(record.uid).second;
      if (!stored) {
        const rocksdb::Status status = db->Get(rocksdb::ReadOptions(), families[kUids], record.uid, &found);
        if (!status.ok() && !status.IsNotFound()) return FailAll(checked, FromRocks(status));
        stored = status.ok();
      }
      if (stored) {
        ++repeated;
        replies[r]->set_duplicates(replies[r]->duplicates() + 1);
        continue;
      }
      const std::string key = NumberKey(++newest);
      (void)batch.Put(families[kRecords], key, *record.bytes);
      (void)batch.Put(families[kUids], record.uid, key);
      (void)batch.Put(families[kRows], key, EncodeRow(record.row));
      rows.push_back(&record.row);
      replies[r]->set_inserted(replies[r]->inserted() + 1);
    }
  }
  if (repeated != duplicates) (void)batch.Put(families[kState], "duplicates", NumberKey(repeated));
  for (const auto& [writer, state] : changed)
    (void)batch.Put(families[kState], WriterKey(writer), state.SerializeAsString());
  if (batch.Count() > 0) {
    rocksdb::WriteOptions write;
    write.sync = !rows.empty() || !changed.empty();
    if (const rocksdb::Status status = db->Write(write, &batch); !status.ok())
      return FailAll(checked, WriteFailed(status));
  }
  duplicates = repeated;
  for (auto& [writer, state] : changed) writers[writer] = std::move(state);
  {
    std::unique_lock lock(state_mutex);
    for (const StoredRow* row : rows) table.Append(*row);
  }
  for (Result<v1::InsertReply>& reply : replies)
    if (reply.ok()) reply->set_watermark(newest);
  return replies;
}

Result<v1::ContainsReply> Store::Contains(const v1::ContainsRequest& request) {
  const RecordLimits& limits = impl_->options.limits;
  if (static_cast<size_t>(request.uids_size()) > limits.uids_per_question)
    return InvalidArgument(
        StrCat("contains: ", request.uids_size(), " uids, over the limit of ", limits.uids_per_question));
  std::shared_lock lock(impl_->state_mutex);
  QUERN_RETURN_IF_ERROR(impl_->CheckOpen());
  const std::vector<rocksdb::Slice> uids(request.uids().begin(), request.uids().end());
  const std::vector<rocksdb::ColumnFamilyHandle*> from(uids.size(), impl_->families[kUids]);
  std::vector<std::string> numbers;
  const std::vector<rocksdb::Status> statuses = impl_->db->MultiGet(rocksdb::ReadOptions(), from, uids, &numbers);
  v1::ContainsReply reply;
  for (const rocksdb::Status& status : statuses) {
    if (!status.ok() && !status.IsNotFound()) return impl_->FromRocks(status);
    reply.add_stored(status.ok());
  }
  return reply;
}

Result<std::string> Store::Impl::ReadRecord(uint64_t number) const {
  rocksdb::ReadOptions read;
  read.verify_checksums = true;
  std::string bytes;
  const rocksdb::Status status = db->Get(read, families[kRecords], NumberKey(number), &bytes);
  if (status.IsNotFound()) return DataLoss(StrCat(directory, ": record ", number, " is missing"));
  if (!status.ok()) return FromRocks(status).Annotate(StrCat("record ", number));
  return bytes;
}

Result<bool> Store::Impl::TextMatches(uint64_t number, const RowFilter& filter) const {
  QUERN_ASSIGN_OR_RETURN(const std::string bytes, ReadRecord(number));
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
  std::vector<std::string> keys;
  keys.reserve(choice.numbers.size());
  for (const uint64_t number : choice.numbers) keys.push_back(NumberKey(number));
  const std::vector<rocksdb::Slice> slices(keys.begin(), keys.end());
  const std::vector<rocksdb::ColumnFamilyHandle*> from(keys.size(), impl_->families[kRecords]);
  std::vector<std::string> values;
  const std::vector<rocksdb::Status> statuses = impl_->db->MultiGet(rocksdb::ReadOptions(), from, slices, &values);
  v1::SampleReply reply;
  reply.set_candidates(choice.candidates);
  for (const v1::PartSummary& part : choice.parts) *reply.add_parts() = part;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (statuses[i].IsNotFound())
      return DataLoss(StrCat(impl_->directory, ": record ", choice.numbers[i], " is missing"));
    if (!statuses[i].ok()) return impl_->FromRocks(statuses[i]).Annotate(StrCat("record ", choice.numbers[i]));
    reply.add_trajectories(std::move(values[i]));
    reply.add_numbers(choice.numbers[i]);
  }
  return reply;
}

Result<v1::QueryReply> Store::Query(const v1::QueryRequest& request) {
  std::shared_lock lock(impl_->state_mutex);
  QUERN_RETURN_IF_ERROR(impl_->CheckOpen());
  const RecordTable& table = impl_->table;
  const RowFilter filter(request.filter(), table);
  const uint32_t limit = request.limit() == 0 ? kDefaultPage : request.limit();
  v1::QueryReply reply;
  uint64_t count = 0;
  size_t bytes = 0;
  const bool down = request.newest_first();
  const uint64_t newest = table.newest();
  uint64_t number =
      down ? (request.after() == 0 ? newest : std::min(newest, request.after() - 1)) : request.after() + 1;
  for (; number != 0 && number <= newest; down ? --number : ++number) {
    if (!filter.Matches(table.row(number))) continue;
    const bool full = !request.count_only() && (count >= limit || bytes >= kPageBytes);
    if (full && !filter.needs_text()) {
      reply.set_more(true);
      break;
    }
    if (request.count_only() && !filter.needs_text()) {
      ++count;
      continue;
    }
    QUERN_ASSIGN_OR_RETURN(std::string record, impl_->ReadRecord(number));
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
  std::vector<uint64_t> tag_sets(table.tag_sets());
  for (uint64_t number = 1; number <= table.newest(); ++number) {
    const RecordRow& row = table.row(number);
    if (!filter.Matches(row)) continue;
    if (filter.needs_text()) {
      QUERN_ASSIGN_OR_RETURN(const bool matches, impl_->TextMatches(number, filter));
      if (!matches) continue;
    }
    ++records;
    tokens += row.tokens;
    bytes += row.bytes;
    successes += row.success ? 1 : 0;
    if (row.source == v1::SOURCE_REAL)
      reply.set_real(reply.real() + 1);
    else
      reply.set_generated(reply.generated() + 1);
    const double value = row.episode_return;
    sum += value;
    squares += static_cast<__float128>(value) * value;
    reply.set_min_return(records == 1 ? value : std::min(reply.min_return(), value));
    reply.set_max_return(records == 1 ? value : std::max(reply.max_return(), value));
    ++tag_sets[row.tag_set];
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
  for (size_t set = 0; set < tag_sets.size(); ++set) {
    if (tag_sets[set] == 0) continue;
    for (const uint32_t tag : table.tag_set(static_cast<uint32_t>(set))) tags[table.name(tag)] += tag_sets[set];
  }
  for (const auto& [tag, count] : tags) {
    v1::TagCount* entry = reply.add_tags();
    entry->set_tag(tag);
    entry->set_records(count);
  }
  return reply;
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
