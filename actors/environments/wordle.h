#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "actors/environment.h"
#include "actors/environments/wordle_rules.h"

namespace quern {

// Wordle as in LMRL-Gym (Abdulhai et al., 2023): the first text is "Wordle:\n"; an action spells a word, "s t a r e\n";
// the answer marks each letter, "<b> <y> <b> <g> <b>\n" (green: right place, yellow: elsewhere, black: not, or not that
// often). A guess that is not in the list or is misspelt is answered "<i>\n" and uses up a try. -1 for each wrong or
// invalid guess, 0 when solved; over when solved or after `tries` guesses: the return is in [-tries, 0].
// task_id: the hidden word.
//
// Options: words (file, one word a line; built-in list of 256), limit (only the first N words), tries (6), tasks
// (random, or all: seed s hides word s mod N).
//
// Players and their options (probabilities, applied per guess):
//   random       any word
//   consistent   any word that agrees with the marks seen so far. noise: any word instead; repeat: the last guess again
//                instead; keep (1): each past line of marks is honoured with this probability; memory (tries): only the
//                last so many lines are honoured; openers ("crane,plant"): the first guess is one of these
//   no_position  consistent with which letters occur and how often, blind to where. The same options
//   best         greedy: the word that splits the candidates best. noise

// The `best` player's decision tree over the list, built by three criteria: the expected number of candidates left, the
// entropy of the marks, the number of different marks. The tree with the best mean return over the list stays. A
// candidate wins a tie, and on the last try only candidates are guessed.
class WordlePlan {
 public:
  struct Node {
    int guess = 0;
    std::vector<std::pair<Marks, int>> next;  // marks, node; sorted by marks
  };
  static WordlePlan Make(const WordList& words, int tries);

  const Node& node(int index) const { return nodes_[index]; }  // 0: the first guess
  int Next(int index, Marks marks) const;                      // -1: these marks cannot occur here
  double mean_return() const { return mean_return_; }
  double success_rate() const { return success_rate_; }

  // The greedy guess when the lines seen leave these candidates (not empty).
  int Greedy(const WordList& words, const std::vector<int>& candidates, int tries_left) const;

 private:
  enum class Criterion { kExpectedSize, kEntropy, kParts };
  static double Cost(Criterion criterion, const std::vector<int>& sizes, double total);
  int Grow(const WordList& words, const std::vector<int>& candidates, int tries_left);  // -> node

  std::vector<Node> nodes_;
  Criterion criterion_ = Criterion::kExpectedSize;
  int tries_ = 0;
  double mean_return_ = 0;
  double success_rate_ = 0;
};

// What a factory and its players share.
struct WordleGame {
  std::shared_ptr<const WordList> words;
  int tries = 6;
  bool in_turn = false;
  // Made on first use, thread-safe. Lists over WordList::kTableWords words are refused before.
  const WordlePlan& plan() const;

 private:
  mutable std::once_flag plan_once_;
  mutable WordlePlan plan_;
};

std::vector<std::string> WordlePlayerNames();
Result<std::unique_ptr<Player>> NewWordlePlayer(std::shared_ptr<const WordleGame> game, const std::string& name,
                                                const Options& options);

}  // namespace quern
