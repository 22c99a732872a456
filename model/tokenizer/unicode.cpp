#include "model/tokenizer/unicode.h"

#include <unicode/uchar.h>
#include <unicode/uniset.h>

#include "model/tokenizer/newer_characters.h"

namespace quern {
namespace {

// Length of the well-formed character at `pos`, or 0; then *bad is the length of the maximal ill-formed part and
// *unfinished says that the text ends inside a character (Unicode 15, table 3-7).
size_t CharacterLength(std::string_view text, size_t pos, size_t* bad, bool* unfinished) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(pos);
  *unfinished = false;
  *bad = 1;
  if (lead < 0x80) return 1;
  size_t length = 0;
  unsigned char low = 0x80, high = 0xbf;
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else {
    return 0;
  }
  for (size_t i = 1; i < length; ++i) {
    if (pos + i >= text.size()) {
      *unfinished = true;
      *bad = i;
      return 0;
    }
    if (byte(pos + i) < low || byte(pos + i) > high) {
      *bad = i;
      return 0;
    }
    low = 0x80;
    high = 0xbf;
  }
  return length;
}

// The general categories of `c` as a mask, also where `c` is newer than ICU's tables.
uint32_t CategoryMask(char32_t c) {
  const int8_t type = u_charType(static_cast<UChar32>(c));
  if (type != U_UNASSIGNED) return U_MASK(type);
  for (const CategoryRange& range : kNewerCharacters) {
    if (c < range.begin || c > range.end) continue;
    switch (range.category[0]) {
      case 'L': return U_GC_LO_MASK;
      case 'M': return U_GC_MN_MASK;
      case 'N': return range.category[1] == 'd' ? U_GC_ND_MASK : U_GC_NO_MASK;
      case 'P': return U_GC_PO_MASK;
      default: return U_GC_SO_MASK;
    }
  }
  return U_GC_CN_MASK;
}

}  // namespace

void AppendUtf8(char32_t c, std::string* out) {
  const auto add = [out](char32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    add(c);
  } else if (c < 0x800) {
    add(0xc0 | c >> 6);
    add(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    add(0xe0 | c >> 12);
    add(0x80 | (c >> 6 & 0x3f));
    add(0x80 | (c & 0x3f));
  } else {
    add(0xf0 | c >> 18);
    add(0x80 | (c >> 12 & 0x3f));
    add(0x80 | (c >> 6 & 0x3f));
    add(0x80 | (c & 0x3f));
  }
}

bool IsValidUtf8(std::string_view text) {
  size_t bad;
  bool unfinished;
  for (size_t pos = 0; pos < text.size();) {
    const size_t length = CharacterLength(text, pos, &bad, &unfinished);
    if (length == 0) return false;
    pos += length;
  }
  return true;
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  size_t bad;
  bool unfinished;
  for (size_t pos = 0; pos < text.size();) {
    const size_t length = CharacterLength(text, pos, &bad, &unfinished);
    if (length > 0) {
      out.append(text.substr(pos, length));
      pos += length;
    } else {
      out.append("\xef\xbf\xbd");
      pos += bad;
    }
  }
  return out;
}

size_t UnfinishedTail(std::string_view text) {
  size_t bad;
  bool unfinished;
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const size_t pos = text.size() - back;
    if ((static_cast<unsigned char>(text[pos]) & 0xc0) == 0x80) continue;
    return CharacterLength(text, pos, &bad, &unfinished) == 0 && unfinished && bad == back ? back : 0;
  }
  return 0;
}

bool IsWhiteSpace(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || (c >= 0x80 && u_isUWhiteSpace(static_cast<UChar32>(c)));
}

bool IsWordChar(char32_t code_point) {
  const auto c = static_cast<UChar32>(code_point);
  if (u_hasBinaryProperty(c, UCHAR_ALPHABETIC) || u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL)) return true;
  return (CategoryMask(code_point) & (U_GC_L_MASK | U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK)) != 0;
}

bool IsNumeric(char32_t c) { return (CategoryMask(c) & U_GC_N_MASK) != 0; }

bool IsPunctuation(char32_t c) {
  if (c < 0x80)
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
  static const icu::UnicodeSet* const set = [] {
    UErrorCode error = U_ZERO_ERROR;
    auto* made = new icu::UnicodeSet(u"[[:P:]&[:Age=8.0:]]", error);  // the reference's tables are that old
    made->freeze();
    return made;
  }();
  return set->contains(static_cast<UChar32>(c));
}

bool IsMark(char32_t c) { return (CategoryMask(c) & U_GC_M_MASK) != 0; }

void AppendLowercase(char32_t c, std::string* out) {
  if (c == 0x130) {  // the one code point whose full lower case is two
    out->append("i\xcc\x87");
  } else {
    AppendUtf8(static_cast<char32_t>(u_tolower(static_cast<UChar32>(c))), out);
  }
}

}  // namespace quern
