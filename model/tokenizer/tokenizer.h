#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace quern {

// A Hugging Face tokenizer.json with a BPE model (byte-level as of GPT-2, Llama 3, Qwen, SmolLM; or with byte fallback
// as of Llama 2, Mistral), or a character tokenizer (tokenizer_config.json with `char_ords`). Gives the ids of the
// Hugging Face `tokenizers` library; truncation and padding settings of the file are not applied. Const methods are
// thread-safe.
class Tokenizer {
 public:
  // `path`: a model directory or a tokenizer.json. Components Quern does not have are refused by name.
  static Result<std::shared_ptr<const Tokenizer>> Load(const std::string& path);
  // From texts; `config` is tokenizer_config.json or empty.
  static Result<std::shared_ptr<const Tokenizer>> Parse(std::string_view tokenizer_json, std::string_view config,
                                                        const std::string& origin);
  ~Tokenizer();

  // add_special: run the post-processor (BOS and the like). Special tokens written out in `text` become their ids
  // either way. Bytes that are not UTF-8 count as U+FFFD.
  std::vector<int32_t> Encode(std::string_view text, bool add_special) const;
  // Unknown ids are left out; incomplete UTF-8 becomes U+FFFD.
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const;

  // The piece as the vocabulary spells it ("Ġthe", "▁the", "<0x0A>"); empty for ids without one.
  std::string_view TokenText(int32_t id) const;
  std::optional<int32_t> TokenId(std::string_view piece) const;
  bool IsSpecial(int32_t id) const;
  int32_t vocab_size() const;  // largest id + 1, added tokens included

  // As tokenizer_config.json says; nullopt where it is silent or the piece is unknown.
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> unk_id() const;
  std::optional<int32_t> pad_id() const;

 private:
  friend class StreamDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

// Turns ids into text as they come: holds back bytes until they are whole characters. The pieces together are
// Decode(all ids) (for byte-fallback tokenizers: as far as the ids spell valid UTF-8). One stream, one thread.
class StreamDecoder {
 public:
  StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special);
  std::string Add(int32_t id);
  std::string Finish();  // what was held back; the decoder is then as new

 private:
  std::string AddBytes(int32_t id);
  std::string AddWindow(int32_t id);

  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_;
  std::string bytes_;            // byte-level: an unfinished character
  std::vector<int32_t> window_;  // others: ids whose text is needed as context or not yet given out
  size_t given_out_ = 0;         // leading ids of window_ whose text was given out
};

}  // namespace quern
