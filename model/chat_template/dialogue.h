#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/chat_template/chat_template.h"

namespace quern {

// The one way from what is said to what a model reads and learns: play, evaluation, reasoning chains and imported
// conversations are all made of these pieces, so that a model is always asked as it was taught. With a chat template
// the pieces together are what it prints; without one they are the texts one after the other, and an utterance is
// closed by the environment's closing text or the end token. Thread-safe; the tokenizer must outlive it.
class Dialogue {
 public:
  // `end_ids`: tokens that end generation. A template adds the one that closes its assistant's turns.
  static Result<Dialogue> Make(const Tokenizer& tokenizer, std::shared_ptr<const ChatTemplate> chat_template,
                               std::vector<int32_t> end_ids);

  const std::vector<int32_t>& end_ids() const { return end_ids_; }
  // What comes before the assistant's first turn.
  Result<std::vector<int32_t>> Opening(std::span<const ChatMessage> messages) const;
  Result<std::vector<int32_t>> Opening(const std::string& user) const;
  // What the assistant is to have said. `closed`: the text ends with the environment's closing text.
  std::vector<int32_t> Utterance(const std::string& text, bool closed) const;
  // What comes between two turns of the assistant: messages from `known` on; message known - 1 is the assistant's and
  // `record` holds the ids up to it.
  Result<std::vector<int32_t>> Next(std::span<const ChatMessage> messages, size_t known,
                                    std::span<const int32_t> record) const;

 private:
  Dialogue() = default;
  const Tokenizer* tokenizer_ = nullptr;
  std::shared_ptr<const ChatTemplate> template_;
  std::vector<int32_t> end_ids_;
  int32_t closing_ = -1;  // -1: none
};

}  // namespace quern
