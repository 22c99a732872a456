#include "replay/import.h"

#include <cstdio>
#include <fstream>

#include "base/strings.h"
#include "replay/limits.h"

namespace quern {

namespace {

constexpr auto kInsertDeadline = std::chrono::seconds(60);
constexpr size_t kBatchBytes = size_t{8} << 20;
constexpr size_t kMaxBadLines = 100;

// Lines of a file; one over the limit is skipped without being held in memory.
class LineReader {
 public:
  LineReader(const std::string& path, size_t limit) : in_(path, std::ios::binary), limit_(limit) {}
  bool open() const { return in_.is_open(); }
  // False at the end. `too_long`: the line was skipped.
  bool Next(std::string* line, bool* too_long) {
    line->clear();
    *too_long = false;
    bool any = false;
    int c;
    std::streambuf* buffer = in_.rdbuf();
    while ((c = buffer->sbumpc()) != std::char_traits<char>::eof()) {
      any = true;
      if (c == '\n') break;
      if (line->size() < limit_)
        line->push_back(static_cast<char>(c));
      else
        *too_long = true;
    }
    return any;
  }

 private:
  std::ifstream in_;
  size_t limit_;
};

class Batch {
 public:
  Batch(Replay& store, const ImportOptions& options, ImportReport* report,
        const std::function<void(const ImportReport&)>& progress)
      : store_(store), options_(options), report_(report), progress_(progress) {
    request_.set_actor("import");
  }
  Status Add(const v1::Trajectory& trajectory) {
    std::string* bytes = request_.add_trajectories();
    trajectory.SerializeToString(bytes);
    bytes_ += bytes->size();
    const bool full = static_cast<size_t>(request_.trajectories_size()) >= options_.batch_records;
    return full || bytes_ >= kBatchBytes ? Flush() : Status();
  }
  Status Flush() {
    if (request_.trajectories_size() == 0) return {};
    QUERN_ASSIGN_OR_RETURN(const v1::InsertReply reply, store_.Insert(request_, Deadline::After(kInsertDeadline)));
    report_->inserted += reply.inserted();
    report_->duplicates += reply.duplicates();
    request_.clear_trajectories();
    bytes_ = 0;
    if (progress_) progress_(*report_);
    return {};
  }

 private:
  Replay& store_;
  const ImportOptions& options_;
  ImportReport* report_;
  const std::function<void(const ImportReport&)>& progress_;
  v1::InsertRequest request_;
  size_t bytes_ = 0;
};

}  // namespace

Result<ImportFormat> ParseImportFormat(const std::string& name) {
  const std::vector<std::string> names = {"auto", "quern", "messages", "prompt-completion", "lmrl"};
  for (size_t i = 0; i < names.size(); ++i)
    if (names[i] == name) return static_cast<ImportFormat>(i);
  const std::string near = NearestName(name, names);
  return InvalidArgument("unknown format '" + name + "'" + (near.empty() ? "" : ": did you mean '" + near + "'?") +
                         " (auto, quern, messages, prompt-completion, lmrl)");
}

Result<ImportReport> ImportJsonl(Replay& store, const std::string& path, const ImportOptions& options,
                                 const std::function<void(const ImportReport&)>& progress) {
  LineReader lines(path, options.max_line_bytes);
  if (!lines.open()) return FromErrno(errno, path);
  ImportReport report;
  Batch batch(store, options, &report, progress);
  const RecordLimits limits;
  std::string line;
  bool too_long = false;
  for (uint64_t number = 1; lines.Next(&line, &too_long); ++number) {
    if (!too_long && line.find_first_not_of(" \t\r") == std::string::npos) continue;
    ++report.rows;
    Result<v1::Trajectory> row =
        too_long ? Result<v1::Trajectory>(InvalidArgument("longer than the limit of " +
                                                          HumanBytes(static_cast<double>(options.max_line_bytes))))
                 : ParseRow(line, options);
    Status status = row.ok() ? CheckTrajectory(*row, limits) : row.status();
    if (status.ok() && row->ByteSizeLong() > limits.record_bytes)
      status =
          InvalidArgument("the record is over the limit of " + HumanBytes(static_cast<double>(limits.record_bytes)));
    if (status.ok()) {
      QUERN_RETURN_IF_ERROR(batch.Add(*row).Annotate(StrCat(path, ":", number)));
      continue;
    }
    ++report.bad;
    if (report.bad_lines.size() < kMaxBadLines) report.bad_lines.push_back({number, status.message()});
    if (options.stop_at_bad_line) break;
  }
  QUERN_RETURN_IF_ERROR(batch.Flush().Annotate(path));
  return report;
}

}  // namespace quern
