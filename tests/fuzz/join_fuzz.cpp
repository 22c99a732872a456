#include <xxhash.h>

#include "base/check.h"
#include "base/strings.h"
#include "transport/join_token.h"

// A join token: after an 'x' what its hex stands for, which gets its checksum; else the text as it is.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  std::string text(reinterpret_cast<const char*>(data), size);
  if (text.starts_with('x')) {
    const std::string body = text.substr(1);
    const uint64_t check = XXH3_64bits(body.data(), body.size());
    text = kJoinTokenPrefix;
    for (int i = 0; i < 8; ++i) text += StrFormat("%02x", static_cast<unsigned>(check >> (8 * i) & 0xff));
    for (const char c : body) text += StrFormat("%02x", static_cast<unsigned>(static_cast<uint8_t>(c)));
  }
  const Result<JoinToken> token = ParseJoinToken(text);
  if (!token.ok()) {
    QUERN_CHECK(token.status().message().find('\n') == std::string::npos);
    return 0;
  }
  // It goes into messages and to the socket as it is.
  for (const char c : token->coordinator_address) QUERN_CHECK(c > 0x20 && c < 0x7f);
  QUERN_CHECK(token->actor.public_key.size() == 40 && token->actor.secret_key.size() == 40);
  const Result<std::string> again = FormatJoinToken(*token);
  QUERN_CHECK(again.ok(), again.status().ToString());
  const Result<JoinToken> same = ParseJoinToken(*again);
  QUERN_CHECK(same.ok() && same->coordinator_address == token->coordinator_address &&
              same->coordinator_key == token->coordinator_key && same->replay_key == token->replay_key &&
              same->actor.secret_key == token->actor.secret_key);
  return 0;
}
