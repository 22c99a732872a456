#include "compute/fp8.h"

#include <algorithm>
#include <array>

namespace quern {

float Fp8ToFloat(uint8_t code, DType dtype) {
  const uint32_t sign = uint32_t{code & 0x80u} << 24;
  const uint32_t magnitude = code & 0x7fu;
  const bool e4m3 = dtype == DType::kE4M3;
  const uint32_t infinity = e4m3 ? 0x7fu : 0x7cu;
  if (magnitude >= infinity) {
    const bool nan = e4m3 || magnitude > infinity;
    return std::bit_cast<float>(sign | (nan ? 0x7fc00000u : 0x7f800000u));
  }
  // The bits as an fp32 value, subnormals included, are too small by the difference of the biases.
  const float value = e4m3 ? std::bit_cast<float>(magnitude << E4M3Codec::kShift) * 0x1p120f
                           : std::bit_cast<float>(magnitude << E5M2Codec::kShift) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

const float* Fp8Values(DType dtype) {
  const auto table = [](DType of) {
    std::array<float, 256> values{};
    for (size_t code = 0; code < values.size(); ++code) values[code] = Fp8ToFloat(static_cast<uint8_t>(code), of);
    return values;
  };
  static const std::array<float, 256> kE4M3Values = table(DType::kE4M3), kE5M2Values = table(DType::kE5M2);
  return dtype == DType::kE4M3 ? kE4M3Values.data() : kE5M2Values.data();
}

uint8_t FloatToFp8(float x, const Fp8Format& format) {
  const auto max = std::bit_cast<uint32_t>(format.max);
  return static_cast<uint8_t>(format.dtype == DType::kE4M3 ? E4M3Codec::Nearest(x, max) : E5M2Codec::Nearest(x, max));
}

uint8_t FloatToFp8Stochastic(float x, const Fp8Format& format, uint32_t bits) {
  const auto max = std::bit_cast<uint32_t>(format.max);
  return static_cast<uint8_t>(format.dtype == DType::kE4M3 ? E4M3Codec::Stochastic(x, max, bits)
                                                           : E5M2Codec::Stochastic(x, max, bits));
}

int PowerOfTwoExponent(float amax, float max) {
  constexpr int kMost = 100;
  const auto bits = std::bit_cast<uint32_t>(amax) & 0x7fffffffu;
  if (bits == 0 || bits >= 0x7f800000u) return 0;
  const auto max_bits = std::bit_cast<uint32_t>(max);
  // Subnormal amax has exponent 0 here, far beyond kMost.
  const int difference = static_cast<int>(max_bits >> 23) - static_cast<int>(bits >> 23);
  const bool fits = (bits & 0x7fffffu) <= (max_bits & 0x7fffffu);
  return std::min(kMost, fits ? difference : difference - 1);
}

}  // namespace quern
