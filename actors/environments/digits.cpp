#include <algorithm>
#include <cstdio>
#include <utility>

#include "actors/environments/factories.h"
#include "actors/environments/options.h"
#include "actors/environments/questions.h"
#include "base/check.h"
#include "base/random.h"
#include "base/strings.h"

namespace quern {

namespace {

struct DigitTask {
  int first = 0;
  int second = 0;
  int max = 0;
  int count = 0;
};

std::string PromptOf(const DigitTask& task) {
  return StrCat(task.first, ",", task.second, ":", task.max, ",", task.count);
}

std::vector<std::string> NextNumbers(const DigitTask& task) {
  std::vector<std::string> numbers;
  const int difference = task.second - task.first;
  int number = task.second;
  for (int i = 0; i < task.count; ++i) {
    number = ((number + difference) % task.max + task.max) % task.max;
    numbers.push_back(StrCat(number));
  }
  return numbers;
}

class DigitPlayer : public Player {
 public:
  DigitPlayer(std::string end, double noise) : end_(std::move(end)), noise_(noise) {}

  void Reset(uint64_t seed, const Observation& first) override {
    random_ = Random(seed, kPlayerStream);
    const int read =
        std::sscanf(first.text.c_str(), "%d,%d:%d,%d", &task_.first, &task_.second, &task_.max, &task_.count);
    QUERN_CHECK(read == 4, "not a digits task: " + first.text);
  }
  std::string Act() override {
    std::vector<std::string> numbers = NextNumbers(task_);
    for (std::string& number : numbers) {
      if (random_.Uniform() < noise_) number = StrCat(random_.Below(task_.max));
    }
    return StrJoin(numbers, ",") + end_;
  }
  void Observe(const StepOutcome&) override {}

 private:
  std::string end_;
  double noise_;
  Random random_{0};
  DigitTask task_;
};

class DigitsFactory : public EnvironmentFactory {
 public:
  explicit DigitsFactory(std::shared_ptr<const QuestionSet> set) : set_(std::move(set)) {}

  std::unique_ptr<Environment> NewEnvironment() const override { return NewQuestionEnvironment(set_); }
  std::vector<std::string> player_names() const override { return {"random", "best"}; }
  size_t task_count() const override { return set_->rows.size(); }
  const QuestionSource* questions() const override { return set_.get(); }
  Result<std::unique_ptr<Player>> NewPlayer(const std::string& name, const Options& options) const override {
    OptionReader reader(StrCat("player ", name, " of digits"), options);
    double noise = 1;
    if (name == "best") {
      noise = reader.Number("noise", 0, 0, 1);
    } else if (name != "random") {
      return UnknownName("player of digits", name, player_names());
    }
    QUERN_RETURN_IF_ERROR(reader.Finish());
    return std::unique_ptr<Player>(std::make_unique<DigitPlayer>(set_->end, noise));
  }
  std::vector<std::string> vocabulary() const override {
    return DistinctCharacters({"0123456789,:", set_->suffix, set_->end});
  }

 private:
  std::shared_ptr<const QuestionSet> set_;
};

}  // namespace

FactoryResult MakeDigitsFactory(const Options& options, const std::string&) {
  OptionReader reader("environment digits", options);
  const int max = reader.Integer("max", 9, 2, 99);
  const int n_max = reader.Integer("n_max", 9, 1, 99);
  const std::string split = reader.Choice("split", {"all", "train", "test"});
  const double test_share = reader.Number("test_share", 0.2, 0, 1);
  const int split_seed = reader.Integer("split_seed", 0, 0, 1 << 30);
  auto set = std::make_shared<QuestionSet>();
  set->suffix = reader.Text("suffix", "\n");
  set->end = reader.Text("end", "");
  if (reader.Choice("match", {"prefix", "exact"}) == "exact") set->grader = MakeGrader("exact").value();
  set->max_tokens = reader.Integer("max_tokens", 0, 0, 1 << 20);
  set->in_turn = reader.Choice("tasks", {"random", "all"}) == "all";
  QUERN_RETURN_IF_ERROR(reader.Finish());

  size_t longest = 0;
  uint64_t index = 0;
  for (int first = 0; first <= max; ++first) {
    for (int second = 0; second < max; ++second) {
      for (int count = 0; count <= n_max; ++count, ++index) {
        const bool test = Random(split_seed, index).Uniform() < test_share;
        if (split != "all" && test != (split == "test")) continue;
        const DigitTask task{first, second, max, count};
        const std::string answer = StrJoin(NextNumbers(task), ",");
        longest = std::max(longest, answer.size());
        const std::string prompt = PromptOf(task);
        set->rows.push_back({.id = prompt, .text = prompt, .answer = answer, .solution = answer, .grader = "exact"});
      }
    }
  }
  if (set->rows.empty())
    return InvalidArgument(StrCat("environment digits: no task is left in split ", split, "; change test_share"));
  if (set->max_tokens == 0) set->max_tokens = static_cast<int>(longest + std::max<size_t>(1, set->end.size()));
  return FactoryResult(std::make_shared<DigitsFactory>(std::move(set)));
}

}  // namespace quern
