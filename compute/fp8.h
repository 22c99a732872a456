#pragma once

#include <bit>
#include <cstdint>

#include "compute/dtype.h"

// 8-bit floating point (Micikevicius et al., arXiv 2209.05433; OCP OFP8). E4M3: bias 7, no infinities, NaN is
// S.1111.111 only, largest 448 ("fn"), smallest 2^-9. E5M2: bias 15, IEEE infinities and NaNs, largest 57344, smallest
// 2^-16.

namespace quern {

// `max` is where casts saturate: a machine whose E4M3 ends at 240 (Gaudi) uses the same codes up to there.
struct Fp8Format {
  DType dtype = DType::kE4M3;
  float max = 448.0f;
};
inline constexpr Fp8Format kE4M3{DType::kE4M3, 448.0f};
inline constexpr Fp8Format kE4M3Gaudi{DType::kE4M3, 240.0f};
inline constexpr Fp8Format kE5M2{DType::kE5M2, 57344.0f};

float Fp8ToFloat(uint8_t code, DType dtype);  // exact
const float* Fp8Values(DType dtype);          // of all 256 codes

// Nearest, ties to even; beyond `max`, infinities included, +-max; NaN is 0x7f. As cvt.rn.satfinite of PTX.
uint8_t FloatToFp8(float x, const Fp8Format& format);

// One of the two neighbours of x, the upper with the probability that makes x the mean, from the low 20 (E4M3) or 21
// (E5M2) of 32 uniform bits. Values that are codes, NaN and values beyond `max` as above.
uint8_t FloatToFp8Stochastic(float x, const Fp8Format& format, uint32_t bits);

// floor(log2(max / amax)), at most 100: 2^ of it scales values of magnitudes up to amax to the format's range without
// touching their mantissas. 0 for amax 0, infinite or NaN.
int PowerOfTwoExponent(float amax, float max);

// 2^-ceil(log2 amax), within 2^-30 and 2^30: the Smooth-SwiGLU scale of what reaches amax; 1 for 0 and what is not
// finite. constexpr, so that GPU kernels may call it.
constexpr float SmoothScale(float amax) {
  const auto bits = std::bit_cast<uint32_t>(amax);
  if (!(amax > 0) || bits >> 23 == 255) return 1.0f;
  const int ceiling = static_cast<int>(bits >> 23) - 127 + ((bits & 0x7fffffu) != 0 ? 1 : 0);
  const int power = ceiling < -30 ? 30 : ceiling > 30 ? -30 : -ceiling;
  return std::bit_cast<float>(static_cast<uint32_t>(127 + power) << 23);
}

// The arithmetic of the casts for one format, branchless, so that loops over it become vector code. Always inlined: a
// copy compiled for one instruction set must not serve another. constexpr, so that GPU kernels may call it.
template <int kMantissa, int kBias>
struct Fp8Codec {
  static constexpr int kShift = 23 - kMantissa;
  static constexpr uint32_t kRebias = uint32_t{127 - kBias} << kMantissa;
  static constexpr uint32_t kMinNormal = uint32_t{127 + 1 - kBias} << 23;
  static constexpr uint32_t kInfinity = 0x7f800000u;
  static constexpr uint32_t kNan = 0x7f;

  [[gnu::always_inline]] static constexpr uint32_t Finish(uint32_t word, uint32_t code, uint32_t max_bits) {
    const uint32_t magnitude = word & 0x7fffffffu;
    const uint32_t largest = (max_bits >> kShift) - kRebias;
    const uint32_t held = (magnitude >= max_bits ? largest : code) | ((word >> 24) & 0x80u);
    return magnitude > kInfinity ? kNan : held;
  }
  [[gnu::always_inline]] static constexpr uint32_t Nearest(float x, uint32_t max_bits) {
    const auto word = std::bit_cast<uint32_t>(x);
    const uint32_t magnitude = word & 0x7fffffffu;
    constexpr uint32_t kHalf = (1u << (kShift - 1)) - 1;
    const uint32_t normal = ((magnitude + kHalf + ((magnitude >> kShift) & 1u)) >> kShift) - kRebias;
    // The adder rounds at the subnormals' spacing.
    constexpr uint32_t kSpacing = uint32_t{127 + 23 + 1 - kBias - kMantissa} << 23;
    const float sum = std::bit_cast<float>(magnitude) + std::bit_cast<float>(kSpacing);
    const uint32_t subnormal = std::bit_cast<uint32_t>(sum) - kSpacing;
    return Finish(word, magnitude < kMinNormal ? subnormal : normal, max_bits);
  }
  [[gnu::always_inline]] static constexpr uint32_t Stochastic(float x, uint32_t max_bits, uint32_t bits) {
    const auto word = std::bit_cast<uint32_t>(x);
    const uint32_t magnitude = word & 0x7fffffffu;
    const uint32_t random = bits & ((1u << kShift) - 1);
    const uint32_t normal = ((magnitude + random) >> kShift) - kRebias;
    // In units of 2^-kShift of the spacing: below 2^23.
    constexpr uint32_t kUnits = uint32_t{127 + kBias - 1 + 23} << 23;
    const float low = std::bit_cast<float>(magnitude < kMinNormal ? magnitude : 0u);
    const auto units = static_cast<uint32_t>(static_cast<int32_t>(low * std::bit_cast<float>(kUnits)));
    const uint32_t subnormal = (units + random) >> kShift;
    return Finish(word, magnitude < kMinNormal ? subnormal : normal, max_bits);
  }
};
using E4M3Codec = Fp8Codec<3, 7>;
using E5M2Codec = Fp8Codec<2, 15>;

// bf16 by stochastic rounding with the low 16 of `bits`. NaN and infinities stay; a finite value stays finite.
[[gnu::always_inline]] constexpr uint16_t StochasticBf16(float x, uint32_t bits) {
  const auto word = std::bit_cast<uint32_t>(x);
  const uint32_t magnitude = word & 0x7fffffffu;
  const uint32_t rounded = word + (bits & 0xffffu);
  const uint32_t held = (rounded & 0x7fffffffu) >= 0x7f800000u ? word : rounded;
  return static_cast<uint16_t>((magnitude > 0x7f800000u ? word | 0x400000u : held) >> 16);
}

}  // namespace quern
