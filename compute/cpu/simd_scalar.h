#pragma once

// Sixteen floats one by one, for any CPU; the compiler makes of it what it can. Included by simd.h only, which says
// what the functions promise.

#include <cstdint>
#include <cstring>

namespace quern::cpu::QUERN_ISA {
namespace {

constexpr int kAccumulators = 4;

struct F16 {
  float v[kLanes];
};

template <typename F>
inline F16 PerLane(F f) {
  F16 out;
  for (int64_t i = 0; i < kLanes; ++i) out.v[i] = f(i);
  return out;
}
inline float FloatOf(uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline uint32_t BitsOf(float x) {
  uint32_t out;
  std::memcpy(&out, &x, 4);
  return out;
}
inline float ToFloat(float x) { return x; }
inline float ToFloat(uint16_t x) { return FloatOf(uint32_t{x} << 16); }
inline void Put(float* p, float x) { *p = x; }
inline void Put(uint16_t* p, float x) {
  const uint32_t bits = BitsOf(x);
  *p = static_cast<uint16_t>(x != x ? (bits | 0x400000u) >> 16 : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline F16 Zero() { return {}; }
inline F16 Set(float x) {
  return PerLane([&](int64_t) { return x; });
}
template <typename T>
inline F16 Load(const T* p, All = {}) {
  return PerLane([&](int64_t i) { return ToFloat(p[i]); });
}
template <typename T>
inline F16 Load(const T* p, int64_t n) {
  return PerLane([&](int64_t i) { return i < n ? ToFloat(p[i]) : 0.0f; });
}
template <typename T>
inline void Store(T* p, F16 a, All = {}) {
  for (int64_t i = 0; i < kLanes; ++i) Put(p + i, a.v[i]);
}
template <typename T>
inline void Store(T* p, F16 a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) Put(p + i, a.v[i]);
}
inline F16 operator+(F16 a, F16 b) {
  return PerLane([&](int64_t i) { return a.v[i] + b.v[i]; });
}
inline F16 operator-(F16 a, F16 b) {
  return PerLane([&](int64_t i) { return a.v[i] - b.v[i]; });
}
inline F16 operator*(F16 a, F16 b) {
  return PerLane([&](int64_t i) { return a.v[i] * b.v[i]; });
}
inline F16 operator/(F16 a, F16 b) {
  return PerLane([&](int64_t i) { return a.v[i] / b.v[i]; });
}
inline F16 Fma(F16 a, F16 b, F16 c) { return a * b + c; }
inline F16 Fnma(F16 a, F16 b, F16 c) { return c - a * b; }
inline F16 Max(F16 a, F16 b) {
  return PerLane([&](int64_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F16 Min(F16 a, F16 b) {
  return PerLane([&](int64_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F16 Sqrt(F16 a) {
  return PerLane([&](int64_t i) { return __builtin_sqrtf(a.v[i]); });
}
inline F16 IfLess(F16 x, F16 y, F16 a, F16 b) {
  return PerLane([&](int64_t i) { return x.v[i] < y.v[i] ? a.v[i] : b.v[i]; });
}
inline F16 InRange(int64_t begin, int64_t end, F16 a, F16 b) {
  return PerLane([&](int64_t i) { return i >= begin && i < end ? a.v[i] : b.v[i]; });
}
inline F16 RoundEven(F16 a) {  // |a| < 2^22
  return PerLane([&](int64_t i) { return (a.v[i] + 0x1.8p23f) - 0x1.8p23f; });
}
inline F16 ScaleUnlessLess(F16 x, F16 least, F16 a, F16 n) {
  return PerLane([&](int64_t i) {
    const bool less = x.v[i] < least.v[i];
    const auto whole = static_cast<int32_t>(less || !(n.v[i] < 128) ? 0.0f : n.v[i]);
    return less ? 0.0f : a.v[i] * FloatOf(static_cast<uint32_t>(whole + 127) << 23);
  });
}

// Lanes are folded in halves: 8, 4, 2, 1.
inline float SumLanes(F16 a) {
  for (int64_t half = 8; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  return a.v[0];
}
inline float MaxLanes(F16 a) {
  float out = a.v[0];
  for (int64_t i = 1; i < kLanes; ++i) out = a.v[i] > out ? a.v[i] : out;
  return out;
}

}  // namespace
}  // namespace quern::cpu::QUERN_ISA
