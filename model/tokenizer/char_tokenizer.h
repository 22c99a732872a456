#pragma once

#include <string>
#include <vector>

#include "base/status.h"

namespace quern {

// A tokenizer for small self-made models: its vocabulary is `specials` (ids from 0) and then `pieces`, nothing else.
// Text is cut leftmost-longest into pieces; what no piece covers becomes "<unk>" where `specials` has it, else it is
// dropped. Pieces may be any text ("a", " a", "<b>", "\n", "Wordle:"). Gives a valid Hugging Face tokenizer.json:
// single characters are a BPE vocabulary without merges, longer pieces are added tokens.
Result<std::string> MakeTokenizerJson(const std::vector<std::string>& pieces, const std::vector<std::string>& specials);

struct SpecialTokenNames {
  std::string bos, eos, unk, pad;  // empty: none
};
// The tokenizer_config.json beside it; `chat_template` empty: none.
std::string MakeTokenizerConfigJson(const SpecialTokenNames& names, const std::string& chat_template = {});

// Writes tokenizer.json and tokenizer_config.json into `dir`.
Status WriteTokenizer(const std::string& dir, const std::vector<std::string>& pieces,
                      const std::vector<std::string>& specials, const SpecialTokenNames& names,
                      const std::string& chat_template = {});

}  // namespace quern
