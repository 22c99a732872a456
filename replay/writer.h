#pragma once

#include <deque>
#include <memory>
#include <string>

#include "replay/replay.h"

namespace quern {

// Stores records exactly once and in order. Every record has a number in its writer's sequence when it enters the
// spool; it leaves the spool when the store says that it is on disk. Opening a writer of the same name elsewhere takes
// the sequence over: what this one still sends is refused (FailedPrecondition, "is fenced"), and so this one must end.
// After a crash the spool is gone: its records were never acknowledged and are made again under the next epoch.
// Not thread-safe.
class ReplayWriter {
 public:
  // `replay` must outlive the writer.
  static Result<std::unique_ptr<ReplayWriter>> Open(Replay* replay, const std::string& name, Deadline deadline);

  // `bytes`: a serialised Trajectory whose uid is `uid`.
  void Append(std::string bytes, std::string uid);
  // Forgets the spool: a task was broken off. Not after a Flush that failed, whose records may be on disk.
  void Discard() { spool_.clear(); }
  size_t unacknowledged() const { return spool_.size(); }
  // Returns when the whole spool is on disk. After an error the spool still holds what was not acknowledged, and Flush
  // may be called again.
  Status Flush(Deadline deadline);

  uint64_t epoch() const { return epoch_; }
  // Records acknowledged to this name so far, over all epochs, and the number over their uids (ExtendLedger): to be
  // compared with WriterState of the store's statistics.
  uint64_t acknowledged() const { return next_ - 1; }
  uint64_t ledger() const { return ledger_; }
  // Records of this writer that the store had already: by number or by uid.
  uint64_t duplicates() const { return duplicates_; }

 private:
  struct Record {
    std::string bytes;
    std::string uid;
  };
  ReplayWriter(Replay* replay, std::string name, const v1::OpenWriterReply& opened);

  Replay* replay_;
  std::string name_;
  uint64_t epoch_;
  uint64_t next_;  // of the spool's first record
  uint64_t ledger_;
  uint64_t duplicates_ = 0;
  size_t window_;
  std::deque<Record> spool_;
};

}  // namespace quern
