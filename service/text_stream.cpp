#include "service/text_stream.h"

#include <algorithm>

namespace quern {

TextStream::TextStream(std::shared_ptr<const Tokenizer> tokenizer, std::span<const int32_t> prompt,
                       std::vector<std::string> stops)
    : stops_(std::move(stops)) {
  std::erase(stops_, std::string());
  if (tokenizer == nullptr) return;
  decoder_ = std::make_unique<StreamDecoder>(std::move(tokenizer), /*skip_special=*/true);
  for (const int32_t id : prompt) decoder_->Add(id);
}

bool TextStream::Add(int32_t id) { return decoder_ != nullptr && Append(decoder_->Add(id)); }

void TextStream::Finish() {
  if (decoder_ != nullptr) Append(decoder_->Finish());
  certain_ = text_.size();
}

bool TextStream::Append(std::string_view piece) {
  if (stopped_) return true;
  const size_t before = text_.size();
  text_ += piece;
  size_t end = std::string::npos;
  for (const std::string& stop : stops_)
    end = std::min(end, text_.find(stop, before - std::min(before, stop.size() - 1)));
  if (end != std::string::npos) {
    text_.resize(end);
    certain_ = end;
    return stopped_ = true;
  }
  size_t held = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, text_.size()); length > held; --length)
      if (text_.ends_with(std::string_view(stop).substr(0, length))) held = length;
  }
  certain_ = text_.size() - held;
  return false;
}

}  // namespace quern
