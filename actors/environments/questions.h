#pragma once

#include <memory>
#include <string>
#include <vector>

#include "actors/environment.h"
#include "methods/graders/grader.h"

namespace quern {

// One question, one utterance, a reward in [0, 1] by comparing it with the known answer.
//
// `dataset`: the questions of a file (replay/questions/question_file.h says which formats). task_id: the question's own
// id, or one made of its text. A question that stands in the file twice, with the same answer, is asked as one.
// Options:
//   file         required
//   format       auto (by the first record; plain when it is none of the others), plain, gsm8k, svamp, aqua,
//   strategyqa,
//                arc, sums, game24
//   prompt_key, answer_key   other column names of plain
//   grader       how an utterance becomes a reward: a spec of methods/graders/grader.h, or prefix (see PrefixReward);
//                by default what fits the format, for plain exact
//   after        "": where the answer begins in the utterance, after the last occurrence of this text; an utterance
//                without it earns 0
//   suffix       "": follows the question; a separator, an instruction
//   split, test_share (0.2), split_seed (0)   all | train | test: two parts that share no question, decided per
//   question first (0), count (0: all)   only so many questions of that part, from this one on; a negative first counts
//   from the end max_tokens   64 end          "": an utterance ends at the end token or after max_tokens only tasks
//   random | all: seed s asks question s mod N
// Player `reference`: knows the answer key and says the whole solution. noise: another question's instead.
//
// `digits`: the digit-completion task of verl's end-to-end tests, generated here: "A,B:MAX,N" asks for the next N
// numbers of the sequence A, B, .. of constant difference, each modulo MAX ("1,2:6,5" -> "3,4,5,0,1"); A in 0..MAX, B
// in 0..MAX-1, N in 0..n_max. Options: max (9), n_max (9), split (all | train | test: two parts that share no task),
// test_share (0.2), split_seed (0), suffix ("\n"), match (prefix | exact), max_tokens (default: just enough for the
// longest answer and its end), end, tasks. Players: `best` (by the rule; noise: each number is any below MAX with this
// probability), `random` (N numbers below MAX).
struct QuestionSet : public QuestionSource {
  std::vector<Question> rows;
  std::string suffix;
  std::string after;
  std::string end;
  std::shared_ptr<const Grader> grader;  // null: PrefixReward
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

std::unique_ptr<Environment> NewQuestionEnvironment(std::shared_ptr<const QuestionSet> set);

}  // namespace quern
