#include "actors/environments/contains.h"

#include <algorithm>
#include <cctype>
#include <utility>

#include "actors/environments/factories.h"
#include "actors/environments/options.h"
#include "base/check.h"
#include "base/file.h"
#include "base/strings.h"

namespace quern {

namespace {

struct ContainsRules {
  std::string word;
  std::vector<std::string> prompts;
  int max_tokens = 64;
  bool ignore_case = true;
  bool in_turn = false;
};

class ContainsEnvironment : public Environment {
 public:
  explicit ContainsEnvironment(std::shared_ptr<const ContainsRules> rules) : rules_(std::move(rules)) {}

  Observation Reset(uint64_t seed) override {
    prompt_ = rules_->prompts[PickTask(seed, rules_->prompts.size(), rules_->in_turn)];
    open_ = true;
    return {prompt_};
  }
  StepOutcome Step(const std::string& action) override {
    QUERN_CHECK(open_, "Step on an episode that is over or was never reset");
    open_ = false;
    const bool found = ContainsWord(action, rules_->word, rules_->ignore_case);
    return {.text = "", .reward = found ? 1.0 : 0.0, .done = true, .success = found};
  }
  std::string action_end() const override { return ""; }
  int max_action_tokens() const override { return rules_->max_tokens; }
  int max_turns() const override { return 1; }
  double min_return() const override { return 0; }
  double max_return() const override { return 1; }
  std::string task_id() const override { return prompt_; }

 private:
  std::shared_ptr<const ContainsRules> rules_;
  std::string prompt_;
  bool open_ = false;
};

class ContainsFactory : public EnvironmentFactory {
 public:
  explicit ContainsFactory(std::shared_ptr<const ContainsRules> rules) : rules_(std::move(rules)) {}
  std::unique_ptr<Environment> NewEnvironment() const override { return std::make_unique<ContainsEnvironment>(rules_); }
  std::vector<std::string> player_names() const override { return {}; }
  size_t task_count() const override { return rules_->prompts.size(); }
  Result<std::unique_ptr<Player>> NewPlayer(const std::string& name, const Options&) const override {
    return UnknownName("player of contains", name, player_names());
  }
  std::vector<std::string> vocabulary() const override {
    std::vector<std::string> texts = rules_->prompts;
    texts.push_back(rules_->word);
    for (char c = ' '; c <= '~'; ++c) texts.push_back(std::string(1, c));
    return DistinctCharacters(texts);
  }

 private:
  std::shared_ptr<const ContainsRules> rules_;
};

bool InWord(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || static_cast<unsigned char>(c) >= 0x80;
}

bool SameLetter(char a, char b, bool ignore_case) {
  if (!ignore_case) return a == b;
  return std::tolower(static_cast<unsigned char>(a)) == std::tolower(static_cast<unsigned char>(b));
}

}  // namespace

bool ContainsWord(const std::string& text, const std::string& word, bool ignore_case) {
  auto at = text.begin();
  while (true) {
    at = std::search(at, text.end(), word.begin(), word.end(),
                     [&](char a, char b) { return SameLetter(a, b, ignore_case); });
    if (at == text.end()) return false;
    const auto end = at + static_cast<std::ptrdiff_t>(word.size());
    if ((at == text.begin() || !InWord(*(at - 1))) && (end == text.end() || !InWord(*end))) return true;
    ++at;
  }
}

FactoryResult MakeContainsFactory(const Options& options, const std::string& base_dir) {
  OptionReader reader("environment contains", options);
  auto rules = std::make_shared<ContainsRules>();
  rules->word = reader.Text("word", "");
  const std::string prompt = reader.Text("prompt", "");
  const std::string file = reader.Text("prompts", "");
  rules->max_tokens = reader.Integer("max_tokens", 64, 1, 1 << 20);
  rules->ignore_case = reader.Flag("ignore_case", true);
  rules->in_turn = reader.Choice("tasks", {"random", "all"}) == "all";
  QUERN_RETURN_IF_ERROR(reader.Finish());
  if (rules->word.empty()) return InvalidArgument("environment contains: option word is missing: the word to look for");
  if (!prompt.empty() && !file.empty()) {
    return InvalidArgument("environment contains: both prompt and prompts are set; remove one");
  }
  if (file.empty()) {
    rules->prompts = {prompt.empty() ? "Once upon a time" : prompt};
  } else {
    const std::string path = ResolvePath(base_dir, file);
    QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    for (const std::string& line : StrSplit(text, '\n')) {
      if (!Trim(line).empty()) rules->prompts.push_back(line);
    }
    if (rules->prompts.empty()) return InvalidArgument(StrCat(path, ": no prompts in it; give one a line"));
  }
  return FactoryResult(std::make_shared<ContainsFactory>(std::move(rules)));
}

}  // namespace quern
