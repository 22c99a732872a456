#include <string>

#include "model/chat_template/chat_template.h"

namespace quern {
namespace {

void AppendPlain(const Tokenizer& tokenizer, const ChatMessage& message, bool first, std::vector<int32_t>* ids) {
  const std::vector<int32_t> more = tokenizer.Encode(message.content, first);
  ids->insert(ids->end(), more.begin(), more.end());
  const std::optional<int32_t> eos = tokenizer.eos_id();
  if (message.role == "assistant" && eos && (ids->empty() || ids->back() != *eos)) ids->push_back(*eos);
}

}  // namespace

Result<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer, const ChatTemplate* chat_template,
                                        std::span<const ChatMessage> messages, bool add_generation_prompt) {
  if (chat_template != nullptr) {
    QUERN_ASSIGN_OR_RETURN(const std::string text, chat_template->Render(messages, add_generation_prompt));
    return tokenizer.Encode(text, false);
  }
  std::vector<int32_t> ids;
  for (const ChatMessage& message : messages) AppendPlain(tokenizer, message, &message == messages.data(), &ids);
  return ids;
}

}  // namespace quern
