#include "actors/environments/sentences.h"

#include <cmath>
#include <utility>

#include "actors/environments/factories.h"
#include "actors/environments/options.h"
#include "base/check.h"
#include "base/random.h"
#include "base/strings.h"

namespace quern {

namespace {

constexpr uint64_t kLanguageStream = 0x6c616e67;
constexpr char kStart[] = ":";
constexpr double kWorst = -10;  // a word's log-probability counts no lower

}  // namespace

Language::Language(int words, double spread, uint64_t seed) : words_(words) {
  Random random(seed, kLanguageStream);
  for (int from = 0; from <= words; ++from) {
    std::vector<double>& row = next_.emplace_back();
    double total = 0;
    for (int to = 0; to < words; ++to) {
      row.push_back(std::exp(spread * random.Normal()));
      total += row.back();
    }
    for (double& p : row) p /= total;
  }
}

std::string Language::Write(Random& random, int length) const {
  std::string text;
  int state = words_;
  for (int i = 0; i < length; ++i) {
    double left = random.Uniform();
    int word = 0;
    while (word + 1 < words_ && left >= Probability(state, word)) left -= Probability(state, word++);
    text += static_cast<char>('a' + word);
    state = word;
  }
  return text + "\n";
}

double Language::MeanLogProbability(const std::string& text) const {
  double sum = 0;
  int count = 0;
  int state = words_;
  for (const char c : text) {
    if (c == '\n') break;
    const int word = c - 'a';
    const bool known = word >= 0 && word < words_;
    sum += known ? std::max(kWorst, std::log(Probability(state, word))) : kWorst;
    state = known ? word : words_;
    ++count;
  }
  return count > 0 ? sum / count : kWorst;
}

namespace {

struct SentenceRules {
  Language language;
  int words = 0;
  int length = 0;
};

class SentenceEnvironment : public Environment {
 public:
  explicit SentenceEnvironment(std::shared_ptr<const SentenceRules> rules) : rules_(std::move(rules)) {}

  Observation Reset(uint64_t) override {
    open_ = true;
    return {kStart};
  }
  StepOutcome Step(const std::string& action) override {
    QUERN_CHECK(open_, "Step on an episode that is over or was never reset");
    open_ = false;
    const bool whole = action.size() == static_cast<size_t>(rules_->length) + 1 && action.back() == '\n';
    return {.text = "", .reward = rules_->language.MeanLogProbability(action), .done = true, .success = whole};
  }
  int max_action_tokens() const override { return rules_->length + 1; }
  int max_turns() const override { return 1; }
  double min_return() const override { return kWorst; }
  double max_return() const override { return 0; }
  std::string task_id() const override { return kStart; }

 private:
  std::shared_ptr<const SentenceRules> rules_;
  bool open_ = false;
};

class SentencePlayer : public Player {
 public:
  explicit SentencePlayer(std::shared_ptr<const SentenceRules> rules) : rules_(std::move(rules)) {}
  void Reset(uint64_t seed, const Observation&) override { random_ = Random(seed, kPlayerStream); }
  std::string Act() override { return rules_->language.Write(random_, rules_->length); }
  void Observe(const StepOutcome&) override {}

 private:
  std::shared_ptr<const SentenceRules> rules_;
  Random random_{0};
};

class SentenceFactory : public EnvironmentFactory {
 public:
  explicit SentenceFactory(std::shared_ptr<const SentenceRules> rules) : rules_(std::move(rules)) {}
  std::unique_ptr<Environment> NewEnvironment() const override { return std::make_unique<SentenceEnvironment>(rules_); }
  std::vector<std::string> player_names() const override { return {"writer"}; }
  size_t task_count() const override { return 1; }
  Result<std::unique_ptr<Player>> NewPlayer(const std::string& name, const Options& options) const override {
    if (name != "writer") return UnknownName("player of sentences", name, player_names());
    OptionReader reader(StrCat("player ", name, " of sentences"), options);
    QUERN_RETURN_IF_ERROR(reader.Finish());
    return std::unique_ptr<Player>(std::make_unique<SentencePlayer>(rules_));
  }
  std::vector<std::string> vocabulary() const override {
    std::string words = "\n";
    for (int i = 0; i < rules_->words; ++i) words += static_cast<char>('a' + i);
    return DistinctCharacters({kStart, words});
  }

 private:
  std::shared_ptr<const SentenceRules> rules_;
};

}  // namespace

FactoryResult MakeSentencesFactory(const Options& options, const std::string&) {
  OptionReader reader("environment sentences", options);
  const int words = reader.Integer("words", 16, 2, 26);
  const int length = reader.Integer("length", 12, 1, 1 << 16);
  const double spread = reader.Number("spread", 1.5, 0, 10);
  const int seed = reader.Integer("language", 0, 0, 1 << 30);
  QUERN_RETURN_IF_ERROR(reader.Finish());
  auto rules = std::make_shared<SentenceRules>(SentenceRules{Language(words, spread, seed), words, length});
  return FactoryResult(std::make_shared<SentenceFactory>(std::move(rules)));
}

}  // namespace quern
