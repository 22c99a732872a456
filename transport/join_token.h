#pragma once

#include <string>

#include "base/status.h"
#include "transport/curve_keys.h"

namespace quern {

inline constexpr char kJoinTokenPrefix[] = "qjoin1";

// What an actor on another host needs to know of a run: the prefix, then in hex a checksum, three keys and the address.
struct JoinToken {
  std::string coordinator_address;
  std::string coordinator_key;
  std::string replay_key;
  CurveKeys actor;
};
Result<std::string> FormatJoinToken(const JoinToken& token);
// White space in the text does not count.
Result<JoinToken> ParseJoinToken(const std::string& text);

}  // namespace quern
