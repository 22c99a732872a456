#include "actors/environments/questions.h"

#include <utility>

#include "actors/environments/options.h"
#include "base/check.h"

namespace quern {

namespace {

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

}  // namespace

double PrefixReward(const std::string& utterance, const std::string& answer, bool ended) {
  if (answer.empty()) return utterance.empty() && ended ? 1 : 0;
  size_t right = 0;
  while (right < utterance.size() && right < answer.size() && utterance[right] == answer[right]) ++right;
  const bool end_earns = ended && right > 0 && right == utterance.size();
  return static_cast<double>(right + (end_earns ? 1 : 0)) / static_cast<double>(answer.size() + 1);
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
  // Graders read an empty text as no answer. Where nothing is the right answer, it must be said by ending at once.
  if (grader && !question.answer.empty()) return Grade(*grader, said, question.answer) ? 1 : 0;
  // Without an end text the end token does not show. A text shorter than the limit must have met it: no token of the
  // single-character tokenizers that this rule is for is longer than a character.
  const bool ended = end.empty() ? utterance.size() < static_cast<size_t>(max_tokens) : closed;
  return grader ? (said.empty() && ended ? 1 : 0) : PrefixReward(said, question.answer, ended);
}

std::unique_ptr<Environment> NewQuestionEnvironment(std::shared_ptr<const QuestionSet> set) {
  return std::make_unique<QuestionEnvironment>(std::move(set));
}

}  // namespace quern
