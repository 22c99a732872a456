#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// Strings as Python has them, over valid UTF-8: lengths and positions count code points.
namespace quern::jinja {

bool IsSpace(char32_t c);      // str.isspace
bool IsPrintable(char32_t c);  // str.isprintable: what repr() leaves as it is
enum class LetterClass { kOther, kDigit, kUpper, kLower, kLetter };
LetterClass ClassOf(char32_t c);

size_t Length(std::string_view text);
// The byte offset of code point `index`, which must be at most Length.
size_t ByteOffset(std::string_view text, size_t index);
std::vector<std::string_view> Characters(std::string_view text);

// `chars` null: white space.
std::string_view StripLeft(std::string_view text, const std::string* chars);
std::string_view StripRight(std::string_view text, const std::string* chars);
std::string Upper(std::string_view text);
std::string Lower(std::string_view text);
std::string Capitalize(std::string_view text);   // first character upper, others lower
std::string TitleMethod(std::string_view text);  // str.title
std::string TitleFilter(std::string_view text);  // Jinja's title: words end at white space, - and opening brackets

// str.split: at white space where `separator` is null. limit < 0: no limit.
std::vector<std::string_view> Split(std::string_view text, const std::string* separator, int64_t limit);
std::vector<std::string_view> SplitFromRight(std::string_view text, const std::string* separator, int64_t limit);
std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends);
// The result's size must have been checked: see ReplacedSize.
std::string Replace(std::string_view text, std::string_view from, std::string_view to, int64_t limit);
size_t ReplacedSize(std::string_view text, std::string_view from, std::string_view to, int64_t limit);

std::string FloatText(double value);                                         // repr(float)
std::string Repr(std::string_view text);                                     // repr(str)
void AppendJsonString(std::string_view text, bool ascii, std::string* out);  // with quotes

}  // namespace quern::jinja
