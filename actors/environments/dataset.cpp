#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "actors/environments/factories.h"
#include "actors/environments/options.h"
#include "actors/environments/questions.h"
#include "base/check.h"
#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"
#include "replay/questions/question_file.h"

namespace quern {

namespace {

constexpr char kPrefix[] = "prefix";

class ReferencePlayer : public Player {
 public:
  using Rows = std::unordered_map<std::string, size_t>;
  ReferencePlayer(std::shared_ptr<const QuestionSet> set, std::shared_ptr<const Rows> rows, double noise)
      : set_(std::move(set)), rows_(std::move(rows)), noise_(noise) {}

  void Reset(uint64_t seed, const Observation& first) override {
    random_ = Random(seed, kPlayerStream);
    const auto it = rows_->find(first.text);
    QUERN_CHECK(it != rows_->end(), "not a question of this data set: " + first.text);
    row_ = it->second;
  }
  std::string Act() override {
    const bool other = random_.Uniform() < noise_;
    return set_->rows[other ? random_.Below(set_->rows.size()) : row_].solution + set_->end;
  }
  void Observe(const StepOutcome&) override {}

 private:
  std::shared_ptr<const QuestionSet> set_;
  std::shared_ptr<const Rows> rows_;
  double noise_;
  Random random_{0};
  size_t row_ = 0;
};

class DatasetFactory : public EnvironmentFactory {
 public:
  explicit DatasetFactory(std::shared_ptr<const QuestionSet> set) : set_(std::move(set)) {
    auto rows = std::make_shared<ReferencePlayer::Rows>();
    for (size_t i = 0; i < set_->rows.size(); ++i) rows->emplace(set_->rows[i].text + set_->suffix, i);
    rows_ = std::move(rows);
  }
  std::unique_ptr<Environment> NewEnvironment() const override { return NewQuestionEnvironment(set_); }
  std::vector<std::string> player_names() const override { return {"reference"}; }
  size_t task_count() const override { return set_->rows.size(); }
  const QuestionSource* questions() const override { return set_.get(); }
  Result<std::unique_ptr<Player>> NewPlayer(const std::string& name, const Options& options) const override {
    if (name != "reference") return UnknownName("player of dataset", name, player_names());
    OptionReader reader("player reference of dataset", options);
    const double noise = reader.Number("noise", 0, 0, 1);
    QUERN_RETURN_IF_ERROR(reader.Finish());
    return std::unique_ptr<Player>(std::make_unique<ReferencePlayer>(set_, rows_, noise));
  }
  std::vector<std::string> vocabulary() const override {
    std::vector<std::string> texts = {set_->suffix, set_->after, set_->end};
    for (const Question& row : set_->rows) {
      texts.push_back(row.text);
      texts.push_back(row.solution);
    }
    return DistinctCharacters(texts);
  }

 private:
  std::shared_ptr<const QuestionSet> set_;
  std::shared_ptr<const ReferencePlayer::Rows> rows_;
};

struct Part {
  std::string split;
  double test_share = 0;
  int split_seed = 0;
  int first = 0;
  int count = 0;
};

// By the question alone: neither its place in the file nor what else is there changes its part.
bool InTestPart(const std::string& id, const Part& part) {
  return Random(static_cast<uint64_t>(part.split_seed), StableHash(id)).Uniform() < part.test_share;
}

std::vector<Question> Select(std::vector<FileQuestion> all, const std::string& grader, const Part& part) {
  std::vector<Question> rows;
  std::unordered_set<std::string> seen;
  for (FileQuestion& one : all) {
    if (!seen.insert(StrCat(one.id.size(), ":", one.id, one.text.size(), ":", one.text, one.answer)).second) continue;
    if (part.split != "all" && InTestPart(one.id, part) != (part.split == "test")) continue;
    rows.push_back({.id = std::move(one.id),
                    .text = std::move(one.text),
                    .answer = std::move(one.answer),
                    .solution = std::move(one.solution),
                    .grader = grader});
  }
  const auto size = static_cast<int64_t>(rows.size());
  const int64_t begin = std::clamp<int64_t>(part.first < 0 ? size + part.first : part.first, 0, size);
  const int64_t end = part.count == 0 ? size : std::min<int64_t>(size, begin + part.count);
  rows.erase(rows.begin() + end, rows.end());
  rows.erase(rows.begin(), rows.begin() + begin);
  return rows;
}

}  // namespace

FactoryResult MakeDatasetFactory(const Options& options, const std::string& base_dir) {
  OptionReader reader("environment dataset", options);
  const std::string file = reader.Text("file", "");
  const std::string format_name = reader.Text("format", "auto");
  const QuestionColumns columns = {reader.Text("prompt_key", ""), reader.Text("answer_key", "")};
  std::string grader = reader.Text("grader", "");
  auto set = std::make_shared<QuestionSet>();
  set->suffix = reader.Text("suffix", "");
  set->after = reader.Text("after", "");
  set->end = reader.Text("end", "");
  set->max_tokens = reader.Integer("max_tokens", 64, 1, 1 << 20);
  set->in_turn = reader.Choice("tasks", {"random", "all"}) == "all";
  const Part part = {.split = reader.Choice("split", {"all", "train", "test"}),
                     .test_share = reader.Number("test_share", 0.2, 0, 1),
                     .split_seed = reader.Integer("split_seed", 0, 0, 1 << 30),
                     .first = reader.Integer("first", 0, -(1 << 30), 1 << 30),
                     .count = reader.Integer("count", 0, 0, 1 << 30)};
  QUERN_RETURN_IF_ERROR(reader.Finish());
  if (file.empty())
    return InvalidArgument("environment dataset: option file is missing: a file of questions and answers");
  const std::string path = ResolvePath(base_dir, file);
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));

  QuestionFormat format = QuestionFormat::kPlain;
  if (format_name != "auto") {
    Result<QuestionFormat> parsed = ParseQuestionFormat(format_name);
    if (!parsed.ok()) return parsed.status().Annotate("environment dataset");
    format = *parsed;
  } else if (columns.question.empty() && columns.answer.empty()) {
    format = DetectQuestionFormat(text).value_or(QuestionFormat::kPlain);
  }
  if (grader.empty()) grader = DefaultGrader(format);
  if (grader != kPrefix) {
    Result<std::unique_ptr<Grader>> made = MakeGrader(grader);
    if (!made.ok()) return made.status().Annotate("environment dataset");
    set->grader = std::move(*made);
  }
  QUERN_ASSIGN_OR_RETURN(std::vector<FileQuestion> all, ReadQuestionFile(format, text, path, columns));
  // Programs that ask the questions grade them too, and prefix is no grader of theirs.
  set->rows = Select(std::move(all), grader == kPrefix ? "exact" : grader, part);
  if (set->rows.empty())
    return InvalidArgument(
        StrCat("environment dataset: no question of ", path, " is left; change split, test_share, first or count"));
  return FactoryResult(std::make_shared<DatasetFactory>(std::move(set)));
}

}  // namespace quern
