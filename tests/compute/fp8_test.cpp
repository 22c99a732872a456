#include "compute/fp8.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"

namespace quern {
namespace {

// The value of a code from the definition of the format.
double Decode(uint8_t code, DType dtype) {
  const int mantissa_bits = dtype == DType::kE4M3 ? 3 : 2, bias = dtype == DType::kE4M3 ? 7 : 15;
  const int mantissa = code & ((1 << mantissa_bits) - 1), exponent = (code & 0x7f) >> mantissa_bits;
  const double sign = code & 0x80 ? -1 : 1;
  if (dtype == DType::kE4M3 && exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  if (dtype == DType::kE5M2 && exponent == 31)
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

// Codes of the values of [0, max], in order.
std::vector<uint8_t> PositiveCodes(const Fp8Format& format) {
  std::vector<uint8_t> codes;
  for (int code = 0; code < 128; ++code)
    if (Decode(static_cast<uint8_t>(code), format.dtype) <= static_cast<double>(format.max))
      codes.push_back(static_cast<uint8_t>(code));
  return codes;
}

class Fp8Test : public ::testing::TestWithParam<Fp8Format> {};
INSTANTIATE_TEST_SUITE_P(Formats, Fp8Test, ::testing::Values(kE4M3, kE4M3Gaudi, kE5M2), [](const auto& format) {
  return std::string(DTypeName(format.param.dtype)) + "_" + std::to_string(static_cast<int>(format.param.max));
});

TEST_P(Fp8Test, EveryCodeDecodesAndComesBack) {
  const auto [dtype, max] = GetParam();
  for (int c = 0; c < 256; ++c) {
    const auto code = static_cast<uint8_t>(c);
    const double want = Decode(code, dtype);
    const float value = Fp8ToFloat(code, dtype);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(value)) << c;
      continue;
    }
    ASSERT_EQ(static_cast<double>(value), want) << c;
    ASSERT_EQ(std::signbit(value), c >= 128) << c;
    if (std::abs(want) > static_cast<double>(max)) continue;
    ASSERT_EQ(FloatToFp8(value, GetParam()), code);
    for (const uint32_t bits : {0u, 0xffffffffu, 0x12345678u})
      ASSERT_EQ(FloatToFp8Stochastic(value, GetParam(), bits), code) << "a value that is a code is not random";
  }
}

// Between each two neighbours: below the middle goes down, the middle to the even code, above it up.
TEST_P(Fp8Test, RoundsToNearestEven) {
  const std::vector<uint8_t> codes = PositiveCodes(GetParam());
  for (size_t i = 0; i + 1 < codes.size(); ++i) {
    const double low = Decode(codes[i], GetParam().dtype), high = Decode(codes[i + 1], GetParam().dtype);
    ASSERT_EQ(codes[i] + 1, codes[i + 1]);
    const auto middle = static_cast<float>((low + high) / 2);
    const int even = codes[i] + codes[i] % 2;
    for (const float sign : {1.0f, -1.0f}) {
      const int bit = sign < 0 ? 0x80 : 0;
      ASSERT_EQ(FloatToFp8(sign * middle, GetParam()), even | bit) << i;
      ASSERT_EQ(FloatToFp8(sign * std::nextafter(middle, 0.0f), GetParam()), codes[i] | bit) << i;
      ASSERT_EQ(FloatToFp8(sign * std::nextafter(middle, 1e9f), GetParam()), codes[i + 1] | bit) << i;
    }
  }
}

TEST_P(Fp8Test, SaturatesAndKeepsNan) {
  const float max = GetParam().max, infinity = std::numeric_limits<float>::infinity();
  const uint8_t largest = PositiveCodes(GetParam()).back();
  for (const float x : {max, std::nextafter(max, infinity), max * 1.03f, max * 2, 1e30f, infinity}) {
    EXPECT_EQ(FloatToFp8(x, GetParam()), largest) << x;
    EXPECT_EQ(FloatToFp8(-x, GetParam()), largest | 0x80) << x;
    EXPECT_EQ(FloatToFp8Stochastic(x, GetParam(), 0xffffffff), largest) << x;
  }
  for (const float nan : {std::nanf(""), -std::nanf(""), std::bit_cast<float>(0x7f800001u)}) {
    EXPECT_EQ(FloatToFp8(nan, GetParam()), 0x7f);
    EXPECT_EQ(FloatToFp8Stochastic(nan, GetParam(), 1), 0x7f);
  }
  EXPECT_EQ(FloatToFp8(-0.0f, GetParam()), 0x80);
}

// A sweep over floats of every exponent against the nearest code by search.
TEST_P(Fp8Test, AgreesWithASearchForTheNearestCode) {
  const std::vector<uint8_t> codes = PositiveCodes(GetParam());
  const auto nearest = [&](double x) {
    size_t best = 0;
    for (size_t i = 1; i < codes.size(); ++i) {
      const double gain =
          std::abs(Decode(codes[best], GetParam().dtype) - x) - std::abs(Decode(codes[i], GetParam().dtype) - x);
      if (gain > 0 || (gain == 0 && codes[i] % 2 == 0)) best = i;
    }
    return codes[best];
  };
  Random random(11);
  for (int i = 0; i < 20000; ++i) {
    const int exponent = static_cast<int>(random.Below(60)) - 40;
    const auto x = static_cast<float>(std::ldexp(1 + random.Uniform(), exponent));
    ASSERT_EQ(FloatToFp8(x, GetParam()), nearest(static_cast<double>(x))) << x;
  }
  for (const float x : {1e-45f, 1e-39f, 1e-20f}) EXPECT_EQ(FloatToFp8(x, GetParam()), 0);
}

// Over all random bits the upper neighbour is taken as often as x is far from the lower one.
TEST_P(Fp8Test, StochasticRoundingHasTheRightMean) {
  const std::vector<uint8_t> codes = PositiveCodes(GetParam());
  const int width = GetParam().dtype == DType::kE4M3 ? 20 : 21;
  for (const size_t i : {size_t{0}, size_t{1}, size_t{2}, size_t{9}, size_t{40}, codes.size() - 2}) {
    const double low = Decode(codes[i], GetParam().dtype), high = Decode(codes[i + 1], GetParam().dtype);
    for (const double share : {0.25, 0.5, 0.90625}) {
      const auto x = static_cast<float>(low + share * (high - low));
      int64_t up = 0, all = 0;
      for (uint32_t bits = 0; bits < 1u << width; bits += 37) {
        const uint8_t code = FloatToFp8Stochastic(x, GetParam(), bits | 0xf0000000u);
        ASSERT_TRUE(code == codes[i] || code == codes[i + 1]) << int{code};
        up += code == codes[i + 1];
        ++all;
      }
      EXPECT_NEAR(static_cast<double>(up) / static_cast<double>(all), share, 1e-4) << low << " " << share;
    }
  }
}

TEST(Fp8, TableOfCasts) {
  struct Row {
    double x, e4m3, e5m2;
  };
  for (const Row row : {Row{0.3, 0.3125, 0.3125},
                        {1.0 / 3, 0.34375, 0.3125},
                        {0.1, 0.1015625, 0.09375},
                        {300, 288, 320},
                        {17, 16, 16},
                        {19, 20, 20},
                        {0.001, 0.001953125, 0.0009765625},
                        {0x1p-10, 0, 0x1p-10},
                        {0x1.8p-9, 0x1p-8, 0x1.8p-9},
                        {1e-5, 0, 1.52587890625e-05},
                        {450, 448, 448},
                        {1.0625, 1, 1},
                        {1.1875, 1.25, 1.25}}) {
    const auto x = static_cast<float>(row.x);
    EXPECT_EQ(static_cast<double>(Fp8ToFloat(FloatToFp8(x, kE4M3), DType::kE4M3)), row.e4m3) << row.x;
    EXPECT_EQ(static_cast<double>(Fp8ToFloat(FloatToFp8(x, kE5M2), DType::kE5M2)), row.e5m2) << row.x;
  }
}

TEST(Fp8, PowerOfTwoScales) {
  EXPECT_EQ(PowerOfTwoExponent(3.7f, 448), 6);
  EXPECT_EQ(PowerOfTwoExponent(3.7f, 240), 6);
  EXPECT_EQ(PowerOfTwoExponent(3.7f, 57344), 13);
  EXPECT_EQ(PowerOfTwoExponent(448, 448), 0);
  EXPECT_EQ(PowerOfTwoExponent(448, 240), -1);
  EXPECT_EQ(PowerOfTwoExponent(448, 57344), 7);
  EXPECT_EQ(PowerOfTwoExponent(0.02f, 448), 14);
  EXPECT_EQ(PowerOfTwoExponent(0.02f, 240), 13);
  EXPECT_EQ(PowerOfTwoExponent(0.02f, 57344), 21);
  for (const float none : {0.0f, std::numeric_limits<float>::infinity(), std::nanf("")})
    EXPECT_EQ(PowerOfTwoExponent(none, 448), 0);
  Random random(5);
  for (int i = 0; i < 5000; ++i) {
    const auto amax = static_cast<float>(std::ldexp(1 + random.Uniform(), static_cast<int>(random.Below(200)) - 90));
    const int exponent = PowerOfTwoExponent(amax, 448);
    EXPECT_LE(std::ldexp(static_cast<double>(amax), exponent), 448);
    EXPECT_TRUE(exponent == 100 || std::ldexp(static_cast<double>(amax), exponent + 1) > 448) << amax;
  }
  EXPECT_EQ(PowerOfTwoExponent(1e-42f, 448), 100);
}

TEST(Fp8, Bf16ByStochasticRounding) {
  const float x = 1.0f + 0x1p-9f;  // a quarter of the way to the next bf16
  int64_t up = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t code = StochasticBf16(x, bits | 0xabcd0000u);
    ASSERT_TRUE(code == Bf16(1.0f).bits || code == Bf16(1.0f).bits + 1);
    up += code != Bf16(1.0f).bits;
  }
  EXPECT_EQ(up, 65536 / 4);
  EXPECT_EQ(StochasticBf16(-2.5f, 0xffff), Bf16(-2.5f).bits);
  EXPECT_EQ(StochasticBf16(std::numeric_limits<float>::max(), 0xffff), 0x7f7f);
  EXPECT_EQ(StochasticBf16(std::numeric_limits<float>::infinity(), 0xffff), 0x7f80);
  Bf16 nan;
  nan.bits = StochasticBf16(std::nanf(""), 0xffff);
  EXPECT_TRUE(std::isnan(static_cast<float>(nan)));
}

}  // namespace
}  // namespace quern
