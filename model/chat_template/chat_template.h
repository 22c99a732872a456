#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/chat_template/jinja.h"
#include "model/tokenizer/tokenizer.h"

namespace quern {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant", "tool"
  std::string content;
};

// The chat template of a Hugging Face directory: what turns a conversation into the text the model was trained on.
// Const methods are thread-safe.
class ChatTemplate {
 public:
  // From chat_template.jinja (and additional_chat_templates/NAME.jinja), else "chat_template" of tokenizer_config.json
  // (a text, or a list of named ones), else chat_template.json; special tokens from tokenizer_config.json and
  // special_tokens_map.json. NotFound where the directory has no template.
  static Result<std::shared_ptr<const ChatTemplate>> Load(const std::string& model_directory);
  // From a text; `special_tokens`: {"bos_token": "<s>", ...}.
  static Result<std::shared_ptr<const ChatTemplate>> Parse(std::string_view text, const std::string& origin,
                                                           const nlohmann::ordered_json& special_tokens);
  ~ChatTemplate();

  struct Options {
    bool add_generation_prompt = false;
    jinja::Dialect dialect = jinja::Dialect::kJinja2;
    std::optional<std::tm> now = std::nullopt;  // of strftime_now; by default the local time
  };
  // `messages`: a list of {"role", "content", ...}; `tools`: a list of JSON schemas, or null; `extra`: an object, or
  // null, of further variables, which go before those of the same name. Where the directory names a template
  // "tool_use", it is the one for conversations with tools.
  Result<std::string> Render(const nlohmann::ordered_json& messages, const nlohmann::ordered_json& tools,
                             const nlohmann::ordered_json& extra, const Options& options) const;
  Result<std::string> Render(std::span<const ChatMessage> messages, bool add_generation_prompt) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

// The ids of a conversation. Special tokens in the rendered text become their ids and nothing is put before it, since
// templates print the BOS themselves. Without a template: the contents one after the other, BOS as the tokenizer says,
// EOS behind what the assistant said.
Result<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer, const ChatTemplate* chat_template,
                                        std::span<const ChatMessage> messages, bool add_generation_prompt);

// The ids to append to the record of a conversation whose last turn the model wrote, for what came after it. `record`
// holds messages [0, known), the ids that the model saw and sampled; message known - 1 is the assistant's. Only what
// the template prints behind that message is tokenised, so that no sampled id is ever made anew from text; a closing
// token that the model sampled itself is not repeated. Limit: a template that prints earlier turns differently once
// more follow (drops their thoughts, moves the system message) would give another text from scratch; the record keeps
// what was seen.
Result<std::vector<int32_t>> EncodeNextTurn(const Tokenizer& tokenizer, const ChatTemplate* chat_template,
                                            std::span<const ChatMessage> messages, size_t known,
                                            std::span<const int32_t> record, bool add_generation_prompt);

}  // namespace quern
