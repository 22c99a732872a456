#include "model/tokenizer/tokenizer_impl.h"
#include "model/tokenizer/unicode.h"

namespace quern {
namespace {

// A character takes at most four byte tokens; what is still not text after this many ids never will be.
constexpr size_t kMaxHeld = 16;
constexpr std::string_view kReplacement = "\xef\xbf\xbd";

bool EndsWith(std::string_view text, std::string_view suffix) {
  return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

}  // namespace

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

std::string StreamDecoder::Add(int32_t id) {
  const Tokenizer::Impl::Token* token = tokenizer_->impl_->Find(id);
  if (token == nullptr || (skip_special_ && token->special)) return {};
  return tokenizer_->impl_->decoder.byte_level_only() ? AddBytes(id) : AddWindow(id);
}

std::string StreamDecoder::AddBytes(int32_t id) {
  AppendBytesOfPiece(tokenizer_->impl_->tokens[id].piece, &bytes_);
  const size_t whole = bytes_.size() - UnfinishedTail(bytes_);
  std::string text = ReplaceInvalidUtf8(std::string_view(bytes_).substr(0, whole));
  bytes_.erase(0, whole);
  return text;
}

// Decodes the last ids with and without those not given out yet; the difference is the new text. The ids before them
// are the context that decoders need which treat the first piece differently.
std::string StreamDecoder::AddWindow(int32_t id) {
  window_.push_back(id);
  const std::span<const int32_t> all(window_);
  const std::string before = tokenizer_->Decode(all.first(given_out_), skip_special_);
  const std::string text = tokenizer_->Decode(all, skip_special_);
  if (text.size() <= before.size()) return {};
  if (EndsWith(text, kReplacement) && window_.size() - given_out_ < kMaxHeld) return {};
  window_.erase(window_.begin(), window_.begin() + static_cast<ptrdiff_t>(given_out_));
  given_out_ = window_.size();
  return text.substr(before.size());
}

std::string StreamDecoder::Finish() {
  std::string text = ReplaceInvalidUtf8(bytes_);
  if (given_out_ < window_.size()) {
    const std::span<const int32_t> all(window_);
    const std::string before = tokenizer_->Decode(all.first(given_out_), skip_special_);
    const std::string whole = tokenizer_->Decode(all, skip_special_);
    if (whole.size() > before.size()) text += whole.substr(before.size());
  }
  bytes_.clear();
  window_.clear();
  given_out_ = 0;
  return text;
}

}  // namespace quern
