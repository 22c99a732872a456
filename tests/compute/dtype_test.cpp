#include "compute/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace quern {
namespace {

// The value of a binary float with `exponent_bits` and `mantissa_bits`, from the definition.
double Decode(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const uint32_t exponent = (bits >> mantissa_bits) & ((1u << exponent_bits) - 1);
  const double sign = (bits >> (exponent_bits + mantissa_bits)) & 1 ? -1 : 1;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  if (exponent == (1u << exponent_bits) - 1)
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1u << mantissa_bits), static_cast<int>(exponent) - bias - mantissa_bits);
}

struct HalfFormat {
  static constexpr int kExponent = 5, kMantissa = 10;
  static float ToFloat(uint16_t bits) { return HalfToFloat(bits); }
  static uint16_t FromFloat(float value) { return FloatToHalf(value); }
};
struct Bf16Format {
  static constexpr int kExponent = 8, kMantissa = 7;
  static float ToFloat(uint16_t bits) {
    Bf16 value;
    value.bits = bits;
    return static_cast<float>(value);
  }
  static uint16_t FromFloat(float value) { return Bf16(value).bits; }
};

template <typename Format>
class DTypeTest : public ::testing::Test {};
using Formats = ::testing::Types<HalfFormat, Bf16Format>;
TYPED_TEST_SUITE(DTypeTest, Formats);

TYPED_TEST(DTypeTest, EveryCodeDecodesAndComesBack) {
  for (uint32_t code = 0; code < 65536; ++code) {
    const auto bits = static_cast<uint16_t>(code);
    const double want = Decode(code, TypeParam::kExponent, TypeParam::kMantissa);
    const float value = TypeParam::ToFloat(bits);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(value)) << code;
      ASSERT_TRUE(std::isnan(TypeParam::ToFloat(TypeParam::FromFloat(value)))) << code;
      continue;
    }
    ASSERT_EQ(static_cast<double>(value), want) << code;
    ASSERT_EQ(std::signbit(value), code >= 32768) << code;
    ASSERT_EQ(TypeParam::FromFloat(value), bits) << code;
  }
}

// Between each two neighbours: below the middle goes down, the middle goes to the even code, above goes up.
TYPED_TEST(DTypeTest, RoundsToNearestEven) {
  const uint32_t infinity = ((1u << TypeParam::kExponent) - 1) << TypeParam::kMantissa;
  for (uint32_t code = 0; code + 1 < infinity; ++code) {
    const double low = Decode(code, TypeParam::kExponent, TypeParam::kMantissa);
    const double high = Decode(code + 1, TypeParam::kExponent, TypeParam::kMantissa);
    const auto middle = static_cast<float>((low + high) / 2);  // exact: one bit more than the format has
    ASSERT_EQ(TypeParam::FromFloat(middle), code + code % 2) << code;
    ASSERT_EQ(TypeParam::FromFloat(std::nextafter(middle, 0.0f)), code) << code;
    ASSERT_EQ(TypeParam::FromFloat(std::nextafter(middle, std::numeric_limits<float>::infinity())), code + 1) << code;
    ASSERT_EQ(TypeParam::FromFloat(-middle), (code + code % 2) | 0x8000u) << code;
  }
  EXPECT_EQ(TypeParam::FromFloat(std::numeric_limits<float>::max()), infinity);
  EXPECT_EQ(TypeParam::FromFloat(std::numeric_limits<float>::infinity()), infinity);
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(DTypeSize(DType::kBf16), 2);
  EXPECT_EQ(DTypeSize(DType::kF32), 4);
  EXPECT_STREQ(DTypeName(DType::kF16), "fp16");
  EXPECT_EQ(kDTypeOf<Bf16>, DType::kBf16);
}

}  // namespace
}  // namespace quern
