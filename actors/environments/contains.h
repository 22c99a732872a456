#pragma once

#include <string>

namespace quern {

// `contains`: a text to go on with for one utterance of max_tokens tokens; reward 1 if what was written (not the
// prompt) has a given word, else 0. A mechanical reward for fine-tuning a real model. task_id: the prompt. Options:
// word (required), prompt ("Once upon a time") or prompts (a file, one prompt a line), max_tokens (64), ignore_case
// (true), tasks (random | all: seed s takes prompt s mod N). An utterance ends at the end token or after max_tokens
// only. There are no players: the data for it is what a model writes, or the user's own.

// Whether `word` stands in `text` with no ASCII letter, digit or byte of a non-ASCII character right before or after
// it.
bool ContainsWord(const std::string& text, const std::string& word, bool ignore_case);

}  // namespace quern
