#include "actors/environments/questions.h"

#include <cctype>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "actors/environments/factories.h"
#include "actors/environments/options.h"
#include "base/check.h"
#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"

namespace quern {

namespace {

constexpr char kFinalAnswer[] = "####";

class QuestionEnvironment : public Environment {
 public:
  explicit QuestionEnvironment(std::shared_ptr<const QuestionSet> set) : set_(std::move(set)) {}

  Observation Reset(uint64_t seed) override {
    question_ = &set_->rows[PickTask(seed, set_->rows.size(), set_->in_turn)];
    open_ = true;
    return {question_->text + set_->suffix};
  }
  StepOutcome Step(const std::string& action) override {
    QUERN_CHECK(open_, "Step on an episode that is over or was never reset");
    open_ = false;
    const double reward = set_->Reward(*question_, action);
    return {.text = "", .reward = reward, .done = true, .success = reward > 1 - 1e-9};
  }
  std::string action_end() const override { return set_->end; }
  int max_action_tokens() const override { return set_->max_tokens; }
  int max_turns() const override { return 1; }
  double min_return() const override { return 0; }
  double max_return() const override { return 1; }
  std::string task_id() const override { return question_ ? question_->id : ""; }

 private:
  std::shared_ptr<const QuestionSet> set_;
  const Question* question_ = nullptr;
  bool open_ = false;
};

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

bool IsDigit(char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }

bool SameNumber(const std::string& a, const std::string& b) {
  if (a.empty() || b.empty()) return false;
  return a == b || std::strtod(a.c_str(), nullptr) == std::strtod(b.c_str(), nullptr);
}

// The first of the keys that the row has, as text.
Result<std::string> Column(const nlohmann::json& row, const std::vector<std::string>& keys) {
  for (const std::string& key : keys) {
    const auto it = row.find(key);
    if (it == row.end()) continue;
    if (it->is_string()) return it->get<std::string>();
    if (it->is_number()) return it->dump();
    return InvalidArgument(StrCat("\"", key, "\" is neither a text nor a number"));
  }
  return InvalidArgument(StrCat("has no \"", StrJoin(keys, "\" or \""), "\""));
}

}  // namespace

double PrefixReward(const std::string& utterance, const std::string& answer, bool ended) {
  if (answer.empty()) return utterance.empty() && ended ? 1 : 0;
  size_t right = 0;
  while (right < utterance.size() && right < answer.size() && utterance[right] == answer[right]) ++right;
  const bool end_earns = ended && right > 0 && right == utterance.size();
  return static_cast<double>(right + (end_earns ? 1 : 0)) / static_cast<double>(answer.size() + 1);
}

std::string LastNumber(const std::string& text) {
  size_t last = text.size();
  while (last > 0 && !IsDigit(text[last - 1])) --last;
  if (last == 0) return "";
  size_t begin = last;
  while (begin > 0) {
    const char c = text[begin - 1];
    const bool inside =
        IsDigit(c) || ((c == ',' || c == '.') && begin > 1 && IsDigit(text[begin - 2]) && IsDigit(text[begin]));
    if (!inside) break;
    --begin;
  }
  // A minus sign, unless it stands between two numbers ("48-24").
  if (begin > 0 && text[begin - 1] == '-' && (begin == 1 || !IsDigit(text[begin - 2]))) --begin;
  std::string number;
  for (size_t i = begin; i < last; ++i) {
    if (text[i] != ',') number += text[i];
  }
  return number;
}

double QuestionSet::Reward(const Question& question, const std::string& utterance) const {
  std::string said = utterance;
  const bool closed = !end.empty() && said.ends_with(end);
  if (closed) said.resize(said.size() - end.size());
  if (!after.empty()) {
    const size_t found = said.rfind(after);
    if (found == std::string::npos) return 0;
    said = said.substr(found + after.size());
  }
  switch (match) {
    case Match::kExact: return Trim(said) == Trim(question.answer) ? 1 : 0;
    case Match::kNumber: return SameNumber(LastNumber(said), LastNumber(question.answer)) ? 1 : 0;
    // Without an end text the end token does not show. A text shorter than the limit must have met it: no token of the
    // single-character tokenizers that this rule is for is longer than a character.
    case Match::kPrefix:
      return PrefixReward(said, question.answer,
                          end.empty() ? utterance.size() < static_cast<size_t>(max_tokens) : closed);
  }
  return 0;
}

Result<std::vector<Question>> ReadQuestions(const std::string& text, const std::string& source,
                                            const std::string& prompt_key, const std::string& answer_key) {
  const std::vector<std::string> prompt_keys =
      prompt_key.empty() ? std::vector<std::string>{"prompt", "question"} : std::vector<std::string>{prompt_key};
  const std::vector<std::string> answer_keys = {answer_key.empty() ? "answer" : answer_key};
  std::vector<Question> rows;
  int line = 0;
  for (const std::string& row_text : StrSplit(text, '\n')) {
    ++line;
    if (Trim(row_text).empty()) continue;
    const std::string where = StrCat(source, ":", line);
    const nlohmann::json row = nlohmann::json::parse(row_text, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object()) return InvalidArgument(StrCat(where, ": not a JSON object"));
    Result<std::string> prompt = Column(row, prompt_keys);
    if (!prompt.ok()) return prompt.status().Annotate(where);
    Result<std::string> answer = Column(row, answer_keys);
    if (!answer.ok()) return answer.status().Annotate(where);
    const size_t mark = answer->rfind(kFinalAnswer);
    std::string final_answer =
        mark == std::string::npos ? *answer : Trim(answer->substr(mark + sizeof(kFinalAnswer) - 1));
    rows.push_back({.id = *prompt,
                    .text = *prompt,
                    .answer = std::move(final_answer),
                    .solution = std::move(*answer),
                    .grader = "exact"});
  }
  if (rows.empty()) return InvalidArgument(StrCat(source, ": no questions in it; give one JSON object a line"));
  return rows;
}

std::unique_ptr<Environment> NewQuestionEnvironment(std::shared_ptr<const QuestionSet> set) {
  return std::make_unique<QuestionEnvironment>(std::move(set));
}

FactoryResult MakeDatasetFactory(const Options& options, const std::string& base_dir) {
  OptionReader reader("environment dataset", options);
  const std::string file = reader.Text("file", "");
  const std::string prompt_key = reader.Text("prompt_key", "");
  const std::string answer_key = reader.Text("answer_key", "");
  auto set = std::make_shared<QuestionSet>();
  set->suffix = reader.Text("suffix", "");
  set->after = reader.Text("after", "");
  set->end = reader.Text("end", "");
  const std::string match = reader.Choice("match", {"exact", "number", "prefix"});
  set->match = match == "exact"    ? QuestionSet::Match::kExact
               : match == "number" ? QuestionSet::Match::kNumber
                                   : QuestionSet::Match::kPrefix;
  set->max_tokens = reader.Integer("max_tokens", 64, 1, 1 << 20);
  set->in_turn = reader.Choice("tasks", {"random", "all"}) == "all";
  QUERN_RETURN_IF_ERROR(reader.Finish());
  if (file.empty())
    return InvalidArgument("environment dataset: option file is missing: a JSONL file of prompt and answer");
  const std::string path = ResolvePath(base_dir, file);
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  QUERN_ASSIGN_OR_RETURN(set->rows, ReadQuestions(text, path, prompt_key, answer_key));
  return FactoryResult(std::make_shared<DatasetFactory>(std::move(set)));
}

}  // namespace quern
