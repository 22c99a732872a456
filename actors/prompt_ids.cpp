#include "actors/prompt_ids.h"

namespace quern {

std::vector<int32_t> PromptIds(const Tokenizer& tokenizer, const RolloutOptions& /*options*/, const std::string& text) {
  return tokenizer.Encode(text, true);
}

std::vector<int32_t> UtteranceIds(const Tokenizer& tokenizer, const RolloutOptions& options, const std::string& text,
                                  bool closed) {
  std::vector<int32_t> ids = tokenizer.Encode(text, false);
  if (!closed && !options.end_ids.empty()) ids.push_back(options.end_ids[0]);
  return ids;
}

}  // namespace quern
