#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace quern {

// A fraction in lowest terms. What does not fit (about 38 digits) is nothing, never a wrong number.
class Rational {
 public:
  using Int = __int128;
  Rational() = default;
  explicit Rational(int whole) : over_(whole) {}
  static std::optional<Rational> Of(Int over, Int under);
  // "12", "3.05", ".5": digits with at most one point and at least one digit, no sign.
  static std::optional<Rational> FromDecimal(std::string_view text);

  Rational Negated() const;
  bool IsWhole() const { return under_ == 1; }
  bool IsZero() const { return over_ == 0; }
  bool LessThanOne() const { return over_ < under_; }
  // "-7", "3/4".
  std::string ToString() const;
  long double Approximate() const { return static_cast<long double>(over_) / static_cast<long double>(under_); }

  friend std::optional<Rational> Add(const Rational& a, const Rational& b);
  friend std::optional<Rational> Multiply(const Rational& a, const Rational& b);
  friend std::optional<Rational> Divide(const Rational& a, const Rational& b);  // nothing for b = 0
  bool operator==(const Rational& other) const = default;

 private:
  Int over_ = 0;
  Int under_ = 1;  // > 0
};

std::optional<Rational> Add(const Rational& a, const Rational& b);
std::optional<Rational> Multiply(const Rational& a, const Rational& b);
std::optional<Rational> Divide(const Rational& a, const Rational& b);
// base to the power of a whole exponent.
std::optional<Rational> Power(const Rational& base, int exponent);
// |a - b| <= tolerance.
bool Near(const Rational& a, const Rational& b, const Rational& tolerance);
// By value.
bool Less(const Rational& a, const Rational& b);

}  // namespace quern
