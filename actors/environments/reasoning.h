#pragma once

#include <string>
#include <vector>

#include "actors/environment.h"

namespace quern {

// `reasoning`: questions of the templated language (reasoning_language.h), asked as "QUESTION\nsolve:"; the reward is 1
// where the number after the last "####" is the answer.
// Options: families ("sum,max,xor,count": a list), split (train | test | all: two parts that share no question; the
// corpus is always of the train part), questions (1000: how many distinct ones there are, drawn by `draw` (0)),
// max_tokens (160), tasks (random | all), guidelines (a file, one a line, each with the name of a strategy in it;
// needed by prompts: corpus and by the tokenizer), prompts:
//   direct   the questions
//   corpus   what a model must have read to follow a reasoning chain: prompts of all its stages. One of
//              QUESTION solve:                    a path, by any strategy (direct_share, 0.4)
//              QUESTION GUIDELINE adapt:          what the guideline means for this family
//              QUESTION ADAPTED plan:             a numbered plan
//              QUESTION PLAN solve:               a path that follows it
//            each part on lines of its own. Families are drawn evenly.
// Player `author` answers each of these prompts. slip: a step's result is wrong with this probability (0.1); guess:
// share of the direct answers that are the answer alone, always right, without steps (0.5).

// The corpus' prompts, as the templates of a reasoning chain must spell them too.
std::string DirectPrompt(const std::string& question);
std::string StagePrompt(const std::string& question, const std::string& given, const std::string& stage);

}  // namespace quern
