#include "replay/import.h"

#include <fstream>
#include <iterator>
#include <utility>

#include "base/file.h"
#include "base/strings.h"
#include "replay/limits.h"
#include "replay/questions/question_file.h"

namespace quern {

namespace {

constexpr auto kInsertDeadline = std::chrono::seconds(60);
constexpr size_t kBatchBytes = size_t{8} << 20;
constexpr size_t kMaxBadLines = 100;

// Lines of a file or, as "-", of standard input, which can be read only once; one over the limit is skipped without
// being held in memory.
class LineReader {
 public:
  LineReader(const std::string& path, size_t limit)
      : in_(path == "-" ? "/dev/stdin" : path, std::ios::binary), limit_(limit) {
    head_.resize(kHeadBytes);
    in_.read(head_.data(), static_cast<std::streamsize>(head_.size()));
    head_.resize(static_cast<size_t>(in_.gcount()));
  }
  bool open() const { return in_.is_open(); }
  bool readable() const { return !in_.bad(); }
  const std::string& head() const { return head_; }
  // Instead of lines: everything.
  std::string All() { return head_ + std::string(std::istreambuf_iterator<char>(in_.rdbuf()), {}); }
  // False at the end. `too_long`: the line was skipped.
  bool Next(std::string* line, bool* too_long) {
    line->clear();
    *too_long = false;
    bool any = false;
    int c;
    const auto get = [this, buffer = in_.rdbuf()] {
      return at_ < head_.size() ? static_cast<unsigned char>(head_[at_++]) : buffer->sbumpc();
    };
    while ((c = get()) != std::char_traits<char>::eof()) {
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
  static constexpr size_t kHeadBytes = size_t{64} << 10;
  std::ifstream in_;
  size_t limit_;
  std::string head_;
  size_t at_ = 0;  // in the head
};

class Batch {
 public:
  Batch(Replay* store, const ImportOptions& options, ImportReport* report,
        const std::function<void(const ImportReport&)>& progress)
      : store_(store), options_(options), report_(report), progress_(progress) {
    request_.set_writer("import");
  }
  Status Add(const v1::Trajectory& trajectory) {
    if (store_ == nullptr) return {};
    std::string* bytes = request_.add_trajectories();
    trajectory.SerializeToString(bytes);
    bytes_ += bytes->size();
    const bool full = static_cast<size_t>(request_.trajectories_size()) >= options_.batch_records;
    return full || bytes_ >= kBatchBytes ? Flush() : Status();
  }
  Status Flush() {
    if (request_.trajectories_size() == 0) return {};
    QUERN_ASSIGN_OR_RETURN(const v1::InsertReply reply, store_->Insert(request_, Deadline::After(kInsertDeadline)));
    report_->inserted += reply.inserted();
    report_->duplicates += reply.duplicates();
    request_.clear_trajectories();
    bytes_ = 0;
    if (progress_) progress_(*report_);
    return {};
  }

 private:
  Replay* store_;  // null: rows are only looked at
  const ImportOptions& options_;
  ImportReport* report_;
  const std::function<void(const ImportReport&)>& progress_;
  v1::InsertRequest request_;
  size_t bytes_ = 0;
};

}  // namespace

Result<ImportFormat> ParseImportFormat(const std::string& name) {
  std::vector<std::string> names = {"auto", "quern", "messages", "prompt-completion", "lmrl"};
  for (std::string& question_format : QuestionFormatNames()) names.push_back(std::move(question_format));
  for (size_t i = 0; i < names.size(); ++i)
    if (names[i] == name) return static_cast<ImportFormat>(i);
  const std::string near = NearestName(name, names);
  return InvalidArgument("unknown format '" + name + "'" + (near.empty() ? "" : ": did you mean '" + near + "'?") +
                         " (" + StrJoin(names, ", ") + ")");
}

std::optional<QuestionFormat> QuestionFormatOf(ImportFormat format) {
  if (format < ImportFormat::kPlain) return std::nullopt;
  return static_cast<QuestionFormat>(static_cast<int>(format) - static_cast<int>(ImportFormat::kPlain));
}

namespace {

// The format that the beginning of the file shows, where it is a file of questions.
ImportFormat DetectFormat(const std::string& head, ImportFormat format) {
  if (format != ImportFormat::kAuto) return format;
  const std::optional<QuestionFormat> found = DetectQuestionFormat(head);
  if (!found) return format;
  return static_cast<ImportFormat>(static_cast<int>(ImportFormat::kPlain) + static_cast<int>(*found));
}

class Importer {
 public:
  Importer(Replay* store, const std::string& path, const ImportOptions& options,
           const std::function<void(const ImportReport&)>& progress)
      : path_(path), options_(options), batch_(store, options, &report_, progress) {}

  // False: stop here.
  Result<bool> Add(uint64_t number, std::string_view text, bool too_long) {
    ++report_.rows;
    Result<v1::Trajectory> row =
        too_long ? Result<v1::Trajectory>(InvalidArgument("longer than the limit of " +
                                                          HumanBytes(static_cast<double>(options_.max_line_bytes))))
                 : ParseRow(text, options_);
    Status status = row.ok() ? CheckTrajectory(*row, limits_) : row.status();
    if (status.ok() && row->ByteSizeLong() > limits_.record_bytes)
      status =
          InvalidArgument("the record is over the limit of " + HumanBytes(static_cast<double>(limits_.record_bytes)));
    if (status.ok()) {
      QUERN_RETURN_IF_ERROR(batch_.Add(*row).Annotate(StrCat(path_, ":", number)));
      return true;
    }
    ++report_.bad;
    if (report_.bad_lines.size() < kMaxBadLines) report_.bad_lines.push_back({number, status.message()});
    return !options_.stop_at_bad_line;
  }
  Result<ImportReport> Finish() {
    QUERN_RETURN_IF_ERROR(batch_.Flush().Annotate(path_));
    return report_;
  }

 private:
  const std::string& path_;
  const ImportOptions& options_;
  ImportReport report_;
  Batch batch_;
  RecordLimits limits_;
};

}  // namespace

namespace {

Result<ImportReport> ReadRows(Replay* store, const std::string& path, const ImportOptions& given,
                              const std::function<void(const ImportReport&)>& progress) {
  LineReader lines(path, given.max_line_bytes);
  if (!lines.open()) return FromErrno(errno, path);
  if (!lines.readable()) return InvalidArgument(path + ": cannot be read");
  ImportOptions options = given;
  options.format = DetectFormat(lines.head(), given.format);
  Importer importer(store, path, options, progress);
  if (const std::optional<QuestionFormat> format = QuestionFormatOf(options.format)) {
    const std::string file = lines.All();
    const Result<std::vector<QuestionRecord>> records = SplitRecords(*format, file);
    if (!records.ok()) return InvalidArgument(StrCat(path, ":", records.status().message()));
    for (const QuestionRecord& record : *records) {
      QUERN_ASSIGN_OR_RETURN(const bool go_on,
                             importer.Add(record.line, record.text, record.text.size() > options.max_line_bytes));
      if (!go_on) break;
    }
    return importer.Finish();
  }
  std::string line;
  bool too_long = false;
  for (uint64_t number = 1; lines.Next(&line, &too_long); ++number) {
    if (!too_long && line.find_first_not_of(" \t\r") == std::string::npos) continue;
    QUERN_ASSIGN_OR_RETURN(const bool go_on, importer.Add(number, line, too_long));
    if (!go_on) break;
  }
  return importer.Finish();
}

}  // namespace

Result<ImportReport> ImportFile(Replay& store, const std::string& path, const ImportOptions& options,
                                const std::function<void(const ImportReport&)>& progress) {
  return ReadRows(&store, path, options, progress);
}

Result<ImportReport> CheckImportFile(const std::string& path, const ImportOptions& options) {
  return ReadRows(nullptr, path, options, {});
}

}  // namespace quern
