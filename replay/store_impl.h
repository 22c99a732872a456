#pragma once

#include <rocksdb/db.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include "replay/record_log.h"
#include "replay/record_table.h"
#include "replay/sampler.h"
#include "replay/store.h"

// Private to the store's sources.
namespace quern {

// RocksDB holds what is small and changes: "format", kLogEnd, "duplicates", kRowsNeeded, kLastBackup and "writer/" NAME
// -> WriterState. An acknowledgement rests on the frames of the record log; what commits write to RocksDB is not
// synced, and what a crash takes of it is made again from the frames behind kLogEnd. The table of all records is in
// memory; files of rows (store_rows.cpp) spare an opening most of the log.

std::string NumberKey(uint64_t number);
uint64_t ParseNumber(const rocksdb::Slice& key);  // 0 when it is not a number key
std::string WriterKey(const std::string& writer);
// The end of the last frame whose writers and duplicates are in RocksDB.
inline constexpr char kLogEnd[] = "log";
inline constexpr char kRowsNeeded[] = "rows";    // so many rows cannot be made again from the log: some were pruned
inline constexpr char kLastBackup[] = "backup";  // unix seconds
std::string EncodePlace(RecordPlace place);

// A request that was parsed and checked; all bytes are the caller's.
struct NewRecord {
  std::string_view bytes;
  uint64_t hash = 0;  // RecordLog::HashOf
  std::string uid;
  StoredRow row;
};
struct CheckedRequest {
  Status status;
  std::vector<NewRecord> records;
  size_t bytes = 0;
  std::string writer;
  uint64_t epoch = 0;
  uint64_t first_sequence = 0;
};

using Writers = std::map<std::string, v1::WriterState>;

struct Store::Impl {
  std::string directory;
  StoreOptions options;
  // Held by the one thread that writes, before state_mutex. Guards writes to RocksDB, `duplicates`, `writers` and
  // `read_only`, and the log's end.
  std::mutex write_mutex;
  std::mutex backup_mutex;  // before write_mutex
  // Readers share it for as long as they use db and table; taken alone to append rows and to open the database again.
  mutable std::shared_mutex state_mutex;
  std::unique_ptr<RecordLog> log;
  std::unique_ptr<rocksdb::DB> db;
  RecordTable table;
  // Rows first..last are in a file, which goes with the log up to `end`.
  struct RowFile {
    uint64_t first = 0;
    uint64_t last = 0;
    RecordPlace end;
    bool changed = false;  // in memory, since it was written
  };
  std::vector<RowFile> row_files;  // under write_mutex, when no saver runs
  uint64_t unsaved_bytes = 0;      // of records whose rows are in no file
  std::thread saver;               // writes a file of rows while commits go on
  std::atomic<bool> saving{false};
  RecordPlace table_end;  // the table has all frames of the log up to here
  Sampler sampler;
  uint64_t duplicates = 0;
  Writers writers;
  std::string read_only;
  StatusCode read_only_code = StatusCode::kOk;  // with read_only
  double open_seconds = 0;
  std::vector<std::string> damaged;  // what an opening for reading found, and one for writing would make again
  std::function<void(double seconds, uint64_t records)> observer;  // under write_mutex

  // Requests of several threads that wait for the commit under way to end: the next one takes them all.
  struct Waiting {
    const CheckedRequest* request;
    Result<v1::InsertReply> reply = v1::InsertReply();
    bool done = false;
  };
  std::mutex queue_mutex;
  std::condition_variable committed;
  std::deque<Waiting*> queue;
  bool committing = false;
  std::atomic<uint64_t> waiting_records{0};
  std::atomic<double> last_backup_seconds{0};  // kState "backup"

  ~Impl() {
    WaitForSaver();
    Close();
  }
  void Close();
  Status OpenDatabase(bool create);
  Status LoadState();
  Status LoadWriters();
  // Enters frames of the log that table or RocksDB do not have.
  Status ReplayLog(RecordPlace rows_end);
  Status ReplayFrame(const RecordLog::Frame& frame, bool known);
  Status RemoveUnused();
  Status CheckPlaces() const;
  // store_rows.cpp
  std::string RowsPath(uint64_t first) const;
  Status LoadRowFiles(RecordPlace* end);
  RowFile NextRowFile() const;
  // All rows that no file has, or that have changed in one.
  Status SaveRows();
  // The same for new ones, beside what goes on, once they are many.
  void SaveRowsLater();
  void SaveRowsAtEnd();
  void WaitForSaver();
  void RowChanged(uint64_t number);
  Status SyncState();
  // How many of the request's records, from its first, the writer's sequence has already; the new state is entered in
  // `changed`, what it adds to the ledger in `logged`. A fenced or unknown epoch and a gap are refused.
  Result<size_t> Admit(const CheckedRequest& request, Writers* changed, v1::LoggedRequest* logged) const;
  bool HasRoom() const;
  Status Recover();
  // Fails while an attempt to open the database again has failed.
  Status CheckOpen() const;
  Result<v1::InsertReply> Commit(const CheckedRequest& request);
  std::vector<Result<v1::InsertReply>> CommitGroup(const std::vector<const CheckedRequest*>& requests);
  std::vector<Result<v1::InsertReply>> Write(const std::vector<const CheckedRequest*>& checked);
  Status WriteFailed(const Status& failure);
  Status FromRocks(const rocksdb::Status& status) const;
  Status ReadRecord(uint64_t number, std::string* bytes) const;
  Result<bool> TextMatches(uint64_t number, const RowFilter& filter) const;
  // Writes what is left of segments that lost an eighth or more to new ones, and removes the old.
  Status Reclaim();
  // What a backup is made of, in a new directory beside the store.
  Status LinkFiles(const std::string& links);
  // What verify adds of the log: every frame, and the ledgers that they add up to.
  void VerifyLog(const std::function<void(const std::string&)>& problem) const;
  // That the files of rows say what the table does.
  void VerifyRowFiles(const std::function<void(const std::string&)>& problem);
};

}  // namespace quern
