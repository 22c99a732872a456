#include <fcntl.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <unordered_map>
#include <unordered_set>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "replay/store_impl.h"

namespace quern {

namespace {

constexpr std::string_view kFormat = "quern-replay-6";

// RocksDB's warnings go to our log. Its own log file would fill the disk further, and an assertion of Debian's build
// ends the process when that file cannot be written.
class RocksLogger : public rocksdb::Logger {
 public:
  RocksLogger() : rocksdb::Logger(rocksdb::WARN_LEVEL) {}
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
  void Logv(const rocksdb::InfoLogLevel level, const char* format, va_list arguments) override {
    if (level < rocksdb::WARN_LEVEL || level > rocksdb::FATAL_LEVEL) return;
    char text[512];
    std::vsnprintf(text, sizeof(text), format, arguments);
    // Its status says the same; a reader holds in memory what is in no file yet.
    for (const char* useless : {"DB::Open() failed", "opened without unique ID to verify"})
      if (std::strstr(text, useless) != nullptr) return;
    for (char& c : text) c = c == '\n' ? ' ' : c;
    LogWarning(StrCat("rocksdb: ", text));
  }
};

// What is in the database can be made again from the record log. These options keep a store that is killed over and
// over alive: with the default level-0 limits, compaction never finishes between two kills and writes stop for good.
rocksdb::Options DatabaseOptions() {
  rocksdb::Options options;
  options.max_background_jobs = 2;
  options.avoid_flush_during_recovery = true;
  options.info_log = std::make_shared<RocksLogger>();
  options.track_and_verify_wals_in_manifest = true;
  options.paranoid_checks = true;
  options.max_bgerror_resume_count = 0;  // Recover does it
  options.level0_slowdown_writes_trigger = 500;
  options.level0_stop_writes_trigger = 1000;
  options.write_buffer_size = size_t{16} << 20;
  return options;
}

// What a killed process wrote but did not sync is found again at open and built upon: so it is synced first. The record
// log does the same for its own files.
Status SyncLogs(const std::string& directory) {
  QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));
  for (const std::string& name : names) {
    if (!name.ends_with(".log")) continue;
    const std::string path = JoinPath(directory, name);
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return FromErrno(errno, path);
    const int error = fsync(fd) == 0 ? 0 : errno;
    close(fd);
    if (error != 0) return FromErrno(error, path);
  }
  return {};
}

Status CheckDirectory(const std::string& directory, bool create) {
  const bool is_store = PathExists(JoinPath(directory, "CURRENT"));
  if (is_store) return SyncLogs(directory);
  if (!PathExists(directory))
    return create ? MakeDirectories(directory) : NotFound(directory + ": no replay store there");
  QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));
  const bool records = std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return name.starts_with("records-") && name.ends_with(".data");
  });
  if (records) return DataLoss(directory + ": a replay store without its file CURRENT");
  if (!create) return NotFound(directory + ": no replay store there");
  // A first opening that was interrupted leaves some of RocksDB's own files.
  const bool foreign = std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return !name.starts_with("LOG") && name != "LOCK" && name != "IDENTITY" && !name.starts_with("MANIFEST-") &&
           !name.ends_with(".log") && !name.ends_with(".dbtmp");
  });
  if (foreign) return InvalidArgument(directory + ": not a replay store, and not empty: give another directory");
  return {};
}

}  // namespace

std::string EncodePlace(RecordPlace place) {
  std::string value = NumberKey(place.segment);
  return value + NumberKey(place.offset);
}

std::string NumberKey(uint64_t number) {
  std::string key(8, '\0');
  for (int i = 7; i >= 0; --i, number >>= 8) key[static_cast<size_t>(i)] = static_cast<char>(number & 0xff);
  return key;
}

uint64_t ParseNumber(const rocksdb::Slice& key) {
  if (key.size() != 8) return 0;
  uint64_t number = 0;
  for (size_t i = 0; i < 8; ++i) number = (number << 8) | static_cast<unsigned char>(key[i]);
  return number;
}

Status Store::Impl::FromRocks(const rocksdb::Status& status) const {
  if (status.ok()) return {};
  const std::string text = directory + ": " + status.ToString();
  if (status.IsNoSpace()) return ResourceExhausted(directory + ": no space left on the disk: free some and try again");
  if (status.IsCorruption()) return DataLoss(text);
  if (status.IsIOError() && text.find("lock") != std::string::npos)
    return FailedPrecondition(directory + ": another process has this store open: wait for it, or stop it");
  return status.IsNotFound() ? NotFound(text) : DataLoss(text);
}

void Store::Impl::Close() {
  if (db == nullptr) return;
  db->Close();
  db.reset();
}

Status Store::Impl::OpenDatabase(bool create) {
  QUERN_RETURN_IF_ERROR(CheckDirectory(directory, create));
  rocksdb::Options database = DatabaseOptions();
  database.create_if_missing = create;
  if (options.env != nullptr) database.env = options.env.get();
  rocksdb::DB* opened = nullptr;
  std::vector<std::string> names;
  if (PathExists(JoinPath(directory, "CURRENT")) && rocksdb::DB::ListColumnFamilies(database, directory, &names).ok() &&
      names.size() > 1)
    return Unimplemented(directory +
                         ": a store of an older format, which keeps its records or their index in RocksDB: export it " +
                         "with the program that wrote it ('quern replay export') and import the rows into a new one");
  QUERN_RETURN_IF_ERROR(FromRocks(options.read_only ? rocksdb::DB::OpenForReadOnly(database, directory, &opened)
                                                    : rocksdb::DB::Open(database, directory, &opened)));
  db.reset(opened);
  return {};
}

Status Store::Impl::LoadState() {
  std::string format;
  rocksdb::Status status = db->Get(rocksdb::ReadOptions(), "format", &format);
  const bool without_format = status.IsNotFound();
  if (without_format && options.read_only) {
    status = rocksdb::Status::OK();
  } else if (without_format) {
    rocksdb::WriteOptions synced;
    synced.sync = true;
    status = db->Put(synced, "format", rocksdb::Slice(kFormat.data(), kFormat.size()));
  } else if (status.ok() && format != kFormat) {
    return Unimplemented(directory + ": a store of format '" + format + "', this program reads " +
                         std::string(kFormat));
  }
  QUERN_RETURN_IF_ERROR(FromRocks(status));
  std::string value;
  status = db->Get(rocksdb::ReadOptions(), "duplicates", &value);
  duplicates = status.ok() ? ParseNumber(value) : 0;
  if (!status.ok() && !status.IsNotFound()) return FromRocks(status);
  status = db->Get(rocksdb::ReadOptions(), kLastBackup, &value);
  if (!status.ok() && !status.IsNotFound()) return FromRocks(status);
  if (status.ok()) last_backup_seconds = static_cast<double>(ParseNumber(value));
  QUERN_RETURN_IF_ERROR(LoadWriters());
  RecordPlace rows_end;
  QUERN_RETURN_IF_ERROR(LoadRowFiles(&rows_end));
  sampler.Clear();
  rocksdb::Env* const disk = options.env != nullptr ? options.env.get() : rocksdb::Env::Default();
  log = std::make_unique<RecordLog>(directory, disk->GetFileSystem().get());
  QUERN_RETURN_IF_ERROR(log->Open());
  QUERN_RETURN_IF_ERROR(ReplayLog(rows_end));
  QUERN_RETURN_IF_ERROR(CheckPlaces());
  if (without_format && table.newest() > 0) {
    const std::string text = directory + ": RocksDB has lost what it held; it is made again from the record log";
    options.read_only ? damaged.push_back(text) : LogWarning(text);
  }
  SaveRowsLater();
  return options.read_only ? Status() : RemoveUnused();
}

// Every record lies in a segment that is there and long enough.
Status Store::Impl::CheckPlaces() const {
  std::unordered_map<uint32_t, uint64_t> last;  // of each segment, the record that reaches farthest
  uint32_t segment = 0;
  uint64_t* farthest = nullptr;
  for (uint64_t number = 1; number <= table.newest(); ++number) {
    const RecordRow& row = table.row(number);
    if (row.pruned) continue;
    if (farthest == nullptr || row.place.segment != segment) {
      segment = row.place.segment;
      farthest = &last[segment];
    }
    if (*farthest == 0 || table.row(*farthest).place.offset < row.place.offset) *farthest = number;
  }
  for (const auto& [in, number] : last) {
    const RecordRow& row = table.row(number);
    if (!log->Holds(row.place, row.bytes))
      return DataLoss(StrCat(log->PathOf(in), ": record ", number, " at byte ", row.place.offset, " is missing"));
  }
  return {};
}

// `rows_end`: where the log goes on from what the table has.
Status Store::Impl::ReplayLog(RecordPlace rows_end) {
  std::string value;
  RecordPlace state_end;
  const rocksdb::Status status = db->Get(rocksdb::ReadOptions(), kLogEnd, &value);
  if (!status.ok() && !status.IsNotFound()) return FromRocks(status);
  if (status.ok()) {
    if (value.size() != 16) return DataLoss(directory + ": the end of the record log is damaged");
    state_end = {.segment = static_cast<uint32_t>(ParseNumber(rocksdb::Slice(value.data(), 8))),
                 .offset = static_cast<uint32_t>(ParseNumber(rocksdb::Slice(value.data() + 8, 8)))};
  }
  QUERN_RETURN_IF_ERROR(
      log->Replay(std::min(rows_end, state_end), std::max(rows_end, state_end),
                  [&](const RecordLog::Frame& frame) { return ReplayFrame(frame, frame.end <= state_end); }));
  table_end = log->end();
  return {};
}

// Segments that a broken-off prune left behind, and such that were begun in vain.
Status Store::Impl::RemoveUnused() {
  std::unordered_set<uint32_t> used;
  uint32_t segment = 0;
  for (uint64_t number = 1; number <= table.newest(); ++number) {
    const RecordRow& row = table.row(number);
    if (row.pruned || row.place.segment == segment) continue;
    segment = row.place.segment;
    used.insert(segment);
  }
  std::vector<uint32_t> unused;
  for (const uint32_t one : log->Segments())
    if (one < log->end().segment && used.count(one) == 0) unused.push_back(one);
  if (unused.empty() || table.newest() == 0) return {};
  QUERN_RETURN_IF_ERROR(SaveRows());
  QUERN_RETURN_IF_ERROR(SyncState());
  for (const uint32_t one : unused) QUERN_RETURN_IF_ERROR(log->Remove(one));
  return {};
}

// With SaveRows before: from here on the log is not needed before its end.
Status Store::Impl::SyncState() {
  rocksdb::WriteOptions synced;
  synced.sync = true;
  return FromRocks(db->Put(synced, kLogEnd, EncodePlace(log->end())));
}

Result<std::unique_ptr<Store>> Store::Open(const std::string& directory, StoreOptions options) {
  auto impl = std::make_unique<Impl>();
  impl->directory = directory;
  impl->options = std::move(options);
  const auto begin = Clock::now();
  QUERN_RETURN_IF_ERROR(impl->OpenDatabase(impl->options.create_if_missing && !impl->options.read_only));
  QUERN_RETURN_IF_ERROR(impl->LoadState());
  impl->open_seconds = SecondsSince(begin);
  return std::unique_ptr<Store>(new Store(std::move(impl)));
}

Store::Store(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Store::~Store() { impl_->SaveRowsAtEnd(); }

// Whether the disk takes some bytes.
bool Store::Impl::HasRoom() const {
  rocksdb::Env* const disk = options.env != nullptr ? options.env.get() : rocksdb::Env::Default();
  const std::string probe = JoinPath(directory, "room.probe");
  const bool written = rocksdb::WriteStringToFile(disk, std::string(size_t{64} << 10, '\0'), probe, true).ok();
  (void)disk->DeleteFile(probe);
  return written;
}

// With write_mutex held. The database is opened again and everything in its logs flushed before anything is written:
// after a write that failed, RocksDB's own Resume would number the next one like what may be in the log already, and
// a log with a torn end that newer ones follow can make the store one that cannot be opened.
Status Store::Impl::Recover() {
  if (!HasRoom()) return Status(read_only_code, read_only);
  std::unique_lock lock(state_mutex);
  Close();
  QUERN_RETURN_IF_ERROR(OpenDatabase(false));
  const rocksdb::Status flushed = db->Flush(rocksdb::FlushOptions());
  if (!flushed.ok()) return FromRocks(flushed);
  QUERN_RETURN_IF_ERROR(LoadWriters());  // a write that failed may be on disk all the same
  QUERN_RETURN_IF_ERROR(ReplayLog(table_end));
  LogInfo(directory + ": writable again");
  read_only.clear();
  return {};
}

Status Store::Impl::CheckOpen() const {
  return db != nullptr ? Status()
                       : Unavailable(directory + ": the store could not be opened again after a failed write");
}

Status Store::Impl::WriteFailed(const Status& failure) {
  if (read_only.empty()) LogError("read-only for now: " + failure.message());
  read_only = failure.message();
  read_only_code = failure.code();
  return failure;
}

}  // namespace quern
