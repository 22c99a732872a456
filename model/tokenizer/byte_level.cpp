#include "model/tokenizer/byte_level.h"

namespace quern {
namespace {

struct ByteLevelMap {
  std::array<uint16_t, 256> code_point{};
  std::array<int16_t, 512> byte{};

  ByteLevelMap() {
    byte.fill(-1);
    uint16_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool prints = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
      code_point[b] = prints ? static_cast<uint16_t>(b) : next++;
      byte[code_point[b]] = static_cast<int16_t>(b);
    }
  }
};

const ByteLevelMap& Map() {
  static const ByteLevelMap map;
  return map;
}

}  // namespace

const std::array<uint16_t, 256>& ByteToCodePoint() { return Map().code_point; }

std::optional<uint8_t> CodePointToByte(char32_t code_point) {
  if (code_point >= 512 || Map().byte[code_point] < 0) return std::nullopt;
  return static_cast<uint8_t>(Map().byte[code_point]);
}

void AppendByteLevel(std::string_view bytes, std::string* out) {
  const auto& map = Map().code_point;
  for (const char c : bytes) {
    const uint16_t code_point = map[static_cast<uint8_t>(c)];
    if (code_point < 0x80) {
      out->push_back(static_cast<char>(code_point));
    } else {
      out->push_back(static_cast<char>(0xc0 | (code_point >> 6)));
      out->push_back(static_cast<char>(0x80 | (code_point & 0x3f)));
    }
  }
}

}  // namespace quern
