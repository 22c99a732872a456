#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "replay/limits.h"
#include "replay/replay.h"

namespace rocksdb {
class Env;
}

namespace quern {

struct StoreOptions {
  bool create_if_missing = true;
  bool read_only = false;  // what is there at the moment of opening; beside a process that writes, or after it
  RecordLimits limits;
  std::shared_ptr<rocksdb::Env> env;  // tests: a disk with faults
};

// For gauges and alerts.
struct StoreHealth {
  uint64_t level0_files = 0;  // files that compaction has not come to; writes stop at 1000
  uint64_t wal_bytes = 0;
  uint64_t disk_free_bytes = 0;
  uint64_t waiting_records = 0;    // received and not on disk yet
  double last_backup_seconds = 0;  // unix time of the last whole backup; 0: none
  double open_seconds = 0;         // what the last opening took
};

struct VerifyReport {
  uint64_t records = 0;
  uint64_t bytes = 0;
  std::vector<std::string> problems;  // one line each, at most 100
};

// Which records to throw away: the oldest first, until both hold.
struct PruneOptions {
  uint64_t max_bytes = ~uint64_t{0};        // that all records together may have
  int64_t before_unix_ms = 0;               // older ones go; 0: none for their age
  bool real_too = false;                    // else real data stays, whatever its size and age
  std::vector<std::string> keep_tags = {};  // records that carry one of them stay
  uint64_t keep_newest = 0;                 // so many of the newest generated records stay
  bool dry_run = false;
};
struct PruneReport {
  uint64_t records = 0;  // pruned, or to be pruned
  uint64_t bytes = 0;
  uint64_t left_bytes = 0;   // of the records that stay
  uint64_t spared_real = 0;  // real records that would have gone with real_too
};

// A durable, append-only set of trajectories in one directory: their bytes as sent in a log of our own
// (replay/record_log.h), writers and counters in RocksDB. Records are numbered from 1 in insertion order; the newest
// number is the watermark. What filters and sampling need of every record is held in memory (replay/record_table.h:
// about 97 bytes a record, and 8 for each set that is sampled from) and read at open from files of rows and the log
// behind them. Thread-safe; one process at a time.
class Store : public Replay {
 public:
  static Result<std::unique_ptr<Store>> Open(const std::string& directory, StoreOptions options = {});
  ~Store() override;

  // One synced write for all records of the request. A malformed record refuses the request, naming uid and reason.
  // When the disk is full (ResourceExhausted) or fails (DataLoss) nothing of the request is stored, the store is
  // read-only, and each later insert first tries to recover.
  Result<v1::InsertReply> Insert(const v1::InsertRequest& request);
  // The same for a request as it came, and cheaper. Requests of several threads share a sync.
  Result<v1::InsertReply> InsertBytes(std::string_view request);
  // Several requests with one sync for all: each has its own outcome.
  std::vector<Result<v1::InsertReply>> InsertGroup(const std::vector<const v1::InsertRequest*>& requests);
  // Synced as well. A name that is empty or too long is refused.
  Result<v1::OpenWriterReply> OpenWriter(const v1::OpenWriterRequest& request);
  Result<v1::ContainsReply> Contains(const v1::ContainsRequest& request);
  Result<v1::SampleReply> Sample(const v1::SampleRequest& request);
  Result<v1::QueryReply> Query(const v1::QueryRequest& request);
  Result<v1::StatsReply> Stats(const v1::StatsRequest& request);

  Result<v1::InsertReply> Insert(const v1::InsertRequest& request, Deadline) override { return Insert(request); }
  Result<v1::OpenWriterReply> OpenWriter(const v1::OpenWriterRequest& request, Deadline) override {
    return OpenWriter(request);
  }
  Result<v1::ContainsReply> Contains(const v1::ContainsRequest& request, Deadline) override {
    return Contains(request);
  }
  Result<v1::SampleReply> Sample(const v1::SampleRequest& request, Deadline) override { return Sample(request); }
  Result<v1::QueryReply> Query(const v1::QueryRequest& request, Deadline) override { return Query(request); }
  Result<v1::StatsReply> Stats(const v1::StatsRequest& request, Deadline) override { return Stats(request); }

  // Hears of every synced write that stored something: what it took and its records. On the writing thread.
  void ObserveCommits(std::function<void(double seconds, uint64_t records)> observer);
  uint64_t watermark() const;
  // Empty, or why inserts are refused at present.
  std::string read_only_reason() const;
  const std::string& directory() const;
  StoreHealth Health() const;

  // Reads everything: checksums, that every record parses and agrees with its index rows, that no uid is stored twice.
  // Opened for reading only, also what an opening for writing would have made again.
  Result<VerifyReport> Verify();
  // A consistent copy while in use. `to` must not exist. The copy is a store; on the same disk it shares files with
  // this one. `counts`: as the newest backup, in Health.
  Status Backup(const std::string& to, bool counts = true);
  Status Compact();
  // Records go, in batches that are synced; their numbers stay taken and their uids stored, so that nothing that was
  // pruned comes back. Draws up to an older watermark are others from then on. A prune that is broken off is done in
  // part and can be repeated. Gives the disk space back.
  Result<PruneReport> Prune(const PruneOptions& options);

 private:
  struct Impl;
  explicit Store(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The bytes of a store's directory that nobody writes to, in a new directory.
Status CopyStore(const std::string& from, const std::string& to);

}  // namespace quern
