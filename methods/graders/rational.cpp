#include "methods/graders/rational.h"

#include <algorithm>
#include <cmath>

#include "methods/graders/characters.h"

namespace quern {

namespace {

using Int = Rational::Int;

// Half of the range: negating and subtracting in what follows cannot overflow.
constexpr Int kMost = (static_cast<Int>(1) << 126) - 1;

std::optional<Int> Times(Int a, Int b) {
  Int out;
  if (__builtin_mul_overflow(a, b, &out) || out > kMost || out < -kMost) return std::nullopt;
  return out;
}

Int Gcd(Int a, Int b) {
  if (a < 0) a = -a;
  while (b != 0) {
    const Int rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

std::string Decimal(Int value) {
  const bool negative = value < 0;
  if (negative) value = -value;
  std::string digits;
  do {
    digits += static_cast<char>('0' + static_cast<int>(value % 10));
    value /= 10;
  } while (value != 0);
  if (negative) digits += '-';
  std::reverse(digits.begin(), digits.end());
  return digits;
}

}  // namespace

std::optional<Rational> Rational::Of(Int over, Int under) {
  if (under == 0 || over > kMost || over < -kMost || under > kMost || under < -kMost) return std::nullopt;
  if (under < 0) {
    over = -over;
    under = -under;
  }
  const Int common = Gcd(over, under);
  Rational out;
  out.over_ = over / common;
  out.under_ = under / common;
  return out;
}

std::optional<Rational> Rational::FromDecimal(std::string_view text) {
  Int over = 0;
  Int under = 1;
  bool point = false;
  bool any = false;
  size_t zeros = 0;  // behind the point and not yet in the value: 1.5000...0 fits
  for (const char c : text) {
    if (c == '.' && !point) {
      point = true;
      continue;
    }
    if (!IsDigit(c)) return std::nullopt;
    any = true;
    if (point && c == '0') {
      ++zeros;
      continue;
    }
    for (size_t i = 0; i < (point ? zeros + 1 : 1); ++i) {
      const std::optional<Int> longer = Times(over, 10);
      const std::optional<Int> finer = point ? Times(under, 10) : under;
      if (!longer || !finer) return std::nullopt;
      over = *longer;
      under = *finer;
    }
    zeros = 0;
    over += c - '0';
  }
  if (!any) return std::nullopt;
  return Of(over, under);
}

Rational Rational::Negated() const {
  Rational out = *this;
  out.over_ = -over_;
  return out;
}

std::string Rational::ToString() const { return IsWhole() ? Decimal(over_) : Decimal(over_) + "/" + Decimal(under_); }

std::optional<Rational> Add(const Rational& a, const Rational& b) {
  const Int common = Gcd(a.under_, b.under_);
  const std::optional<Int> left = Times(a.over_, b.under_ / common);
  const std::optional<Int> right = Times(b.over_, a.under_ / common);
  const std::optional<Int> under = Times(a.under_, b.under_ / common);
  if (!left || !right || !under) return std::nullopt;
  return Rational::Of(*left + *right, *under);
}

std::optional<Rational> Multiply(const Rational& a, const Rational& b) {
  const Int first = Gcd(a.over_, b.under_);
  const Int second = Gcd(b.over_, a.under_);
  const std::optional<Int> over = Times(a.over_ / first, b.over_ / second);
  const std::optional<Int> under = Times(a.under_ / second, b.under_ / first);
  if (!over || !under) return std::nullopt;
  return Rational::Of(*over, *under);
}

std::optional<Rational> Divide(const Rational& a, const Rational& b) {
  const std::optional<Rational> inverse = Rational::Of(b.under_, b.over_);
  if (!inverse) return std::nullopt;
  return Multiply(a, *inverse);
}

std::optional<Rational> Power(const Rational& base, int exponent) {
  std::optional<Rational> out = Rational(1);
  for (int i = 0; i < std::min(std::abs(exponent), 400) && out; ++i) out = Multiply(*out, base);
  if (!out || std::abs(exponent) > 400) return std::nullopt;
  return exponent < 0 ? Divide(Rational(1), *out) : out;
}

bool Near(const Rational& a, const Rational& b, const Rational& tolerance) {
  if (a == b) return true;
  const std::optional<Rational> difference = Add(a, b.Negated());
  // Too fine to be held exactly: by the machine's longest floating point.
  if (!difference) return std::abs(a.Approximate() - b.Approximate()) <= tolerance.Approximate();
  return !Less(tolerance, *difference) && !Less(*difference, tolerance.Negated());
}

bool Less(const Rational& a, const Rational& b) {
  const std::optional<Rational> difference = Add(a, b.Negated());
  if (difference) return difference->Approximate() < 0;
  return a.Approximate() < b.Approximate();
}

}  // namespace quern
