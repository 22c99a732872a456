#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

#include "methods/graders/rational.h"

namespace quern {

// A number as it stands in a text.
struct NumberInText {
  size_t begin = 0;  // sign and currency included
  size_t end = 0;    // percent sign included
  std::optional<Rational>
      value;  // as written: 50 for "50%"; nothing when it cannot be read (3:30, 1/0, too many digits)
  bool percent = false;
};

// The last number of the text.
//   sign       - or U+2212 right before the digits (or their currency sign), unless it stands between two terms
//   (48-24);
//              with a space in between only after = ( : and where text is nothing but the number
//   separators 1,250  1{,}250  1\,250: between groups of three digits
//   forms      72.  .50  3.05  1.5e-3  3/4  \frac{3}{4}  1 1/2  2^10  $5  5%
// Digits in a word (H2O, m2), an index (x_2) or an exponent of one (m^2) are no numbers.
std::optional<NumberInText> LastNumber(std::string_view text);

}  // namespace quern
