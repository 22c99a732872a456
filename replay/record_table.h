#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "proto/record.pb.h"
#include "replay/record_log.h"

namespace quern {

// What filters, sampling and statistics need of one record.
struct RecordRow {
  uint64_t uid_high = 0;  // XXH3-128 of the uid
  uint64_t uid_low = 0;
  uint64_t version = 0;    // of the newest policy; 0: none
  uint64_t task_hash = 0;  // XXH3-64
  uint64_t text_hash = 0;  // XXH3-64 of the messages, or of the token ids of a record without
  double episode_return = 0;
  int64_t created_unix_ms = 0;
  uint32_t tokens = 0;
  uint32_t bytes = 0;  // of the serialised record
  uint32_t depth = 0;
  uint32_t guideline = 0;  // of the chain; 0: none
  uint32_t run = 0;        // RecordTable::name
  uint32_t tag_set = 0;    // RecordTable::tag_set
  RecordPlace place;       // in the record log
  v1::Source source = v1::SOURCE_UNSPECIFIED;
  v1::Verdict verdict = v1::VERDICT_UNSPECIFIED;
  bool success = false;
  bool pruned = false;  // the record itself is gone: nothing matches the row, its uid is still known
};

// The same with its names spelt out: what the row's column family holds.
struct StoredRow {
  RecordRow row;
  std::string run;
  std::vector<std::string> tags;  // sorted, each once
};
StoredRow MakeRow(const v1::Trajectory& trajectory, size_t bytes);
std::string EncodeRow(const StoredRow& stored);
// False for bytes that are not an encoded row.
bool DecodeRow(std::string_view bytes, StoredRow* stored);

uint64_t HashTask(std::string_view task);

// The rows of a store in memory, by number. Not thread-safe.
class RecordTable {
 public:
  static constexpr uint32_t kNoName = ~uint32_t{0};

  RecordTable();
  void Append(const StoredRow& stored);
  void Clear() { *this = RecordTable(); }
  void SetPruned(uint64_t number) { Row(number).pruned = true; }
  void SetPlace(uint64_t number, RecordPlace place) { Row(number).place = place; }
  uint64_t newest() const { return newest_; }
  // The whole table as a file: only ever a shortcut, for it can be made again. LoadFrom leaves an empty table and says
  // false for any file that Save of this very program did not write whole.
  Status SaveTo(const std::string& path) const;
  bool LoadFrom(const std::string& path);
  const RecordRow& row(uint64_t number) const { return chunks_[(number - 1) / kChunk][(number - 1) % kChunk]; }
  const std::string& name(uint32_t id) const { return names_[id]; }
  uint32_t FindName(const std::string& name) const;  // kNoName when no record has it
  size_t tag_sets() const { return tag_sets_.size(); }
  const std::vector<uint32_t>& tag_set(uint32_t id) const { return tag_sets_[id]; }  // sorted name ids

  // The order candidates are sampled in: by the hash of the uid without its run, then by run, so that it depends
  // neither on the order of arrival nor on what a job's directory is called.
  bool Before(uint64_t a, uint64_t b) const;

 private:
  // Rows never move: a table of millions grows without copying.
  static constexpr uint64_t kChunk = 65536;
  RecordRow& Row(uint64_t number) { return chunks_[(number - 1) / kChunk][(number - 1) % kChunk]; }
  uint32_t Intern(const std::string& name);

  std::vector<std::unique_ptr<RecordRow[]>> chunks_;
  uint64_t newest_ = 0;
  std::vector<std::string> names_;
  std::unordered_map<std::string, uint32_t> name_ids_;
  std::vector<std::vector<uint32_t>> tag_sets_;
  std::map<std::vector<uint32_t>, uint32_t> tag_set_ids_;
};

}  // namespace quern
