#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace quern::jinja {

enum class TokenKind {
  kText,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInt,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind;
  std::string text;  // text, name, string contents or operator
  int64_t integer = 0;
  double number = 0;
  int line = 1;
};

// The tokens of a template with white space control applied (trim_blocks and lstrip_blocks are on, one newline at the
// end of the template is dropped), kEnd at the end. `text` is valid UTF-8. Throws Failure.
std::vector<Token> Tokenize(std::string_view text);

}  // namespace quern::jinja
