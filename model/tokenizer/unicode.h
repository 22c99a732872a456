#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace quern {

// The code point at `*pos` of valid UTF-8; moves *pos behind it.
inline char32_t NextCodePoint(std::string_view text, size_t* pos) {
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[i])); };
  const size_t i = *pos;
  const char32_t lead = byte(i);
  if (lead < 0x80) return *pos += 1, lead;
  if (lead < 0xe0) return *pos += 2, (lead & 0x1f) << 6 | (byte(i + 1) & 0x3f);
  if (lead < 0xf0) return *pos += 3, (lead & 0x0f) << 12 | (byte(i + 1) & 0x3f) << 6 | (byte(i + 2) & 0x3f);
  return *pos += 4, (lead & 0x07) << 18 | (byte(i + 1) & 0x3f) << 12 | (byte(i + 2) & 0x3f) << 6 | (byte(i + 3) & 0x3f);
}

// The start of the character that ends before `pos` (> 0).
inline size_t PreviousBoundary(std::string_view text, size_t pos) {
  do --pos;
  while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xc0) == 0x80);
  return pos;
}

void AppendUtf8(char32_t code_point, std::string* out);
bool IsValidUtf8(std::string_view text);
// Every maximal ill-formed part becomes U+FFFD (Unicode 3.9, best practice; what most libraries do).
std::string ReplaceInvalidUtf8(std::string_view text);
// Trailing bytes of `text` that are the beginning of a character and may still become one; at most 3.
size_t UnfinishedTail(std::string_view text);

// `text` itself where it is valid, else a view of `*storage`, which then holds the repaired text.
inline std::string_view ValidUtf8(std::string_view text, std::string* storage) {
  if (IsValidUtf8(text)) return text;
  *storage = ReplaceInvalidUtf8(text);
  return *storage;
}

bool IsWhiteSpace(char32_t c);                       // property White_Space
bool IsWordChar(char32_t c);                         // \w of UTS 18: Alphabetic, M, Nd, Pc, Join_Control
bool IsNumeric(char32_t c);                          // N
bool IsPunctuation(char32_t c);                      // ASCII punctuation and symbols, P of Unicode 8
bool IsMark(char32_t c);                             // M
void AppendLowercase(char32_t c, std::string* out);  // without context (no final sigma)

}  // namespace quern
