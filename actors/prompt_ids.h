#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "actors/rollout.h"

namespace quern {

// The one way from a question to what the model reads, and from an answer to what it is to write: play, evaluation,
// reasoning chains and the training text of their paths are made here, so that a model is always asked in the same way.
std::vector<int32_t> PromptIds(const Tokenizer& tokenizer, const RolloutOptions& options, const std::string& text);
// `closed`: the text ends with the environment's closing text; otherwise the end token closes it.
std::vector<int32_t> UtteranceIds(const Tokenizer& tokenizer, const RolloutOptions& options, const std::string& text,
                                  bool closed);

}  // namespace quern
