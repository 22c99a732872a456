#pragma once

#include <array>
#include <compare>
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
#include "replay/uid_index.h"

namespace quern {

// What filters, sampling and statistics need of one record.
struct RecordRow {
  uint64_t order = 0;     // XXH3 of the uid without its run: candidates are sampled in this order
  uint64_t uid_high = 0;  // XXH3-128 of the whole uid
  uint64_t uid_low = 0;
  uint64_t task_hash = 0;  // XXH3-64
  uint64_t text_hash = 0;  // XXH3-64 of the messages, or of the token ids of a record without
  double episode_return = 0;
  int64_t created_unix_ms = 0;
  RecordPlace place;  // in the record log
  uint32_t tokens = 0;
  uint32_t bytes = 0;  // of the serialised record
  uint32_t kind = 0;   // RecordTable::kind
  bool success = false;
  bool pruned = false;  // the record itself is gone: nothing matches the row, its uid is still known
  uint16_t prompt =
      0;  // HashPrompt; 0: of an older file, not known. No padding: rows are written as they lie in memory
};
static_assert(sizeof(RecordRow) == 80);

// What many records have in common, kept once.
struct RecordKind {
  uint32_t run = 0;      // RecordTable::name
  uint32_t tag_set = 0;  // RecordTable::tag_set
  uint64_t version = 0;  // of the newest policy; 0: none
  uint32_t depth = 0;
  uint32_t guideline = 0;  // of the chain; 0: none
  v1::Source source = v1::SOURCE_UNSPECIFIED;
  v1::Verdict verdict = v1::VERDICT_UNSPECIFIED;
  auto operator<=>(const RecordKind&) const = default;
};

// A row with its kind and names spelt out.
struct StoredRow {
  RecordRow row;    // its kind is of no meaning
  RecordKind kind;  // neither are its run and tag set
  std::string run;
  std::vector<std::string> tags;  // sorted, each once
};
StoredRow MakeRow(const v1::Trajectory& trajectory, size_t bytes);

uint64_t HashTask(std::string_view task);
// What comes before the first answer (v1::Filter.prompt); of records that are only tokens their task.
std::string PromptOf(const v1::Trajectory& trajectory);
// 16 bits of it, never 0: whether a record has the prompt only its text says.
uint16_t HashPrompt(std::string_view prompt);

// The rows of a store in memory, by number: about 97 bytes a record with its indexes. Not thread-safe.
class RecordTable {
 public:
  static constexpr uint32_t kNoName = ~uint32_t{0};
  static constexpr uint64_t kMostRows = ~uint32_t{0} - 1;  // numbers have 32 bits in indexes

  RecordTable();
  void Append(const StoredRow& stored);
  void Clear() { *this = RecordTable(); }
  void SetPruned(uint64_t number) { Row(number).pruned = true; }
  void SetPlace(uint64_t number, RecordPlace place) { Row(number).place = place; }
  uint64_t newest() const { return newest_; }
  const RecordRow& row(uint64_t number) const { return chunks_[(number - 1) / kChunk][(number - 1) % kChunk]; }
  // The number of the record with the uid of these hashes; 0: none.
  uint64_t Find(uint64_t uid_high, uint64_t uid_low) const;
  uint64_t Find(std::string_view uid) const;
  // Whether the row says what `stored` does, apart from what changes later: place, pruned.
  bool Agrees(uint64_t number, const StoredRow& stored) const;

  size_t kinds() const { return kinds_.size(); }
  const RecordKind& kind(uint32_t id) const { return kinds_[id]; }
  const RecordKind& KindOf(uint64_t number) const { return kinds_[row(number).kind]; }
  const std::string& name(uint32_t id) const { return names_[id]; }
  uint32_t FindName(const std::string& name) const;  // kNoName when no record has it
  size_t tag_sets() const { return tag_sets_.size(); }
  const std::vector<uint32_t>& tag_set(uint32_t id) const { return tag_sets_[id]; }  // sorted name ids

  // The order candidates are sampled in: by the hash of the uid without its run, then by run, so that it depends
  // neither on the order of arrival nor on what a job's directory is called.
  bool Before(uint64_t a, uint64_t b) const;

  // A secondary index: what kZoneRows rows after each other have, so that a search passes over those without a match.
  static constexpr uint64_t kZoneRows = 4096;
  struct Zone {
    double min_return = 0;
    double max_return = 0;
    std::vector<uint32_t> kinds;           // each once
    std::array<uint64_t, 512> tasks{};     // a Bloom filter of the tasks' hashes
    std::array<uint64_t, 1024> prompts{};  // a bit for each value of RecordRow.prompt
    bool MayHaveTask(uint64_t task_hash) const;
    bool MayHavePrompt(uint16_t prompt) const;
    void Add(const RecordRow& row, bool first);
  };
  const Zone& ZoneOf(uint64_t number) const { return *zones_[(number - 1) / kZoneRows]; }

  // Rows first..last as a file's contents, with the place behind the last one's frame in the record log.
  std::string EncodeRows(uint64_t first, uint64_t last, RecordPlace end) const;
  // Appends the rows of such a file. False, and nothing appended, where it is not whole or does not go on from
  // newest().
  bool LoadRows(const std::string& path, RecordPlace* end);

 private:
  // Rows never move: a table of millions grows without copying.
  static constexpr uint64_t kChunk = 65536;
  RecordRow& Row(uint64_t number) { return chunks_[(number - 1) / kChunk][(number - 1) % kChunk]; }
  uint32_t Intern(const std::string& name);
  uint32_t InternTags(const std::vector<std::string>& tags);
  uint32_t InternKind(const RecordKind& kind);
  void AppendRow(const RecordRow& row);

  std::vector<std::unique_ptr<RecordRow[]>> chunks_;
  uint64_t newest_ = 0;
  std::vector<std::unique_ptr<Zone>> zones_;
  UidIndex uids_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, uint32_t> name_ids_;
  std::vector<std::vector<uint32_t>> tag_sets_;
  std::map<std::vector<uint32_t>, uint32_t> tag_set_ids_;
  std::vector<RecordKind> kinds_;
  std::map<RecordKind, uint32_t> kind_ids_;
};

}  // namespace quern
