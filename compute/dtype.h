#pragma once

#include <bit>
#include <cstdint>
#include <string>

namespace quern {

// kF64 exists for the reference backend and gradient checks only.
// The FP8 types are codes: what they stand for takes a scale as well (fp8.h).
enum class DType : uint8_t { kF32, kBf16, kF16, kF64, kI32, kU8, kE4M3, kE5M2 };

constexpr int64_t DTypeSize(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kF64: return 8;
    case DType::kBf16:
    case DType::kF16: return 2;
    case DType::kU8:
    case DType::kE4M3:
    case DType::kE5M2: return 1;
  }
  return 0;
}

inline bool IsFp8(DType dtype) { return dtype == DType::kE4M3 || dtype == DType::kE5M2; }

inline const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "fp32";
    case DType::kBf16: return "bf16";
    case DType::kF16: return "fp16";
    case DType::kF64: return "fp64";
    case DType::kI32: return "int32";
    case DType::kU8: return "uint8";
    case DType::kE4M3: return "e4m3";
    case DType::kE5M2: return "e5m2";
  }
  return "?";
}

// bfloat16: the upper half of an IEEE binary32. Conversion from float rounds to nearest, ties to even; NaN stays NaN
// (quiet); subnormals are kept.
struct Bf16 {
  uint16_t bits = 0;

  Bf16() = default;
  constexpr explicit Bf16(float value) {
    const auto word = std::bit_cast<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<uint16_t>((word >> 16) | 0x40u);
    } else {
      bits = static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
    }
  }
  constexpr explicit operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

float HalfToFloat(uint16_t bits);   // IEEE binary16, exact
uint16_t FloatToHalf(float value);  // round to nearest even, overflow to infinity

template <typename T>
constexpr DType kDTypeOf = DType::kU8;
template <>
inline constexpr DType kDTypeOf<float> = DType::kF32;
template <>
inline constexpr DType kDTypeOf<double> = DType::kF64;
template <>
inline constexpr DType kDTypeOf<Bf16> = DType::kBf16;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::kI32;

}  // namespace quern
