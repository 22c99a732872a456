#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/decoder.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/post_processor.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/tokenizer.h"

namespace quern {

struct Tokenizer::Impl {
  std::unique_ptr<TextNormalizer> normalizer;   // may be null
  std::unique_ptr<PreTokenizer> pre_tokenizer;  // may be null
  std::unique_ptr<Bpe> bpe;                     // null: a character tokenizer
  AddedTokens added;
  PostProcessor post_processor;
  Decoder decoder = Decoder::Concatenate();

  struct Token {
    std::string piece;
    bool special = false;
    bool exists = false;
  };
  std::vector<Token> tokens;  // by id, added tokens included
  Vocabulary pieces;          // of all tokens; of a character tokenizer the model itself
  int32_t bos = -1, eos = -1, unk = -1, pad = -1;

  void EncodePart(std::string_view text, bool at_start, std::vector<int32_t>* ids) const;
  void EncodeWords(std::string_view text, bool at_start, std::vector<int32_t>* ids) const;
  void EncodeCharacters(std::string_view text, std::vector<int32_t>* ids) const;
  const Token* Find(int32_t id) const {
    return id >= 0 && id < static_cast<int32_t>(tokens.size()) && tokens[id].exists ? &tokens[id] : nullptr;
  }
  Status SetToken(std::string_view piece, int32_t id, bool special);
  Status ReadConfig(std::string_view config, const std::string& origin);
  Status ReadTokenizerJson(const Json& json, const std::string& origin);
  Status ReadCharacters(const Json& config, const std::string& origin);
};

}  // namespace quern
