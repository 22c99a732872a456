#pragma once

#include <rocksdb/file_system.h>

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace quern {

// Where a record's bytes begin. Segment 0: nowhere.
struct RecordPlace {
  uint32_t segment = 0;
  uint32_t offset = 0;
  auto operator<=>(const RecordPlace&) const = default;  // the order of the log, where both are in it
};

// The records themselves, apart from their index: files DIRECTORY/records-NNNNNNNN.data ("segments") of frames that are
// written once, one after the other, each with one sync. A frame is whole or not there; every record carries a checksum
// over its bytes and number. A segment is never written again once another was begun, and never after a failed write:
// its successor's header says where it ended. Frames that are moved when records are thrown away lie in segments of
// their own kind, which Replay passes over.
//
// Append, Move, Seal, Replay and Remove: one thread at a time. Read: any thread.
class RecordLog {
 public:
  struct Entry {
    uint64_t number = 0;
    std::string_view bytes;
    uint64_t hash = 0;  // HashOf(bytes), for who has it already; 0: computed when it is written
  };
  static uint64_t HashOf(std::string_view bytes);
  struct Frame {
    std::vector<Entry> entries;
    std::vector<RecordPlace> places;
    std::string_view trailer;
    RecordPlace end;
  };
  using Visitor = std::function<Status(const Frame& frame)>;

  // `files` writes; reading is plain. Both must outlive the log.
  RecordLog(std::string directory, rocksdb::FileSystem* files) : directory_(std::move(directory)), files_(files) {}
  ~RecordLog() { Seal(); }
  // Finds the segments. Nothing is known about the end of the last one until Replay.
  Status Open();

  // One frame, on disk when it returns. After an error nothing of it counts.
  Status Append(const std::vector<Entry>& entries, std::string_view trailer, std::vector<RecordPlace>* places);
  // The same for records of other segments.
  Status Move(const std::vector<Entry>& entries, std::vector<RecordPlace>* places);
  // Segments written so far are left alone from now on: what comes next goes to new ones.
  void Seal();
  // Begins a new segment, so that end() lies in it.
  Status Begin();
  // Whole frames after `from` (segment 0: all), in order. Damage is an error except behind `acknowledged`, where a
  // write was broken off.
  Status Replay(RecordPlace from, RecordPlace acknowledged, const Visitor& visit);
  // Every frame of one segment; of moved ones up to a write that was broken off.
  Status Scan(uint32_t segment, const Visitor& visit) const;
  // Where the last frame ended.
  RecordPlace end() const { return end_; }

  // DataLoss when what is there is not record `number` with `size` bytes.
  Status Read(uint64_t number, RecordPlace place, uint32_t size, std::string* bytes) const;
  // Whether such a record could be there.
  bool Holds(RecordPlace place, uint32_t size) const;

  std::vector<uint32_t> Segments() const;
  uint64_t SegmentBytes(uint32_t segment) const;
  std::string PathOf(uint32_t segment) const;
  Status Remove(uint32_t segment);

 private:
  struct Segment {
    uint64_t size = 0;  // of the file; of those being written: what counts
    bool moved = false;
    uint32_t previous = 0;  // the log's segment before, and where it ended
    uint32_t previous_end = 0;
  };
  struct Writer {
    uint32_t segment = 0;
    uint32_t offset = 0;
    std::unique_ptr<rocksdb::FSWritableFile> file;
  };
  struct Descriptor;
  Status OpenSegment(bool moved, Writer* writer);
  Status Write(bool moved, const std::vector<Entry>& entries, std::string_view trailer, Writer* writer,
               std::vector<RecordPlace>* places);
  Status TrimBefore(uint32_t segment);
  Status Check(const rocksdb::IOStatus& status) const;
  // The log's segments from `first` on (0: from the oldest), in order.
  Result<std::vector<uint32_t>> ChainFrom(uint32_t first) const;
  Result<std::shared_ptr<const Descriptor>> DescriptorOf(uint32_t segment) const;
  // One frame at `offset`; false where there is no whole one below `limit`.
  Result<bool> ReadFrame(uint32_t segment, uint32_t offset, uint64_t limit, std::string* buffer, Frame* frame) const;
  Status ScanRange(uint32_t segment, uint32_t offset, uint64_t limit, bool last, const Visitor& visit,
                   uint32_t* end) const;

  std::string directory_;
  rocksdb::FileSystem* files_;
  mutable std::mutex mutex_;  // guards segments_ and descriptors_
  std::map<uint32_t, Segment> segments_;
  mutable std::map<uint32_t, std::shared_ptr<const Descriptor>> descriptors_;
  uint32_t newest_ = 0;  // number ever seen
  RecordPlace end_;
  Writer log_;
  Writer moves_;
  std::string buffer_;
};

}  // namespace quern
