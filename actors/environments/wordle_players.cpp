#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "actors/environments/options.h"
#include "actors/environments/wordle.h"
#include "base/random.h"
#include "base/strings.h"

namespace quern {

namespace {

struct Line {
  int guess;
  Marks marks;
};

// How a ConsistentPlayer chooses; the fields are options of wordle.h.
struct Skill {
  double noise = 0;
  double repeat = 0;
  double keep = 1;
  int memory = 0;
  bool positions = true;
  std::vector<int> openers;
};

// Whether `word` has each letter of the guess as often as the marks say, wherever it stands.
bool LettersAgree(const std::string& guess, Marks marks, const std::string& word) {
  std::array<int, 26> in_guess{}, found{}, in_word{};
  for (const char letter : guess) {
    ++in_guess[letter - 'a'];
    if (marks % 3 != 0) ++found[letter - 'a'];
    marks /= 3;
  }
  for (const char letter : word) ++in_word[letter - 'a'];
  return std::all_of(guess.begin(), guess.end(), [&](char letter) {
    return std::min(in_guess[letter - 'a'], in_word[letter - 'a']) == found[letter - 'a'];
  });
}

class WordlePlayer : public Player {
 public:
  explicit WordlePlayer(std::shared_ptr<const WordleGame> game) : game_(std::move(game)) {}

  void Reset(uint64_t seed, const Observation&) override {
    random_ = Random(seed, kPlayerStream);
    lines_.clear();
    guess_ = -1;
    Begin();
  }
  std::string Act() override {
    guess_ = Choose();
    return SpelledWord(game_->words->word(guess_));
  }
  void Observe(const StepOutcome& outcome) override {
    if (const auto marks = ParseMarks(outcome.text, game_->words->length())) {
      lines_.push_back({guess_, *marks});
      Learn(lines_.back());
    }
  }

 protected:
  virtual void Begin() {}
  virtual int Choose() = 0;
  virtual void Learn(const Line&) {}
  int AnyWord() { return static_cast<int>(random_.Below(game_->words->size())); }

  std::shared_ptr<const WordleGame> game_;
  Random random_{0};
  std::vector<Line> lines_;
  int guess_ = -1;
};

class ConsistentPlayer : public WordlePlayer {
 public:
  ConsistentPlayer(std::shared_ptr<const WordleGame> game, Skill skill)
      : WordlePlayer(std::move(game)), skill_(std::move(skill)) {}

 private:
  int Choose() override {
    if (guess_ < 0 && !skill_.openers.empty()) return skill_.openers[random_.Below(skill_.openers.size())];
    const double u = random_.Uniform();
    if (u < skill_.noise) return AnyWord();
    if (u < skill_.noise + skill_.repeat && guess_ >= 0) return guess_;
    std::vector<Line> honoured;
    const size_t begin = lines_.size() - std::min<size_t>(lines_.size(), skill_.memory);
    for (size_t i = begin; i < lines_.size(); ++i) {
      if (skill_.keep >= 1 || random_.Uniform() < skill_.keep) honoured.push_back(lines_[i]);
    }
    const WordList& words = *game_->words;
    std::vector<int> candidates;
    for (int word = 0; word < words.size(); ++word) {
      const bool agrees = std::all_of(honoured.begin(), honoured.end(), [&](const Line& line) {
        return skill_.positions ? words.Mark(line.guess, word) == line.marks
                                : LettersAgree(words.word(line.guess), line.marks, words.word(word));
      });
      if (agrees) candidates.push_back(word);
    }
    return candidates.empty() ? AnyWord() : candidates[random_.Below(candidates.size())];
  }

  Skill skill_;
};

// Walks the plan; after a guess that was not the plan's it is greedy over what its lines leave.
class BestPlayer : public WordlePlayer {
 public:
  BestPlayer(std::shared_ptr<const WordleGame> game, double noise) : WordlePlayer(std::move(game)), noise_(noise) {}

 private:
  void Begin() override { node_ = 0; }
  int Choose() override {
    if (random_.Uniform() < noise_) {
      node_ = -1;
      return AnyWord();
    }
    if (node_ >= 0) return game_->plan().node(node_).guess;
    std::vector<int> candidates;
    for (int word = 0; word < game_->words->size(); ++word) {
      if (std::all_of(lines_.begin(), lines_.end(),
                      [&](const Line& line) { return game_->words->Mark(line.guess, word) == line.marks; })) {
        candidates.push_back(word);
      }
    }
    const int left = game_->tries - static_cast<int>(lines_.size());
    return candidates.empty() ? AnyWord() : game_->plan().Greedy(*game_->words, candidates, left);
  }
  void Learn(const Line& line) override {
    if (node_ >= 0) node_ = game_->plan().Next(node_, line.marks);
  }

  double noise_;
  int node_ = 0;
};

}  // namespace

// Lower is better; what a split of the candidates into parts of these sizes is worth.
double WordlePlan::Cost(Criterion criterion, const std::vector<int>& sizes, double total) {
  double cost = 0;
  for (const int size : sizes) {
    switch (criterion) {
      case Criterion::kExpectedSize: cost += size * static_cast<double>(size) / total; break;
      case Criterion::kEntropy: cost += size * std::log(static_cast<double>(size)) / total; break;
      case Criterion::kParts: cost -= 1; break;
    }
  }
  return cost;
}

int WordlePlan::Greedy(const WordList& words, const std::vector<int>& candidates, int tries_left) const {
  if (candidates.size() <= 2 || tries_left <= 1) return candidates[0];
  std::vector<char> is_candidate(words.size(), 0);
  for (const int word : candidates) is_candidate[word] = 1;
  int powers = 1;
  for (int i = 0; i < words.length(); ++i) powers *= 3;
  std::vector<int> count(powers, 0), sizes;
  std::vector<Marks> seen;
  double best_cost = std::numeric_limits<double>::infinity();
  int best = candidates[0];
  for (int guess = 0; guess < words.size(); ++guess) {
    seen.clear();
    sizes.clear();
    for (const int hidden : candidates) {
      const Marks marks = words.Mark(guess, hidden);
      if (count[marks]++ == 0) seen.push_back(marks);
    }
    std::sort(seen.begin(), seen.end());  // one order of summation for equal splits
    for (const Marks marks : seen) {
      sizes.push_back(count[marks]);
      count[marks] = 0;
    }
    std::sort(sizes.begin(), sizes.end());
    const double cost = Cost(criterion_, sizes, static_cast<double>(candidates.size()));
    if (cost < best_cost - 1e-9 || (cost < best_cost + 1e-9 && is_candidate[guess] && !is_candidate[best])) {
      best_cost = std::min(cost, best_cost);
      best = guess;
    }
  }
  return best;
}

int WordlePlan::Grow(const WordList& words, const std::vector<int>& candidates, int tries_left) {
  const int index = static_cast<int>(nodes_.size());
  nodes_.emplace_back();
  const int guess = Greedy(words, candidates, tries_left);
  nodes_[index].guess = guess;
  std::vector<std::pair<Marks, int>> marked;
  for (const int hidden : candidates) {
    if (hidden == guess) {
      mean_return_ -= tries_ - tries_left;
      success_rate_ += 1;
    } else if (tries_left == 1) {
      mean_return_ -= tries_;
    } else {
      marked.emplace_back(words.Mark(guess, hidden), hidden);
    }
  }
  std::sort(marked.begin(), marked.end());
  for (size_t begin = 0; begin < marked.size();) {
    std::vector<int> part;
    const Marks marks = marked[begin].first;
    while (begin < marked.size() && marked[begin].first == marks) part.push_back(marked[begin++].second);
    const int child = Grow(words, part, tries_left - 1);
    nodes_[index].next.emplace_back(marks, child);
  }
  return index;
}

WordlePlan WordlePlan::Make(const WordList& words, int tries) {
  std::vector<int> all(words.size());
  std::iota(all.begin(), all.end(), 0);
  WordlePlan best;
  for (const Criterion criterion : {Criterion::kExpectedSize, Criterion::kEntropy, Criterion::kParts}) {
    WordlePlan plan;
    plan.criterion_ = criterion;
    plan.tries_ = tries;
    plan.Grow(words, all, tries);
    plan.mean_return_ /= words.size();
    plan.success_rate_ /= words.size();
    if (best.nodes_.empty() || plan.mean_return_ > best.mean_return_) best = std::move(plan);
  }
  return best;
}

int WordlePlan::Next(int index, Marks marks) const {
  const auto& next = nodes_[index].next;
  const auto it = std::lower_bound(next.begin(), next.end(), std::make_pair(marks, 0));
  return it != next.end() && it->first == marks ? it->second : -1;
}

std::vector<std::string> WordlePlayerNames() { return {"random", "consistent", "no_position", "best"}; }

Result<std::unique_ptr<Player>> NewWordlePlayer(std::shared_ptr<const WordleGame> game, const std::string& name,
                                                const Options& options) {
  OptionReader reader(StrCat("player ", name, " of wordle"), options);
  if (name == "best") {
    const double noise = reader.Number("noise", 0, 0, 1);
    QUERN_RETURN_IF_ERROR(reader.Finish());
    if (game->words->size() > WordList::kTableWords) {
      return InvalidArgument(StrCat("player best of wordle plans for lists of at most ", WordList::kTableWords,
                                    " words, this one has ", game->words->size(),
                                    "; set limit, or use player consistent"));
    }
    return std::unique_ptr<Player>(std::make_unique<BestPlayer>(std::move(game), noise));
  }
  Skill skill;
  skill.memory = game->tries;
  if (name == "random") {
    skill.noise = 1;
  } else if (name == "consistent" || name == "no_position") {
    skill.noise = reader.Number("noise", 0, 0, 1);
    skill.repeat = reader.Number("repeat", 0, 0, 1);
    skill.keep = reader.Number("keep", 1, 0, 1);
    skill.memory = reader.Integer("memory", game->tries, 0, 100);
    skill.positions = name == "consistent";
    const std::string openers = reader.Text("openers", "");
    for (const std::string& word : openers.empty() ? std::vector<std::string>{} : StrSplit(openers, ',')) {
      skill.openers.push_back(game->words->Find(Trim(word)));
      if (skill.openers.back() < 0) {
        return InvalidArgument(
            StrCat("player ", name, " of wordle: openers: \"", Trim(word), "\" is not in the word list"));
      }
    }
  } else {
    return UnknownName("player of wordle", name, WordlePlayerNames());
  }
  QUERN_RETURN_IF_ERROR(reader.Finish());
  if (skill.noise + skill.repeat > 1) {
    return InvalidArgument(StrCat("player ", name, " of wordle: noise + repeat is over 1"));
  }
  return std::unique_ptr<Player>(std::make_unique<ConsistentPlayer>(std::move(game), skill));
}

}  // namespace quern
