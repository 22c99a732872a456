#include "model/chat_template/dialogue.h"

#include <algorithm>

namespace quern {

Result<Dialogue> Dialogue::Make(const Tokenizer& tokenizer, std::shared_ptr<const ChatTemplate> chat_template,
                                std::vector<int32_t> end_ids) {
  Dialogue out;
  out.tokenizer_ = &tokenizer;
  out.template_ = std::move(chat_template);
  out.end_ids_ = std::move(end_ids);
  if (!out.end_ids_.empty()) out.closing_ = out.end_ids_[0];
  if (out.template_ == nullptr) return out;
  // The first special token that the template prints behind an answer closes it.
  const std::vector<ChatMessage> sample = {{"user", "a"}, {"assistant", "b"}};
  const std::vector<int32_t> nothing;
  QUERN_ASSIGN_OR_RETURN(const std::vector<int32_t> behind,
                         EncodeNextTurn(tokenizer, out.template_.get(), sample, 2, nothing, false));
  const auto special = std::find_if(behind.begin(), behind.end(), [&](int32_t id) { return tokenizer.IsSpecial(id); });
  if (special != behind.end()) out.closing_ = *special;
  if (out.closing_ >= 0 && std::find(out.end_ids_.begin(), out.end_ids_.end(), out.closing_) == out.end_ids_.end())
    out.end_ids_.push_back(out.closing_);
  return out;
}

Result<std::vector<int32_t>> Dialogue::Opening(std::span<const ChatMessage> messages) const {
  if (template_ != nullptr) return EncodeChat(*tokenizer_, template_.get(), messages, true);
  if (messages.empty()) return tokenizer_->Encode("", true);
  std::vector<int32_t> ids;
  for (const ChatMessage& message : messages) {
    const std::vector<int32_t> more = tokenizer_->Encode(message.content, &message == messages.data());
    ids.insert(ids.end(), more.begin(), more.end());
  }
  return ids;
}

Result<std::vector<int32_t>> Dialogue::Opening(const std::string& user) const {
  const ChatMessage message{"user", user};
  return Opening({&message, 1});
}

std::vector<int32_t> Dialogue::Utterance(const std::string& text, bool closed) const {
  std::vector<int32_t> ids = tokenizer_->Encode(text, false);
  if (!closed && closing_ >= 0) ids.push_back(closing_);
  return ids;
}

Result<std::vector<int32_t>> Dialogue::Next(std::span<const ChatMessage> messages, size_t known,
                                            std::span<const int32_t> record) const {
  if (template_ != nullptr) return EncodeNextTurn(*tokenizer_, template_.get(), messages, known, record, true);
  std::vector<int32_t> ids;
  for (const ChatMessage& message : messages.subspan(known)) {
    const std::vector<int32_t> more = tokenizer_->Encode(message.content, false);
    ids.insert(ids.end(), more.begin(), more.end());
  }
  return ids;
}

}  // namespace quern
