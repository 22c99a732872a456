#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "replay/replay.h"

namespace quern {

// Rows of JSON Lines files as trajectories, and back. This is the only way in for offline data.
enum class ImportFormat {
  kAuto,              // decided row by row from the keys present
  kQuern,             // what export writes
  kMessages,          // {"messages": [{"role", "content"}], "rewards": [one per assistant message], "done"}
  kPromptCompletion,  // {"prompt", "completion", "reward"}; both may be text or lists of messages
  kLmrl,              // {"sequence": [[text, is_action], ...], "reward": [one per item], "done"}, and dialogues
          // {"conversation": ["question? answer", ...], "done", "word"}: -1 a question, 0 for the solving one
};
Result<ImportFormat> ParseImportFormat(const std::string& name);

struct ImportOptions {
  ImportFormat format = ImportFormat::kAuto;
  std::optional<v1::Source> source;  // set on every row; without it rows of kQuern keep theirs, others are real
  std::vector<std::string> tags;     // added to each row's own
  std::string run;                   // set where a row has none
  size_t max_line_bytes = size_t{16} << 20;
  size_t batch_records = 256;
  bool stop_at_bad_line = false;
};

// One row. Columns that Quern does not know are kept in extra_json. A row without a uid gets one from its content
// (XXH3-128 of everything but run, tags and source): importing the same row again stores nothing new.
Result<v1::Trajectory> ParseRow(std::string_view line, const ImportOptions& options);

struct BadLine {
  uint64_t number = 0;  // from 1
  std::string reason;
};
struct ImportReport {
  uint64_t rows = 0;  // lines that are not blank
  uint64_t inserted = 0;
  uint64_t duplicates = 0;
  uint64_t bad = 0;
  std::vector<BadLine> bad_lines;  // the first 100
};
// Good rows are stored even when others are bad. `progress` (may be empty) hears of every batch.
Result<ImportReport> ImportJsonl(Replay& store, const std::string& path, const ImportOptions& options,
                                 const std::function<void(const ImportReport&)>& progress = {});

// One JSON object on one line, without a newline: what ParseRow (kQuern) turns back into an equal trajectory.
std::string FormatRow(const v1::Trajectory& trajectory);

// Every record that matches, in insertion order, written atomically. Returns the number of rows.
Result<uint64_t> ExportJsonl(Replay& store, const v1::Filter& filter, const std::string& path);

// Calls `visit` for every matching record in insertion order, up to `limit` of them (0: all), a page at a time.
Status ForEachRecord(Replay& store, const v1::Filter& filter, uint64_t limit,
                     const std::function<Status(uint64_t number, const v1::Trajectory& trajectory)>& visit);

}  // namespace quern
