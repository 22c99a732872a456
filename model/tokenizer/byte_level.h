#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace quern {

// GPT-2's reversible map from bytes to printable characters: bytes that print stand for themselves, the others are
// U+0100 onwards in order (space is "Ġ").
const std::array<uint16_t, 256>& ByteToCodePoint();
// The inverse; nullopt for characters outside the map.
std::optional<uint8_t> CodePointToByte(char32_t code_point);
void AppendByteLevel(std::string_view bytes, std::string* out);

}  // namespace quern
