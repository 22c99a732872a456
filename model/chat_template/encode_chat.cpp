#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/strings.h"
#include "model/chat_template/chat_template.h"

namespace quern {
namespace {

void CloseTurn(const Tokenizer& tokenizer, std::optional<int32_t> last, std::vector<int32_t>* ids) {
  const std::optional<int32_t> eos = tokenizer.eos_id();
  if (eos && last != eos) ids->push_back(*eos);
}

void AppendPlain(const Tokenizer& tokenizer, const ChatMessage& message, bool first, std::vector<int32_t>* ids) {
  const std::vector<int32_t> more = tokenizer.Encode(message.content, first);
  ids->insert(ids->end(), more.begin(), more.end());
  if (message.role == "assistant") CloseTurn(tokenizer, ids->empty() ? std::nullopt : std::optional(ids->back()), ids);
}

// A word that no message contains.
std::string Placeholder(std::span<const ChatMessage> messages) {
  std::string word = "QuernTurn";
  const auto contains = [&](const ChatMessage& message) { return message.content.find(word) != std::string::npos; };
  while (std::any_of(messages.begin(), messages.end(), contains)) word += "Q";
  return word;
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

Result<std::vector<int32_t>> EncodeNextTurn(const Tokenizer& tokenizer, const ChatTemplate* chat_template,
                                            std::span<const ChatMessage> messages, size_t known,
                                            std::span<const int32_t> record, bool add_generation_prompt) {
  QUERN_CHECK(known >= 1 && known <= messages.size() && messages[known - 1].role == "assistant",
              "the record must end with a turn of the assistant");
  std::vector<int32_t> ids;
  if (chat_template == nullptr) {
    CloseTurn(tokenizer, record.empty() ? std::nullopt : std::optional(record.back()), &ids);
    for (const ChatMessage& message : messages.subspan(known)) AppendPlain(tokenizer, message, false, &ids);
    return ids;
  }
  // What the model wrote is not rendered: a placeholder shows where the text behind it begins.
  std::vector<ChatMessage> conversation(messages.begin(), messages.end());
  const std::string placeholder = Placeholder(messages);
  conversation[known - 1].content = placeholder;
  QUERN_ASSIGN_OR_RETURN(const std::string text, chat_template->Render(conversation, add_generation_prompt));
  const size_t at = text.rfind(placeholder);
  if (at == std::string::npos)
    return FailedPrecondition(StrCat("the chat template does not print the content of message ", known - 1,
                                     ", so that what follows it cannot be found"));
  std::string_view rest = std::string_view(text).substr(at + placeholder.size());
  // Closing tokens that the model sampled are in the record already.
  size_t closing = 0;
  while (closing < record.size() && tokenizer.IsSpecial(record[record.size() - 1 - closing])) ++closing;
  for (; closing > 0; --closing) {
    const std::string sampled = tokenizer.Decode(record.last(closing), false);
    if (sampled.empty() || !rest.starts_with(sampled)) continue;
    rest.remove_prefix(sampled.size());
    break;
  }
  return tokenizer.Encode(rest, false);
}

}  // namespace quern
