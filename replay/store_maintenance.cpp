#include <rocksdb/transaction_log.h>
#include <rocksdb/utilities/checkpoint.h>

#include <cstdlib>

#include "base/file.h"
#include "base/strings.h"
#include "replay/store_impl.h"

namespace quern {

namespace {

constexpr size_t kMaxProblems = 100;

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
  for (records->SeekToFirst(); records->Valid(); records->Next(), ++expected) {
    const uint64_t number = ParseNumber(records->key());
    if (number != expected) {
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
  for (const rocksdb::Iterator* it : {records.get(), rows.get()})
    if (!it->status().ok()) problem(it->status().ToString());
  if (expected != newest + 1) problem(StrCat("the index has ", newest, " records, the data reaches to ", expected - 1));
  uint64_t uids = 0;
  const std::unique_ptr<rocksdb::Iterator> uid(store.db->NewIterator(read, store.families[kUids]));
  for (uid->SeekToFirst(); uid->Valid(); uid->Next()) ++uids;
  if (!uid->status().ok()) problem(uid->status().ToString());
  if (uids != report.records) problem(StrCat(uids, " uids for ", report.records, " records"));
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

}  // namespace quern
