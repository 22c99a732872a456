#include <rocksdb/transaction_log.h>
#include <rocksdb/utilities/checkpoint.h>

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "base/file.h"
#include "base/strings.h"
#include "replay/ledger.h"
#include "replay/store_impl.h"

namespace quern {

namespace {

constexpr size_t kMaxProblems = 100;

Status CopyFile(const std::string& from, const std::string& to) {
  return WriteFileAtomic(to, [&](const WriteSink& sink) -> Status {
    QUERN_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(from));
    return sink(file.bytes().data(), file.bytes().size());
  });
}

}  // namespace

Result<VerifyReport> Store::Verify() {
  Impl& store = *impl_;
  std::lock_guard write_lock(store.write_mutex);  // nothing may be added meanwhile
  QUERN_RETURN_IF_ERROR(store.CheckOpen());
  VerifyReport report;
  const auto problem = [&](const std::string& text) {
    if (report.problems.size() < kMaxProblems) report.problems.push_back(text);
  };
  for (const std::string& text : store.damaged) problem(text);
  rocksdb::ReadOptions read;
  read.verify_checksums = true;
  read.fill_cache = false;
  read.readahead_size = 1 << 20;
  if (const rocksdb::Status status = store.db->VerifyChecksum(read); !status.ok()) problem(status.ToString());

  v1::Trajectory trajectory;
  std::string bytes;
  for (uint64_t number = 1; number <= store.table.newest(); ++number) {
    const RecordRow& row = store.table.row(number);
    if (const uint64_t found = store.table.Find(row.uid_high, row.uid_low); found != number)
      problem(StrCat("record ", number, ": its uid leads to record ", found));
    if (row.pruned) continue;
    ++report.records;
    report.bytes += row.bytes;
    Status status = store.ReadRecord(number, &bytes);
    if (status.ok()) status = ParseTrajectory(bytes, store.options.limits, &trajectory);
    if (!status.ok())
      problem(StrCat("record ", number, ": ", status.message()));
    else if (!store.table.Agrees(number, MakeRow(trajectory, bytes.size())))
      problem(StrCat("record ", number, ": its row does not agree with the record"));
  }
  store.VerifyRowFiles(problem);
  store.VerifyLog(problem);
  return report;
}

// Of each writer the chain of ledgers from frame to frame. Where records were thrown away frames are missing: the chain
// begins anew behind them. Its end is what the store tells the writer.
void Store::Impl::VerifyLog(const std::function<void(const std::string&)>& problem) const {
  struct Chain {
    uint64_t ledger = 0;
    uint64_t next_sequence = 0;
  };
  std::map<std::string, Chain> chains;
  bool pruned = false;
  for (uint64_t number = 1; number <= table.newest() && !pruned; ++number) pruned = table.row(number).pruned;
  v1::LogTrailer trailer;
  v1::Trajectory trajectory;
  for (const uint32_t segment : log->Segments()) {
    const Status status = log->Scan(segment, [&](const RecordLog::Frame& frame) -> Status {
      if (!trailer.ParseFromArray(frame.trailer.data(), static_cast<int>(frame.trailer.size())))
        return DataLoss(StrCat(log->PathOf(segment), ": the trailer before byte ", frame.end.offset, " is damaged"));
      std::map<uint64_t, std::string_view> bytes;
      for (const RecordLog::Entry& entry : frame.entries) bytes[entry.number] = entry.bytes;
      for (const v1::LoggedRequest& request : trailer.requests()) {
        const auto [chain, fresh] = chains.try_emplace(request.writer());
        if (!fresh && chain->second.ledger != request.ledger() && !pruned)
          problem(StrCat("writer ", request.writer(), ": its ledger breaks off before byte ", frame.end.offset, " of ",
                         log->PathOf(segment)));
        uint64_t ledger = request.ledger();
        int known = 0;
        for (const uint64_t number : request.numbers()) {
          std::string uid;
          if (number == 0 && known < request.known_size()) uid = request.known(known++);
          if (const auto entry = bytes.find(number); entry != bytes.end()) {
            if (!trajectory.ParseFromArray(entry->second.data(), static_cast<int>(entry->second.size())))
              return DataLoss(StrCat(log->PathOf(segment), ": record ", number, " does not parse"));
            uid = trajectory.uid();
          }
          ledger = ExtendLedger(ledger, uid);
        }
        chain->second.ledger = ledger;
      }
      for (const v1::WriterState& state : trailer.writers()) {
        Chain& chain = chains[state.writer()];
        chain.next_sequence = state.next_sequence();
        if (chain.ledger != state.ledger())
          problem(StrCat("writer ", state.writer(), ": the records before byte ", frame.end.offset, " of ",
                         log->PathOf(segment), " do not add up to its ledger"));
      }
      return {};
    });
    if (!status.ok()) problem(status.message());
  }
  for (const auto& [writer, chain] : chains) {
    const auto state = writers.find(writer);
    if (state == writers.end() || state->second.ledger() != chain.ledger ||
        state->second.next_sequence() != chain.next_sequence)
      problem(StrCat("writer ", writer, ": the log and the index do not agree on its ledger"));
  }
}

StoreHealth Store::Health() const {
  const Impl& store = *impl_;
  std::shared_lock lock(store.state_mutex);
  StoreHealth health;
  health.open_seconds = store.open_seconds;
  health.waiting_records = store.waiting_records;
  health.last_backup_seconds = store.last_backup_seconds;
  if (const Result<uint64_t> free = DiskFreeBytes(store.directory); free.ok()) health.disk_free_bytes = *free;
  if (store.db == nullptr) return health;
  std::string level0;
  if (store.db->GetProperty("rocksdb.num-files-at-level0", &level0))
    health.level0_files = std::strtoull(level0.c_str(), nullptr, 10);
  rocksdb::VectorLogPtr logs;
  if (store.db->GetSortedWalFiles(logs).ok())
    for (const auto& log : logs) health.wal_bytes += log->SizeFileBytes();
  return health;
}

// Links cost nothing while inserts wait; what is on another disk is copied afterwards.
Status Store::Backup(const std::string& to, bool counts) {
  if (PathExists(to)) return AlreadyExists(to + ": exists already; give a new directory");
  std::lock_guard backup_lock(impl_->backup_mutex);
  const std::string links = impl_->directory + ".links";
  QUERN_RETURN_IF_ERROR(RemoveTree(links));
  Status status = impl_->LinkFiles(links);
  if (status.ok() && rename(links.c_str(), to.c_str()) != 0)
    status = errno == EXDEV ? CopyStore(links, to) : FromErrno(errno, to);
  if (status.ok()) status = SyncFolderOf(to);
  (void)RemoveTree(links);
  if (!status.ok()) return status.Annotate("backup");
  if (!counts) return {};
  impl_->last_backup_seconds =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::lock_guard write_lock(impl_->write_mutex);
  QUERN_RETURN_IF_ERROR(impl_->CheckOpen());
  const auto seconds = static_cast<uint64_t>(impl_->last_backup_seconds);
  return impl_->FromRocks(impl_->db->Put(rocksdb::WriteOptions(), kLastBackup, NumberKey(seconds)));
}

Status Store::Impl::LinkFiles(const std::string& links) {
  std::lock_guard write_lock(write_mutex);
  QUERN_RETURN_IF_ERROR(CheckOpen());
  rocksdb::Checkpoint* made = nullptr;
  QUERN_RETURN_IF_ERROR(FromRocks(rocksdb::Checkpoint::Create(db.get(), &made)));
  const std::unique_ptr<rocksdb::Checkpoint> checkpoint(made);
  QUERN_RETURN_IF_ERROR(FromRocks(checkpoint->CreateCheckpoint(links)));
  // Sealed segments are never written again, so that both may have the same file.
  log->Seal();
  // Neither are files of rows, which are only ever replaced.
  WaitForSaver();
  std::vector<std::string> files;
  for (const uint32_t segment : log->Segments()) files.push_back(log->PathOf(segment));
  for (const RowFile& file : row_files) files.push_back(RowsPath(file.first));
  for (const std::string& from : files) {
    const std::string copy = JoinPath(links, from.substr(from.rfind('/') + 1));
    if (link(from.c_str(), copy.c_str()) != 0) QUERN_RETURN_IF_ERROR(CopyFile(from, copy));
  }
  return SyncFolderOf(JoinPath(links, "CURRENT"));
}

Status CopyStore(const std::string& from, const std::string& to) {
  if (PathExists(to)) return AlreadyExists(to + ": exists already; give a new directory");
  const std::string part = to + ".part";
  QUERN_RETURN_IF_ERROR(RemoveTree(part));
  QUERN_RETURN_IF_ERROR(MakeDirectories(part));
  QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(from));
  for (const std::string& name : names)
    if (name != "LOCK" && name != "server.address")
      QUERN_RETURN_IF_ERROR(CopyFile(JoinPath(from, name), JoinPath(part, name)));
  QUERN_RETURN_IF_ERROR(SyncFolderOf(JoinPath(part, "CURRENT")));
  QUERN_RETURN_IF_ERROR(RenamePath(part, to));
  return SyncFolderOf(to);
}

Status Store::Compact() {
  std::lock_guard write_lock(impl_->write_mutex);
  QUERN_RETURN_IF_ERROR(impl_->CheckOpen());
  if (!impl_->options.read_only && impl_->options.env == nullptr) QUERN_RETURN_IF_ERROR(impl_->SaveRows());
  return impl_->FromRocks(impl_->db->CompactRange(rocksdb::CompactRangeOptions(), nullptr, nullptr));
}

}  // namespace quern
