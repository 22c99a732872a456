#include <rocksdb/write_batch.h>
#include <xxhash.h>

#include "base/strings.h"
#include "replay/ledger.h"
#include "replay/store_impl.h"

namespace quern {

namespace {

constexpr std::string_view kWriterPrefix = "writer/";

}  // namespace

uint64_t ExtendLedger(uint64_t ledger, std::string_view uid) {
  return XXH3_64bits_withSeed(uid.data(), uid.size(), ledger);
}

std::string WriterKey(const std::string& writer) { return StrCat(kWriterPrefix, writer); }

Status Store::Impl::LoadWriters() {
  Writers loaded;
  const rocksdb::Slice prefix(kWriterPrefix.data(), kWriterPrefix.size());
  const std::unique_ptr<rocksdb::Iterator> it(db->NewIterator(rocksdb::ReadOptions()));
  for (it->Seek(prefix); it->Valid() && it->key().starts_with(prefix); it->Next()) {
    v1::WriterState state;
    if (!state.ParseFromArray(it->value().data(), static_cast<int>(it->value().size())) || state.epoch() == 0 ||
        state.next_sequence() == 0 || WriterKey(state.writer()) != it->key().ToStringView())
      return DataLoss(StrCat(directory, ": the state of ", it->key().ToString(), " is damaged"));
    loaded[state.writer()] = state;
  }
  QUERN_RETURN_IF_ERROR(FromRocks(it->status()));
  writers = std::move(loaded);
  return {};
}

Result<v1::OpenWriterReply> Store::OpenWriter(const v1::OpenWriterRequest& request) {
  const std::string& name = request.writer();
  const RecordLimits& limits = impl_->options.limits;
  if (name.empty() || name.size() > limits.name_bytes)
    return InvalidArgument(StrCat("a writer's name has 1 to ", limits.name_bytes, " bytes"));
  Impl& store = *impl_;
  if (store.options.read_only) return FailedPrecondition(store.directory + ": opened for reading only");
  std::lock_guard write_lock(store.write_mutex);
  if (!store.read_only.empty()) QUERN_RETURN_IF_ERROR(store.Recover());
  v1::WriterState state;
  if (const auto known = store.writers.find(name); known != store.writers.end()) {
    state = known->second;
  } else {
    if (store.writers.size() >= limits.writers)
      return ResourceExhausted(StrCat(store.directory, ": has ", limits.writers, " writers, no more are taken"));
    state.set_writer(name);
    state.set_next_sequence(1);
  }
  state.set_epoch(state.epoch() + 1);
  rocksdb::WriteOptions write;
  write.sync = true;
  const rocksdb::Status status = store.db->Put(write, WriterKey(name), state.SerializeAsString());
  if (!status.ok()) return store.WriteFailed(store.FromRocks(status));
  store.writers[name] = state;
  v1::OpenWriterReply reply;
  reply.set_epoch(state.epoch());
  reply.set_next_sequence(state.next_sequence());
  reply.set_ledger(state.ledger());
  reply.set_window(static_cast<uint32_t>(limits.records_per_insert));
  return reply;
}

Result<size_t> Store::Impl::Admit(const CheckedRequest& request, Writers* changed, v1::LoggedRequest* logged) const {
  const auto known = writers.find(request.writer);
  if (known == writers.end())
    return FailedPrecondition(
        StrCat(directory, ": writer '", ShownName(request.writer), "' is unknown: it must be opened first"));
  const auto earlier = changed->find(request.writer);
  v1::WriterState state = earlier != changed->end() ? earlier->second : known->second;
  if (request.epoch < state.epoch())
    return FailedPrecondition(StrCat(directory, ": writer '", ShownName(request.writer), "' is fenced: epoch ",
                                     state.epoch(), " has taken over from epoch ", request.epoch));
  if (request.epoch > state.epoch() || request.first_sequence == 0)
    return InvalidArgument(StrCat("writer '", ShownName(request.writer), "': epoch ", request.epoch,
                                  " with first sequence ", request.first_sequence, "; the store has given epoch ",
                                  state.epoch()));
  const uint64_t next = state.next_sequence();
  if (request.first_sequence > next) return request.records.size();
  const size_t known_records = std::min<uint64_t>(next - request.first_sequence, request.records.size());
  logged->set_writer(request.writer);
  logged->set_ledger(state.ledger());
  for (size_t i = known_records; i < request.records.size(); ++i)
    state.set_ledger(ExtendLedger(state.ledger(), request.records[i].uid));
  state.set_next_sequence(next + request.records.size() - known_records);
  if (known_records < request.records.size()) (*changed)[request.writer] = state;
  return known_records;
}

}  // namespace quern
