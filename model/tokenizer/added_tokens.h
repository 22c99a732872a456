#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "model/hf/json_reader.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/vocabulary.h"

namespace quern {

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool special = false;
  bool single_word = false;  // only between non-word characters
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;
  bool normalized = false;  // looked for in the normalised text, not in the raw one
};

// A stretch of text that is one added token (id >= 0) or still to be encoded (id < 0).
struct TextPart {
  size_t begin = 0;
  size_t end = 0;
  int32_t id = -1;
};

// Tokens that are cut out of the text before the model sees it, leftmost and then longest first. Thread-safe.
class AddedTokens {
 public:
  // Ids follow the rule of the reference: a content that the vocabulary has keeps that id, others count on from the
  // largest. `normalizer` may be null.
  static Result<AddedTokens> FromJson(const Json& list, const Vocabulary& vocabulary, const TextNormalizer* normalizer,
                                      const std::string& where);

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  bool has_normalized() const { return !normalized_.empty(); }
  // Covers `text` without gaps (but where tokens strip overlapping white space).
  void Split(std::string_view text, bool normalized, std::vector<TextPart>* parts) const;

 private:
  // All contents of one kind, by bytes. Node 0 is the root.
  struct Trie {
    std::array<bool, 256> starts{};
    std::unordered_map<uint64_t, uint32_t> children;  // node << 8 | byte
    std::vector<int32_t> token{-1};                   // index into tokens_, by node

    void Add(std::string_view content, int32_t index);
    bool empty() const { return token.size() == 1; }
    // The longest content that `text` has at `pos`; -1: none.
    int32_t Longest(std::string_view text, size_t pos, size_t* end) const;
  };

  std::vector<AddedToken> tokens_;
  Trie raw_, normalized_;
};

}  // namespace quern
