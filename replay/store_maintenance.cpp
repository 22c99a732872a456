#include <rocksdb/transaction_log.h>
#include <rocksdb/utilities/checkpoint.h>
#include <rocksdb/write_batch.h>

#include <cstdlib>

#include "base/file.h"
#include "base/strings.h"
#include "replay/store_impl.h"

namespace quern {

namespace {

constexpr size_t kMaxProblems = 100;
constexpr size_t kPruneBatch = 1000;

}  // namespace

Result<VerifyReport> Store::Verify() {
  Impl& store = *impl_;
  std::lock_guard write_lock(store.write_mutex);  // the column families are compared: nothing may be added meanwhile
  QUERN_RETURN_IF_ERROR(store.CheckOpen());
  VerifyReport report;
  const auto problem = [&](const std::string& text) {
    if (report.problems.size() < kMaxProblems) report.problems.push_back(text);
  };
  rocksdb::ReadOptions read;
  read.verify_checksums = true;
  read.fill_cache = false;
  read.readahead_size = 1 << 20;
  if (const rocksdb::Status status = store.db->VerifyChecksum(read); !status.ok()) problem(status.ToString());

  const uint64_t newest = store.table.newest();
  const std::unique_ptr<rocksdb::Iterator> records(store.db->NewIterator(read, store.families[kRecords]));
  const std::unique_ptr<rocksdb::Iterator> rows(store.db->NewIterator(read, store.families[kRows]));
  v1::Trajectory trajectory;
  std::string found;
  rows->SeekToFirst();
  uint64_t expected = 1;
  uint64_t pruned = 0;
  const auto skip_pruned = [&] {
    for (; expected <= newest && store.table.row(expected).pruned; ++expected) ++pruned;
  };
  for (records->SeekToFirst(); records->Valid(); records->Next(), ++expected) {
    const uint64_t number = ParseNumber(records->key());
    skip_pruned();
    if (number < expected) {
      problem(StrCat("record ", number, " was pruned and is there"));
      expected = number;
    } else if (number != expected) {
      problem(StrCat("record ", expected, " is missing"));
      expected = number;
    }
    const std::string_view bytes = records->value().ToStringView();
    ++report.records;
    report.bytes += bytes.size();
    if (Status status = ParseTrajectory(bytes, store.options.limits, &trajectory); !status.ok()) {
      problem(StrCat("record ", number, ": ", status.message()));
      continue;
    }
    while (rows->Valid() && ParseNumber(rows->key()) < number) rows->Next();
    if (!rows->Valid() || ParseNumber(rows->key()) != number)
      problem(StrCat("record ", number, " has no index row"));
    else if (rows->value().ToStringView() != EncodeRow(MakeRow(trajectory, bytes.size())))
      problem(StrCat("record ", number, ": the index row does not agree with the record"));
    const rocksdb::Status status = store.db->Get(read, store.families[kUids], trajectory.uid(), &found);
    if (!status.ok() || ParseNumber(found) != number)
      problem(StrCat("record ", number, ": uid ", trajectory.uid(), " leads ",
                     status.ok() ? StrCat("to record ", ParseNumber(found)) : "nowhere"));
  }
  skip_pruned();
  for (const rocksdb::Iterator* it : {records.get(), rows.get()})
    if (!it->status().ok()) problem(it->status().ToString());
  if (expected != newest + 1) problem(StrCat("the index has ", newest, " records, the data reaches to ", expected - 1));
  uint64_t uids = 0;
  const std::unique_ptr<rocksdb::Iterator> uid(store.db->NewIterator(read, store.families[kUids]));
  for (uid->SeekToFirst(); uid->Valid(); uid->Next()) ++uids;
  if (!uid->status().ok()) problem(uid->status().ToString());
  if (uids != report.records + pruned)
    problem(StrCat(uids, " uids for ", report.records, " records and ", pruned, " pruned ones"));
  return report;
}

StoreHealth Store::Health() const {
  const Impl& store = *impl_;
  std::shared_lock lock(store.state_mutex);
  StoreHealth health;
  health.open_seconds = store.open_seconds;
  if (const Result<uint64_t> free = DiskFreeBytes(store.directory); free.ok()) health.disk_free_bytes = *free;
  if (store.db == nullptr) return health;
  for (rocksdb::ColumnFamilyHandle* family : store.families) {
    std::string files;
    if (store.db->GetProperty(family, "rocksdb.num-files-at-level0", &files))
      health.level0_files += std::strtoull(files.c_str(), nullptr, 10);
  }
  rocksdb::VectorLogPtr logs;
  if (store.db->GetSortedWalFiles(logs).ok())
    for (const auto& log : logs) health.wal_bytes += log->SizeFileBytes();
  return health;
}

Status Store::Backup(const std::string& to) {
  if (PathExists(to)) return AlreadyExists(to + ": exists already; give a new directory for the backup");
  std::shared_lock lock(impl_->state_mutex);
  QUERN_RETURN_IF_ERROR(impl_->CheckOpen());
  rocksdb::Checkpoint* made = nullptr;
  QUERN_RETURN_IF_ERROR(impl_->FromRocks(rocksdb::Checkpoint::Create(impl_->db.get(), &made)));
  const std::unique_ptr<rocksdb::Checkpoint> checkpoint(made);
  return impl_->FromRocks(checkpoint->CreateCheckpoint(to)).Annotate("backup to " + to);
}

Status Store::Compact() {
  std::shared_lock lock(impl_->state_mutex);
  QUERN_RETURN_IF_ERROR(impl_->CheckOpen());
  for (rocksdb::ColumnFamilyHandle* family : impl_->families)
    QUERN_RETURN_IF_ERROR(
        impl_->FromRocks(impl_->db->CompactRange(rocksdb::CompactRangeOptions(), family, nullptr, nullptr)));
  return {};
}

Result<PruneReport> Store::Prune(const PruneOptions& options) {
  Impl& store = *impl_;
  std::lock_guard write_lock(store.write_mutex);
  if (!store.read_only.empty()) QUERN_RETURN_IF_ERROR(store.Recover());
  PruneReport report;
  for (uint64_t number = 1; number <= store.table.newest(); ++number)
    if (!store.table.row(number).pruned) report.left_bytes += store.table.row(number).bytes;

  std::vector<uint64_t> batch;
  const auto flush = [&]() -> Status {
    if (batch.empty() || options.dry_run) return {};
    rocksdb::WriteBatch writes;
    std::string value;
    StoredRow stored;
    for (const uint64_t number : batch) {
      const std::string key = NumberKey(number);
      const rocksdb::Status status = store.db->Get(rocksdb::ReadOptions(), store.families[kRows], key, &value);
      if (!status.ok()) return store.FromRocks(status);
      if (!DecodeRow(value, &stored)) return DataLoss(StrCat(store.directory, ": index row ", number, " is damaged"));
      stored.row.pruned = true;
      (void)writes.Put(store.families[kRows], key, EncodeRow(stored));
      (void)writes.Delete(store.families[kRecords], key);
    }
    rocksdb::WriteOptions write;
    write.sync = true;
    if (const rocksdb::Status status = store.db->Write(write, &writes); !status.ok()) return store.WriteFailed(status);
    std::unique_lock lock(store.state_mutex);
    for (const uint64_t number : batch) store.table.SetPruned(number);
    store.sampler.Clear();
    batch.clear();
    return {};
  };
  v1::Trajectory trajectory;
  for (uint64_t number = 1; number <= store.table.newest(); ++number) {
    const RecordRow& row = store.table.row(number);
    if (row.pruned) continue;
    bool goes = report.left_bytes > options.max_bytes;
    if (!goes && options.before_unix_ms > 0) {
      QUERN_ASSIGN_OR_RETURN(const std::string bytes, store.ReadRecord(number));
      QUERN_RETURN_IF_ERROR(ParseTrajectory(bytes, store.options.limits, &trajectory));
      goes = trajectory.created_unix_ms() < options.before_unix_ms;
    }
    if (!goes) continue;
    if (row.source == v1::SOURCE_REAL && !options.real_too) {
      ++report.spared_real;
      continue;
    }
    ++report.records;
    report.bytes += row.bytes;
    report.left_bytes -= row.bytes;
    batch.push_back(number);
    if (batch.size() >= kPruneBatch) QUERN_RETURN_IF_ERROR(flush());
  }
  QUERN_RETURN_IF_ERROR(flush());
  if (options.dry_run || report.records == 0) return report;
  rocksdb::CompactRangeOptions compact;
  compact.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
  compact.blob_garbage_collection_age_cutoff = 1.0;
  compact.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
  QUERN_RETURN_IF_ERROR(store.FromRocks(store.db->CompactRange(compact, store.families[kRecords], nullptr, nullptr)));
  return report;
}

}  // namespace quern
