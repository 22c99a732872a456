#include <fcntl.h>
#include <rocksdb/cache.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "replay/store_impl.h"

namespace quern {

namespace {

constexpr std::string_view kFormat = "quern-replay-4";
constexpr const char* kFamilyNames[kColumnFamilies] = {"default", "records", "uids", "rows"};

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
    for (char& c : text) c = c == '\n' ? ' ' : c;
    LogWarning(StrCat("rocksdb: ", text));
  }
};

// Sync after every insert is what makes an acknowledgement durable; the rest keeps a store that is killed over and over
// alive: with the default level-0 limits, compaction never finishes between two kills and writes stop for good.
rocksdb::DBOptions DatabaseOptions() {
  rocksdb::DBOptions options;
  options.max_background_jobs = 2;
  options.avoid_flush_during_recovery = true;
  options.max_total_wal_size = uint64_t{512} << 20;
  options.info_log = std::make_shared<RocksLogger>();
  options.track_and_verify_wals_in_manifest = true;
  options.paranoid_checks = true;
  options.max_bgerror_resume_count = 0;  // Recover does it
  return options;
}

std::vector<rocksdb::ColumnFamilyDescriptor> Families() {
  rocksdb::BlockBasedTableOptions blocks;
  blocks.block_cache = rocksdb::NewLRUCache(size_t{64} << 20);
  blocks.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  for (const char* name : kFamilyNames) {
    rocksdb::ColumnFamilyOptions options;
    options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(blocks));
    options.level0_slowdown_writes_trigger = 500;
    options.level0_stop_writes_trigger = 1000;
    options.write_buffer_size = size_t{16} << 20;
    families.emplace_back(name, options);
  }
  // Records are written once and never again: values stay where they were flushed, out of compaction.
  rocksdb::ColumnFamilyOptions& records = families[kRecords].options;
  records.write_buffer_size = size_t{64} << 20;
  records.enable_blob_files = true;
  records.min_blob_size = 1024;
  records.blob_compression_type = rocksdb::kLZ4Compression;
  families[kUids].options.memtable_whole_key_filtering = true;
  families[kUids].options.memtable_prefix_bloom_size_ratio = 0.05;
  return families;
}

// A record that a killed process wrote but did not sync is found again at open, and a retry of it would be acknowledged
// as a duplicate: so what is in the logs is synced first.
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
  if (!create) return NotFound(directory + ": no replay store there");
  if (!PathExists(directory)) return MakeDirectories(directory);
  QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));
  // A first opening that was interrupted leaves some of RocksDB's own files.
  const bool foreign = std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return !name.starts_with("LOG") && name != "LOCK" && name != "IDENTITY" && !name.starts_with("MANIFEST-") &&
           !name.ends_with(".log") && !name.ends_with(".dbtmp");
  });
  if (foreign) return InvalidArgument(directory + ": not a replay store, and not empty: give another directory");
  return {};
}

}  // namespace

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
    return FailedPrecondition(directory + ": another process has this store open: give its address, or stop it");
  return status.IsNotFound() ? NotFound(text) : DataLoss(text);
}

void Store::Impl::Close() {
  if (db == nullptr) return;
  for (rocksdb::ColumnFamilyHandle* family : families) db->DestroyColumnFamilyHandle(family);
  families.clear();
  db->Close();
  db.reset();
}

Status Store::Impl::OpenDatabase(bool create) {
  QUERN_RETURN_IF_ERROR(CheckDirectory(directory, create));
  rocksdb::DBOptions database = DatabaseOptions();
  database.create_if_missing = create;
  database.create_missing_column_families = !options.read_only;
  if (options.file_system != nullptr) {
    if (env == nullptr) env = rocksdb::NewCompositeEnv(options.file_system);
    database.env = env.get();
  }
  rocksdb::DB* opened = nullptr;
  QUERN_RETURN_IF_ERROR(
      FromRocks(options.read_only ? rocksdb::DB::OpenForReadOnly(database, directory, Families(), &families, &opened)
                                  : rocksdb::DB::Open(database, directory, Families(), &families, &opened)));
  db.reset(opened);
  return {};
}

Status Store::Impl::LoadState() {
  std::string format;
  rocksdb::Status status = db->Get(rocksdb::ReadOptions(), families[kState], "format", &format);
  if (status.IsNotFound()) {
    rocksdb::WriteOptions synced;
    synced.sync = true;
    status = db->Put(synced, families[kState], "format", rocksdb::Slice(kFormat.data(), kFormat.size()));
  } else if (status.ok() && format != kFormat) {
    return Unimplemented(directory + ": a store of format '" + format + "', this program reads " +
                         std::string(kFormat));
  }
  QUERN_RETURN_IF_ERROR(FromRocks(status));
  std::string value;
  status = db->Get(rocksdb::ReadOptions(), families[kState], "duplicates", &value);
  duplicates = status.ok() ? ParseNumber(value) : 0;
  if (!status.ok() && !status.IsNotFound()) return FromRocks(status);
  QUERN_RETURN_IF_ERROR(LoadWriters());
  table.Clear();
  sampler.Clear();
  return LoadRows();
}

Status Store::Impl::LoadRows() {
  rocksdb::ReadOptions read;
  read.readahead_size = 1 << 20;
  const std::unique_ptr<rocksdb::Iterator> rows(db->NewIterator(read, families[kRows]));
  StoredRow stored;
  for (rows->Seek(NumberKey(table.newest() + 1)); rows->Valid(); rows->Next()) {
    if (ParseNumber(rows->key()) != table.newest() + 1 || !DecodeRow(rows->value().ToStringView(), &stored))
      return DataLoss(StrCat(directory, ": the index row after record ", table.newest(), " is missing or damaged"));
    table.Append(stored);
  }
  return FromRocks(rows->status());
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
Store::~Store() = default;

// Whether the disk takes some bytes.
bool Store::Impl::HasRoom() const {
  rocksdb::Env* const disk = env != nullptr ? env.get() : rocksdb::Env::Default();
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
  const rocksdb::Status flushed = db->Flush(rocksdb::FlushOptions(), families);
  if (!flushed.ok()) return FromRocks(flushed);
  QUERN_RETURN_IF_ERROR(LoadWriters());  // a write that failed may be on disk all the same
  QUERN_RETURN_IF_ERROR(LoadRows());
  LogInfo(directory + ": writable again");
  read_only.clear();
  return {};
}

Status Store::Impl::CheckOpen() const {
  return db != nullptr ? Status()
                       : Unavailable(directory + ": the store could not be opened again after a failed write");
}

Status Store::Impl::WriteFailed(const rocksdb::Status& status) {
  const Status failure = FromRocks(status);
  if (read_only.empty()) LogError("read-only for now: " + failure.message());
  read_only = failure.message();
  read_only_code = failure.code();
  return failure;
}

}  // namespace quern
