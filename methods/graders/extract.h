#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace quern {

// The contents of the last \boxed{...} (or \fbox{...}) whose braces close; nested and escaped braces are part of it.
std::optional<std::string_view> LastBox(std::string_view text);
// The text with that box taken away and its contents left in place; other braces stay.
std::string UnwrapLastBox(std::string_view text);
// What follows #### in the last line that begins with it (GSM8K's mark).
std::optional<std::string_view> LastHashLine(std::string_view text);
// What follows the last "answer is" or "answer:", to the end of the sentence or line. Not case-sensitive.
std::optional<std::string_view> AnswerSentence(std::string_view text);

}  // namespace quern
