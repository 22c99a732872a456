#pragma once

#include <rocksdb/db.h>

#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "replay/record_table.h"
#include "replay/sampler.h"
#include "replay/store.h"

// Private to the store's sources.
namespace quern {

// Column families. Numbers are keys of 8 bytes, big-endian, so that RocksDB's order is insertion order.
enum ColumnFamily : size_t {
  kState,    // the default one: "format", "duplicates", "writer/" NAME -> WriterState
  kRecords,  // number -> the bytes sent
  kUids,     // uid -> number (8 bytes, big-endian)
  kRows,     // number -> EncodeRow
  kColumnFamilies,
};

std::string NumberKey(uint64_t number);
uint64_t ParseNumber(const rocksdb::Slice& key);  // 0 when it is not a number key
std::string WriterKey(const std::string& writer);

// A request that was parsed and checked; `bytes` are the request's.
struct NewRecord {
  const std::string* bytes;
  std::string uid;
  StoredRow row;
};
struct CheckedRequest {
  Status status;
  std::vector<NewRecord> records;
  const v1::InsertRequest* request = nullptr;
};

using Writers = std::map<std::string, v1::WriterState>;

struct Store::Impl {
  std::string directory;
  StoreOptions options;
  // Held by the one thread that writes, before state_mutex. Guards writes to RocksDB, `duplicates`, `writers` and
  // `read_only`.
  std::mutex write_mutex;
  // Readers share it for as long as they use db and table; taken alone to append rows and to open the database again.
  mutable std::shared_mutex state_mutex;
  std::unique_ptr<rocksdb::Env> env;  // only around a given file system
  std::unique_ptr<rocksdb::DB> db;
  std::vector<rocksdb::ColumnFamilyHandle*> families;
  RecordTable table;
  Sampler sampler;
  uint64_t duplicates = 0;
  Writers writers;
  std::string read_only;
  StatusCode read_only_code = StatusCode::kOk;  // with read_only
  double open_seconds = 0;

  ~Impl() { Close(); }
  void Close();
  Status OpenDatabase(bool create);
  Status LoadState();
  // Reads rows that are in the database and not yet in the table.
  Status LoadRows();
  Status LoadWriters();
  // How many of the request's records, from its first, the writer's sequence has already; the new state is entered in
  // `changed`. A fenced or unknown epoch and a gap are refused.
  Result<size_t> Admit(const CheckedRequest& checked, Writers* changed) const;
  bool HasRoom() const;
  Status Recover();
  // Fails while an attempt to open the database again has failed.
  Status CheckOpen() const;
  std::vector<Result<v1::InsertReply>> Write(const std::vector<CheckedRequest>& checked);
  Status WriteFailed(const rocksdb::Status& status);
  Status FromRocks(const rocksdb::Status& status) const;
  Result<std::string> ReadRecord(uint64_t number) const;
  Result<bool> TextMatches(uint64_t number, const RowFilter& filter) const;
};

}  // namespace quern
