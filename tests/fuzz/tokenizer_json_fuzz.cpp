#include "base/check.h"
#include "base/log.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/unicode.h"

// Input: a tokenizer.json, a byte 0xFF, and a text to encode. Loading fails in one line or gives a tokenizer whose ids
// are in range and whose text is UTF-8.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  SetLogLevel(LogLevel::kError);
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = input.find('\xff');
  const std::string_view json = input.substr(0, cut);
  std::string text = cut == std::string_view::npos ? "" : std::string(input.substr(cut + 1));
  const auto tokenizer = Tokenizer::Parse(json.empty() ? "{}" : json, "", "tokenizer.json");
  if (!tokenizer.ok()) {
    QUERN_CHECK(tokenizer.status().message().find('\n') == std::string::npos, tokenizer.status().message());
    return 0;
  }
  text += " a b\tab\xc3\xa9 12 ";
  for (const bool special : {false, true}) {
    const std::vector<int32_t> ids = (*tokenizer)->Encode(text, special);
    StreamDecoder stream(*tokenizer, special);
    for (const int32_t id : ids) QUERN_CHECK(IsValidUtf8(stream.Add(id)));
    QUERN_CHECK(IsValidUtf8(stream.Finish()));
    QUERN_CHECK(IsValidUtf8((*tokenizer)->Decode(ids, special)));
  }
  return 0;
}
