#include "model/tokenizer/unicode.h"

#include <gtest/gtest.h>
#include <unicode/uchar.h>

#include <fstream>

#include "base/strings.h"
#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/normalizer.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

TEST(Unicode, RepairsIllFormedText) {
  EXPECT_EQ(ReplaceInvalidUtf8("a\xff"
                               "b"),
            "a\xef\xbf\xbd"
            "b");
  EXPECT_EQ(ReplaceInvalidUtf8("\xe6\x97"), "\xef\xbf\xbd");                              // one unfinished character
  EXPECT_EQ(ReplaceInvalidUtf8("\xed\xa0\x80"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");  // a surrogate
  EXPECT_EQ(ReplaceInvalidUtf8("\xc0\xaf"), "\xef\xbf\xbd\xef\xbf\xbd");                  // overlong
  EXPECT_EQ(ReplaceInvalidUtf8("\xf0\x9f\x98x"), "\xef\xbf\xbdx");
  EXPECT_TRUE(IsValidUtf8("日本語 😀"));
  EXPECT_FALSE(IsValidUtf8("\xf4\x90\x80\x80"));
}

TEST(Unicode, FindsUnfinishedTails) {
  const std::string face = "😀";
  for (size_t n = 1; n < 4; ++n) EXPECT_EQ(UnfinishedTail("a" + face.substr(0, n)), n);
  EXPECT_EQ(UnfinishedTail("a" + face), 0u);
  EXPECT_EQ(UnfinishedTail("\x80\x80"), 0u);
  EXPECT_EQ(UnfinishedTail("\xc0"), 0u);
  EXPECT_EQ(UnfinishedTail("\xed\xa0"), 0u);
  EXPECT_EQ(UnfinishedTail(""), 0u);
}

TEST(Unicode, ByteLevelMapIsReversible) {
  std::string bytes;
  for (int b = 0; b < 256; ++b) {
    EXPECT_EQ(CodePointToByte(ByteToCodePoint()[b]), b);
    bytes.push_back(static_cast<char>(b));
  }
  std::string mapped;
  AppendByteLevel(" \n!", &mapped);
  EXPECT_EQ(mapped, "ĠĊ!");
  EXPECT_FALSE(CodePointToByte(U' ').has_value());
  EXPECT_FALSE(CodePointToByte(0x144).has_value());
}

std::string FromHex(const std::string& field) {
  std::string text;
  for (const std::string& hex : StrSplit(field, ' '))
    AppendUtf8(static_cast<char32_t>(std::stoul(hex, nullptr, 16)), &text);
  return text;
}

TEST(Unicode, NormalizationFormsFollowTheUnicodeTestRows) {
  QUERN_NEED_SHARED_DATA("tokenizer-vectors/unicode_normalization.txt");
  std::unique_ptr<TextNormalizer> forms[4];
  const char* names[] = {"NFC", "NFD", "NFKC", "NFKD"};
  for (int i = 0; i < 4; ++i) forms[i] = *MakeNormalizer({{"type", names[i]}}, "normalizer");
  std::ifstream file(SharedData("tokenizer-vectors/unicode_normalization.txt"));
  std::string line;
  int rows = 0;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] == '#') continue;
    const auto fields = StrSplit(line, ';');
    ASSERT_EQ(fields.size(), 5u);
    bool old = true;  // in the reference's tables, Unicode 9
    for (const std::string& hex : StrSplit(fields[0], ' ')) {
      UVersionInfo age;
      u_charAge(static_cast<UChar32>(std::stoul(hex, nullptr, 16)), age);
      old = old && age[0] > 0 && age[0] <= 9;
    }
    if (!old) continue;
    ++rows;
    for (int i = 0; i < 4; ++i) {
      std::string text = FromHex(fields[0]);
      bool at_start = true;
      forms[i]->Apply(&text, &at_start);
      ASSERT_EQ(text, FromHex(fields[i + 1])) << names[i] << " of " << fields[0];
    }
  }
  EXPECT_GT(rows, 15000);
}

}  // namespace
}  // namespace quern
