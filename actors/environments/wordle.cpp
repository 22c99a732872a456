#include "actors/environments/wordle.h"

#include <utility>

#include "actors/environments/factories.h"
#include "actors/environments/options.h"
#include "base/check.h"
#include "base/file.h"
#include "base/strings.h"

namespace quern {

namespace {

class Wordle : public Environment {
 public:
  explicit Wordle(std::shared_ptr<const WordleGame> game) : game_(std::move(game)) {}

  Observation Reset(uint64_t seed) override {
    hidden_ = static_cast<int>(PickTask(seed, game_->words->size(), game_->in_turn));
    used_ = 0;
    return {"Wordle:\n"};
  }

  StepOutcome Step(const std::string& action) override {
    QUERN_CHECK(hidden_ >= 0 && used_ < game_->tries, "Step on an episode that is over or was never reset");
    const std::optional<std::string> word = ParseSpelledWord(action);
    const int guess = word ? game_->words->Find(*word) : -1;
    StepOutcome outcome;
    outcome.text = guess < 0 ? "<i>\n" : MarksText(game_->words->Mark(guess, hidden_), game_->words->length());
    outcome.success = guess == hidden_;
    outcome.reward = outcome.success ? 0 : -1;
    used_ = outcome.success ? game_->tries : used_ + 1;
    outcome.done = used_ == game_->tries;
    return outcome;
  }

  // Letters, the spaces between them and the newline, should each be a token of its own.
  int max_action_tokens() const override { return 2 * game_->words->length(); }
  int max_turns() const override { return game_->tries; }
  double min_return() const override { return -game_->tries; }
  double max_return() const override { return 0; }
  std::string task_id() const override { return hidden_ < 0 ? "" : game_->words->word(hidden_); }

 private:
  std::shared_ptr<const WordleGame> game_;
  int hidden_ = -1;
  int used_ = 0;
};

class WordleFactory : public EnvironmentFactory {
 public:
  explicit WordleFactory(std::shared_ptr<const WordleGame> game) : game_(std::move(game)) {}

  std::unique_ptr<Environment> NewEnvironment() const override { return std::make_unique<Wordle>(game_); }
  Result<std::unique_ptr<Player>> NewPlayer(const std::string& name, const Options& options) const override {
    return NewWordlePlayer(game_, name, options);
  }
  std::vector<std::string> player_names() const override { return WordlePlayerNames(); }
  size_t task_count() const override { return game_->words->size(); }
  std::vector<std::string> vocabulary() const override {
    std::vector<std::string> pieces = {"Wordle:", "\n"};
    for (char letter = 'a'; letter <= 'z'; ++letter) pieces.push_back(std::string(1, letter));
    for (char letter = 'a'; letter <= 'z'; ++letter) pieces.push_back(std::string(" ") + letter);
    for (const char* mark : {"<b>", "<y>", "<g>", " <b>", " <y>", " <g>", "<i>"}) pieces.push_back(mark);
    return pieces;
  }

 private:
  std::shared_ptr<const WordleGame> game_;
};

}  // namespace

const WordlePlan& WordleGame::plan() const {
  std::call_once(plan_once_, [this] { plan_ = WordlePlan::Make(*words, tries); });
  return plan_;
}

FactoryResult MakeWordleFactory(const Options& options, const std::string& base_dir) {
  OptionReader reader("environment wordle", options);
  const std::string file = reader.Text("words", "");
  const int limit = reader.Integer("limit", 0, 0, 1000000);
  auto game = std::make_shared<WordleGame>();
  game->tries = reader.Integer("tries", 6, 1, 100);
  game->in_turn = reader.Choice("tasks", {"random", "all"}) == "all";
  QUERN_RETURN_IF_ERROR(reader.Finish());
  if (file.empty()) {
    QUERN_ASSIGN_OR_RETURN(game->words, WordList::Parse(WordList::BuiltIn(), "built-in words", limit));
  } else {
    const std::string path = ResolvePath(base_dir, file);
    QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    QUERN_ASSIGN_OR_RETURN(game->words, WordList::Parse(text, path, limit));
  }
  return FactoryResult(std::make_shared<WordleFactory>(std::move(game)));
}

}  // namespace quern
