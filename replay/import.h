#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/status.h"
#include "replay/questions/question_file.h"
#include "replay/replay.h"

namespace quern {

// Rows of JSON Lines files, and questions of the files that they are published in, as trajectories, and back. This is
// the only way in for offline data.
enum class ImportFormat {
  kAuto,              // a file of questions is known by its first record; else decided row by row from the keys present
  kQuern,             // what export writes
  kMessages,          // {"messages": [{"role", "content"}], "rewards": [one per assistant message], "done"}
  kPromptCompletion,  // {"prompt", "completion", "reward"}; both may be text or lists of messages
  kLmrl,              // {"sequence": [[text, is_action], ...], "reward": [one per item], "done"}, and dialogues
          // {"conversation": ["question? answer", ...], "done", "word"}: -1 a question, 0 for the solving one
  // Files of questions (replay/questions/question_file.h, in its order): a record asks the question and gives the
  // worked solution, for a reward of 1; its task is the question's id.
  kPlain,
  kGsm8k,
  kSvamp,
  kAqua,
  kStrategyQa,
  kArc,
  kSums,
  kGame24,
};
Result<ImportFormat> ParseImportFormat(const std::string& name);

// What the question formats are in replay/questions; nothing for the others.
std::optional<QuestionFormat> QuestionFormatOf(ImportFormat format);

struct ImportOptions {
  ImportFormat format = ImportFormat::kAuto;
  std::optional<v1::Source> source;  // set on every row; without it rows of kQuern keep theirs, others are real
  std::vector<std::string> tags;     // added to each row's own
  std::string run;                   // set where a row has none
  size_t max_line_bytes = size_t{16} << 20;
  size_t batch_records = 256;
  bool stop_at_bad_line = false;
};

// One row, or one record of a file of questions. Columns that Quern does not know are kept in extra_json. A row without
// a uid gets one from its content (XXH3-128 of everything but run, tags and source): importing the same row again
// stores nothing new.
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
Result<ImportReport> ImportFile(Replay& store, const std::string& path, const ImportOptions& options,
                                const std::function<void(const ImportReport&)>& progress = {});

// The same without a store: which rows are bad.
Result<ImportReport> CheckImportFile(const std::string& path, const ImportOptions& options);

// One JSON object on one line, without a newline: what ParseRow (kQuern) turns back into an equal trajectory.
std::string FormatRow(const v1::Trajectory& trajectory);

// For people and for other programs' fine-tuning: {"messages", "rewards", "reward", "success", "task", "verdict",
// "guideline", "generation_depth", ...}. Reads back as kMessages: the texts, rewards and provenance, no tokens.
std::string FormatMessagesRow(const v1::Trajectory& trajectory);

enum class ExportFormat { kQuern, kMessages };
struct ExportReport {
  uint64_t rows = 0;
  uint64_t without_messages = 0;  // records that are only tokens: kMessages leaves them out
};
// Every record that matches, in insertion order.
Result<ExportReport> ExportJsonl(Replay& store, const v1::Filter& filter, const WriteSink& sink, ExportFormat format);
// The same into a file, written atomically.
Result<ExportReport> ExportJsonl(Replay& store, const v1::Filter& filter, const std::string& path,
                                 ExportFormat format = ExportFormat::kQuern);

// verified, hinted, unverified, failed; "" for none.
std::string VerdictName(v1::Verdict verdict);
Result<v1::Verdict> ParseVerdict(const std::string& name);

// Calls `visit` for every matching record in insertion order, up to `limit` of them (0: all), a page at a time.
Status ForEachRecord(Replay& store, const v1::Filter& filter, uint64_t limit,
                     const std::function<Status(uint64_t number, const v1::Trajectory& trajectory)>& visit);

}  // namespace quern
