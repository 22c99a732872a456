#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer/tokenizer.h"

namespace quern {

// The text of a generation as its tokens come, up to the first stop text, without special tokens. One thread.
class TextStream {
 public:
  // `prompt` is what the text goes on from: a SentencePiece tokenizer strips the space at the start of a text, and a
  // character may begin in it. Without a tokenizer every text is empty.
  TextStream(std::shared_ptr<const Tokenizer> tokenizer, std::span<const int32_t> prompt,
             std::vector<std::string> stops);

  // True when a stop text is complete; the text ends before it.
  bool Add(int32_t id);
  void Finish();  // no token comes any more

  const std::string& text() const { return text_; }
  // Bytes of text() that stay, whatever comes: without what may be the beginning of a stop text.
  size_t certain() const { return certain_; }

 private:
  bool Append(std::string_view piece);

  std::unique_ptr<StreamDecoder> decoder_;
  std::vector<std::string> stops_;
  std::string text_;
  size_t certain_ = 0;
  bool stopped_ = false;
};

}  // namespace quern
