#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <rocksdb/write_batch.h>

#include <thread>
#include <unordered_set>

#include "base/strings.h"
#include "replay/ledger.h"
#include "replay/store_impl.h"

namespace quern {

namespace {

using google::protobuf::internal::WireFormatLite;

constexpr size_t kGroupBytes = size_t{64} << 20;

CheckedRequest Check(const std::vector<std::string_view>& trajectories, const RecordLimits& limits) {
  CheckedRequest checked;
  if (trajectories.size() > limits.records_per_insert) {
    checked.status = InvalidArgument(
        StrCat("insert of ", trajectories.size(), " trajectories, over the limit of ", limits.records_per_insert));
    return checked;
  }
  v1::Trajectory trajectory;
  checked.records.reserve(trajectories.size());
  for (const std::string_view bytes : trajectories) {
    checked.status = ParseTrajectory(bytes, limits, &trajectory);
    if (!checked.status.ok()) return checked;
    checked.records.push_back({.bytes = bytes,
                               .hash = RecordLog::HashOf(bytes),
                               .uid = trajectory.uid(),
                               .row = MakeRow(trajectory, bytes.size())});
    checked.bytes += bytes.size();
  }
  return checked;
}

CheckedRequest Check(const v1::InsertRequest& request, const RecordLimits& limits) {
  CheckedRequest checked =
      Check(std::vector<std::string_view>(request.trajectories().begin(), request.trajectories().end()), limits);
  checked.writer = request.writer();
  checked.epoch = request.epoch();
  checked.first_sequence = request.first_sequence();
  return checked;
}

// A serialised v1::InsertRequest, without copying its records.
CheckedRequest Check(std::string_view request, const RecordLimits& limits) {
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(request.data()),
                                            static_cast<int>(request.size()));
  std::vector<std::string_view> trajectories;
  std::string_view writer;
  uint64_t epoch = 0;
  uint64_t first_sequence = 0;
  const auto read_bytes = [&](std::string_view* bytes) {
    uint32_t size = 0;
    if (!in.ReadVarint32(&size)) return false;
    const auto at = static_cast<size_t>(in.CurrentPosition());
    if (size > request.size() - at) return false;
    *bytes = request.substr(at, size);
    return in.Skip(static_cast<int>(size));
  };
  bool whole = true;
  uint32_t tag = 0;
  while (whole && (tag = in.ReadTag()) != 0) {
    if (tag == WireFormatLite::MakeTag(v1::InsertRequest::kTrajectoriesFieldNumber,
                                       WireFormatLite::WIRETYPE_LENGTH_DELIMITED)) {
      if (trajectories.size() > limits.records_per_insert) break;
      whole = read_bytes(&trajectories.emplace_back());
    } else if (tag == WireFormatLite::MakeTag(v1::InsertRequest::kWriterFieldNumber,
                                              WireFormatLite::WIRETYPE_LENGTH_DELIMITED)) {
      whole = read_bytes(&writer);
    } else if (tag == WireFormatLite::MakeTag(v1::InsertRequest::kEpochFieldNumber, WireFormatLite::WIRETYPE_VARINT)) {
      whole = in.ReadVarint64(&epoch);
    } else if (tag ==
               WireFormatLite::MakeTag(v1::InsertRequest::kFirstSequenceFieldNumber, WireFormatLite::WIRETYPE_VARINT)) {
      whole = in.ReadVarint64(&first_sequence);
    } else {
      whole = WireFormatLite::SkipField(&in, tag);
    }
  }
  CheckedRequest checked;
  if (trajectories.size() > limits.records_per_insert) {
    checked.status = InvalidArgument(
        StrCat("the insert has more than ", limits.records_per_insert, " trajectories: send fewer at once"));
  } else if (!whole || !in.ConsumedEntireMessage()) {
    checked.status = InvalidArgument("the request does not parse as an InsertRequest");
  } else {
    checked = Check(trajectories, limits);
    checked.writer = writer;
    checked.epoch = epoch;
    checked.first_sequence = first_sequence;
  }
  return checked;
}

std::vector<Result<v1::InsertReply>> FailAll(const std::vector<const CheckedRequest*>& checked, const Status& status) {
  std::vector<Result<v1::InsertReply>> replies;
  for (const CheckedRequest* request : checked) replies.push_back(request->status.ok() ? status : request->status);
  return replies;
}

}  // namespace

Result<v1::InsertReply> Store::Insert(const v1::InsertRequest& request) {
  return impl_->Commit(Check(request, impl_->options.limits));
}

Result<v1::InsertReply> Store::InsertBytes(std::string_view request) {
  return impl_->Commit(Check(request, impl_->options.limits));
}

std::vector<Result<v1::InsertReply>> Store::InsertGroup(const std::vector<const v1::InsertRequest*>& requests) {
  std::vector<CheckedRequest> checked;
  for (const v1::InsertRequest* request : requests) checked.push_back(Check(*request, impl_->options.limits));
  std::vector<const CheckedRequest*> group;
  for (const CheckedRequest& request : checked) group.push_back(&request);
  return impl_->CommitGroup(group);
}

// The thread that finds no commit under way does the next one, for all that wait by then.
Result<v1::InsertReply> Store::Impl::Commit(const CheckedRequest& request) {
  if (!request.status.ok()) return request.status;
  Waiting mine{.request = &request};
  waiting_records += request.records.size();
  std::unique_lock lock(queue_mutex);
  queue.push_back(&mine);
  while (true) {
    committed.wait(lock, [&] { return mine.done || !committing; });
    if (mine.done) {
      waiting_records -= request.records.size();
      return std::move(mine.reply);
    }
    committing = true;
    std::vector<Waiting*> group;
    std::vector<const CheckedRequest*> requests;
    for (size_t bytes = 0; !queue.empty() && bytes < kGroupBytes; queue.pop_front()) {
      group.push_back(queue.front());
      requests.push_back(queue.front()->request);
      bytes += requests.back()->bytes + 1;
    }
    lock.unlock();
    std::vector<Result<v1::InsertReply>> replies = CommitGroup(requests);
    lock.lock();
    for (size_t i = 0; i < group.size(); ++i) {
      group[i]->reply = std::move(replies[i]);
      group[i]->done = true;
    }
    committing = false;
    committed.notify_all();
  }
}

std::vector<Result<v1::InsertReply>> Store::Impl::CommitGroup(const std::vector<const CheckedRequest*>& requests) {
  if (options.read_only) return FailAll(requests, FailedPrecondition(directory + ": opened for reading only"));
  std::lock_guard write_lock(write_mutex);
  const bool recovering = !read_only.empty();
  for (int attempt = 1;; ++attempt) {
    if (!read_only.empty()) {
      if (const Status status = Recover(); !status.ok()) return FailAll(requests, status);
    }
    const auto begin = Clock::now();
    std::vector<Result<v1::InsertReply>> replies = Write(requests);
    uint64_t inserted = 0;
    for (const Result<v1::InsertReply>& reply : replies) inserted += reply.ok() ? reply->inserted() : 0;
    if (inserted > 0 && observer) observer(SecondsSince(begin), inserted);
    // A flush of the time when the disk had no room may still report it after the store has recovered.
    if (read_only.empty() || !recovering || attempt == 3) return replies;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

// With write_mutex held. Every request that was found sound, in one frame of the log with one sync.
std::vector<Result<v1::InsertReply>> Store::Impl::Write(const std::vector<const CheckedRequest*>& checked) {
  std::vector<Result<v1::InsertReply>> replies(checked.size(), v1::InsertReply());
  std::unordered_set<std::string_view> uids;
  std::vector<const NewRecord*> records;
  std::vector<RecordLog::Entry> entries;
  const uint64_t newest = table.newest();
  uint64_t repeated = duplicates;
  Writers changed;
  v1::LogTrailer trailer;
  for (size_t r = 0; r < checked.size(); ++r) {
    const CheckedRequest& request = *checked[r];
    if (!request.status.ok()) {
      replies[r] = request.status;
      continue;
    }
    size_t known = 0;
    v1::LoggedRequest logged;
    if (request.epoch != 0) {
      const Result<size_t> admitted = Admit(request, &changed, &logged);
      if (!admitted.ok()) {
        replies[r] = admitted.status();
        continue;
      }
      known = *admitted;
      const auto state = changed.find(request.writer);
      const uint64_t next = (state != changed.end() ? state->second : writers[request.writer]).next_sequence();
      replies[r]->set_next_sequence(next);
      replies[r]->set_gap(request.first_sequence > next);
      if (replies[r]->gap()) continue;
      replies[r]->set_duplicates(known);
      repeated += known;
    }
    for (size_t i = known; i < request.records.size(); ++i) {
      const NewRecord& record = request.records[i];
      const bool stored =
          !uids.insert(record.uid).second || table.Find(record.row.row.uid_high, record.row.row.uid_low) != 0;
      if (stored) {
        ++repeated;
        replies[r]->set_duplicates(replies[r]->duplicates() + 1);
        logged.add_numbers(0);
        logged.add_known(record.uid);
        continue;
      }
      records.push_back(&record);
      entries.push_back({.number = newest + records.size(), .bytes = record.bytes, .hash = record.hash});
      logged.add_numbers(entries.back().number);
      replies[r]->set_inserted(replies[r]->inserted() + 1);
    }
    if (request.epoch != 0 && known < request.records.size()) *trailer.add_requests() = std::move(logged);
  }
  if (newest + entries.size() > RecordTable::kMostRows)
    return FailAll(checked, ResourceExhausted(directory + ": is full, no store has more than 2^32 records"));
  rocksdb::WriteBatch batch;
  std::vector<StoredRow> rows;
  if (!entries.empty() || !changed.empty()) {
    for (const auto& [writer, state] : changed) *trailer.add_writers() = state;
    trailer.set_duplicates(repeated);
    std::vector<RecordPlace> places;
    if (const Status status = log->Append(entries, trailer.SerializeAsString(), &places); !status.ok())
      return FailAll(checked, WriteFailed(status));
    for (size_t i = 0; i < records.size(); ++i) {
      rows.push_back(records[i]->row);
      rows.back().row.place = places[i];
      unsaved_bytes += records[i]->bytes.size();
    }
    for (const auto& [writer, state] : changed) (void)batch.Put(WriterKey(writer), state.SerializeAsString());
    (void)batch.Put(kLogEnd, EncodePlace(log->end()));
  }
  if (repeated != duplicates) (void)batch.Put("duplicates", NumberKey(repeated));
  if (batch.Count() > 0) {
    if (const rocksdb::Status status = db->Write(rocksdb::WriteOptions(), &batch); !status.ok())
      return FailAll(checked, WriteFailed(FromRocks(status)));
  }
  duplicates = repeated;
  for (auto& [writer, state] : changed) writers[writer] = std::move(state);
  {
    std::unique_lock lock(state_mutex);
    for (const StoredRow& row : rows) table.Append(row);
  }
  if (!rows.empty() || !changed.empty()) table_end = log->end();
  SaveRowsLater();
  for (Result<v1::InsertReply>& reply : replies)
    if (reply.ok()) reply->set_watermark(newest + rows.size());
  return replies;
}

// `known`: its writers and duplicates are in RocksDB.
Status Store::Impl::ReplayFrame(const RecordLog::Frame& frame, bool known) {
  v1::LogTrailer trailer;
  if (!trailer.ParseFromArray(frame.trailer.data(), static_cast<int>(frame.trailer.size())))
    return DataLoss(StrCat(log->PathOf(frame.end.segment), ": the frame before byte ", frame.end.offset,
                           " has no trailer that parses"));
  v1::Trajectory trajectory;
  for (size_t i = 0; i < frame.entries.size(); ++i) {
    const auto& [number, bytes, hash] = frame.entries[i];
    if (number <= table.newest()) continue;
    if (number > table.newest() + 1)
      return DataLoss(StrCat(directory, ": the log goes on with record ", number, " after ", table.newest()));
    QUERN_RETURN_IF_ERROR(ParseTrajectory(bytes, options.limits, &trajectory));
    StoredRow row = MakeRow(trajectory, bytes.size());
    row.row.place = frame.places[i];
    table.Append(row);
    unsaved_bytes += bytes.size();
  }
  if (known) return {};
  rocksdb::WriteBatch batch;
  for (const v1::WriterState& state : trailer.writers()) {
    writers[state.writer()] = state;
    (void)batch.Put(WriterKey(state.writer()), state.SerializeAsString());
  }
  duplicates = std::max(duplicates, trailer.duplicates());
  (void)batch.Put("duplicates", NumberKey(duplicates));
  (void)batch.Put(kLogEnd, EncodePlace(frame.end));
  return options.read_only ? Status() : FromRocks(db->Write(rocksdb::WriteOptions(), &batch));
}

}  // namespace quern
