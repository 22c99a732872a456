#include "transport/join_token.h"

#include <xxhash.h>
#include <zmq.h>

#include <algorithm>
#include <string_view>

#include "base/strings.h"
#include "transport/address.h"

namespace quern {

namespace {

constexpr size_t kKeyBytes = 32;
constexpr size_t kCheckBytes = 8;
constexpr size_t kMostText = 4096;

std::string Check(const std::string& bytes) {
  const uint64_t hash = XXH3_64bits(bytes.data(), bytes.size());
  std::string check(kCheckBytes, '\0');
  for (size_t i = 0; i < kCheckBytes; ++i) check[i] = static_cast<char>(hash >> (8 * i));
  return check;
}

Result<std::string> Binary(const std::string& key) {
  uint8_t binary[kKeyBytes];
  if (key.size() != 40 || zmq_z85_decode(binary, key.c_str()) == nullptr)
    return InvalidArgument(
        StrFormat("the join token: a CURVE key has 40 characters of Z85, not these %zu", key.size()));
  return std::string(reinterpret_cast<const char*>(binary), sizeof(binary));
}

std::string Text(std::string_view binary) {
  char text[41];
  zmq_z85_encode(text, reinterpret_cast<const uint8_t*>(binary.data()), kKeyBytes);
  return text;
}

}  // namespace

Result<std::string> FormatJoinToken(const JoinToken& token) {
  std::string body;
  for (const std::string& key : {token.coordinator_key, token.replay_key, token.actor.secret_key}) {
    QUERN_ASSIGN_OR_RETURN(const std::string binary, Binary(key));
    body += binary;
  }
  body += token.coordinator_address;
  std::string text = kJoinTokenPrefix;
  for (const char c : Check(body) + body) text += StrFormat("%02x", static_cast<unsigned>(static_cast<uint8_t>(c)));
  return text;
}

Result<JoinToken> ParseJoinToken(const std::string& text) {
  const auto damaged = [] {
    return InvalidArgument("the join token is damaged: take RUN/keys/join.token of the run, all of it");
  };
  std::string hex;
  for (const char c : text)
    if (c != '\n' && c != ' ' && c != '\r') hex.push_back(c);
  if (!hex.starts_with(kJoinTokenPrefix) || hex.size() % 2 != 0 || hex.size() > kMostText) return damaged();
  std::string bytes;
  for (size_t i = sizeof(kJoinTokenPrefix) - 1; i + 1 < hex.size(); i += 2) {
    int value = 0;
    for (const char c : {hex[i], hex[i + 1]}) {
      if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return damaged();
      value = 16 * value + (c <= '9' ? c - '0' : c - 'a' + 10);
    }
    bytes.push_back(static_cast<char>(value));
  }
  if (bytes.size() < kCheckBytes + 3 * kKeyBytes + 1) return damaged();
  const std::string body = bytes.substr(kCheckBytes);
  if (bytes.substr(0, kCheckBytes) != Check(body)) return damaged();
  JoinToken token;
  token.coordinator_key = Text(std::string_view(body).substr(0, kKeyBytes));
  token.replay_key = Text(std::string_view(body).substr(kKeyBytes, kKeyBytes));
  token.actor.secret_key = Text(std::string_view(body).substr(2 * kKeyBytes, kKeyBytes));
  token.coordinator_address = body.substr(3 * kKeyBytes);
  char public_key[41];
  if (zmq_curve_public(public_key, token.actor.secret_key.c_str()) != 0) return damaged();
  token.actor.public_key = public_key;
  const Result<AddressKind> kind = ParseAddress(token.coordinator_address);
  const auto printable = [](char c) { return c > 0x20 && c < 0x7f; };
  if (!kind.ok() || *kind != AddressKind::kTcp ||
      !std::all_of(token.coordinator_address.begin(), token.coordinator_address.end(), printable))
    return damaged();
  return token;
}

}  // namespace quern
