#pragma once

#include <memory>
#include <string>
#include <vector>

#include "actors/environment.h"

namespace quern {

// One question, one utterance, a reward in [0, 1] by comparing it with the reference.
//
// `dataset`: rows of a JSONL file, {"prompt", "answer"} or {"question", "answer"}; a number as answer is taken as its
// text. What follows "####" in an answer (GSM8K) is its final answer, which alone is compared. task_id: the prompt.
// Options: file (required), prompt_key and answer_key (other column names), suffix ("": follows the prompt; a
// separator, an instruction), match (below), after ("": where the answer begins in the utterance, after the last
// occurrence of this text; an utterance without it earns 0), max_tokens (64), end ("": an utterance ends at the end
// token or after max_tokens only), tasks (random | all: seed s asks row s mod N).
//   exact   1 if equal without white space at the ends
//   number  1 if the last number in the utterance equals the reference's ("1,200" is 1200, "72." is 72)
//   prefix  see PrefixReward
// Player `reference`: knows the answer key and says the row's whole answer. noise: another row's answer instead.
//
// `digits`: the digit-completion task of verl's end-to-end tests, generated here: "A,B:MAX,N" asks for the next N
// numbers of the sequence A, B, .. of constant difference, each modulo MAX ("1,2:6,5" -> "3,4,5,0,1"); A in 0..MAX, B
// in 0..MAX-1, N in 0..n_max. Options: max (9), n_max (9), split (all | train | test: two parts that share no task),
// test_share (0.2), split_seed (0), suffix ("\n"), match (prefix | exact), max_tokens (default: just enough for the
// longest answer and its end), end, tasks. Players: `best` (by the rule; noise: each number is any below MAX with this
// probability), `random` (N numbers below MAX).
struct QuestionSet : public QuestionSource {
  enum class Match { kExact, kNumber, kPrefix };
  std::vector<Question> rows;
  std::string suffix;
  std::string after;
  std::string end;
  Match match = Match::kExact;
  int max_tokens = 64;
  bool in_turn = false;

  size_t size() const override { return rows.size(); }
  const Question& At(size_t i) const override { return rows[i]; }
  std::string Prompt(size_t i) const override { return rows[i].text + suffix; }
  double Reward(const Question& question, const std::string& utterance) const;
};

// verl's dense reward, summed: an answer of n characters has n + 1 units of 1/(n + 1). Each leading character of the
// utterance that equals the answer's earns one, up to the first that does not or the answer's end. The end token, when
// it was written (`ended`), earns one if the last character before it did: so stopping after k > 0 right characters
// earns k + 1 units, and going on after the whole answer loses the last unit. With an empty answer, ending at once
// earns 1 and anything else 0.
double PrefixReward(const std::string& utterance, const std::string& answer, bool ended);

// The last number in the text, without thousands separators: "it is 1,200.50." -> "1200.50"; "" when there is none.
std::string LastNumber(const std::string& text);

Result<std::vector<Question>> ReadQuestions(const std::string& text, const std::string& source,
                                            const std::string& prompt_key, const std::string& answer_key);

std::unique_ptr<Environment> NewQuestionEnvironment(std::shared_ptr<const QuestionSet> set);

}  // namespace quern
