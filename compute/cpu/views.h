#pragma once

// How kernels reach into views: with internal linkage, for the reason simd.h gives. bf16 elements are uint16_t.

#include <type_traits>

#include "compute/tensor.h"

namespace quern::cpu::QUERN_ISA {
namespace {

template <typename T>
inline T* Row(const TensorView& view, int64_t row) {
  return static_cast<T*>(view.data) + row * view.stride;
}

// Element `index` of a vector ([1, n] fp32); `fallback` for an empty view.
inline float At(const TensorView& view, int64_t index, float fallback = 0) {
  return view.data == nullptr ? fallback : static_cast<const float*>(view.data)[index];
}
inline void Put(const TensorView& view, int64_t index, float value) {
  if (view.data != nullptr) static_cast<float*>(view.data)[index] = value;
}

// Calls f(T{}) with the element type of a view that is fp32 or bf16.
template <typename F>
inline void WithType(const TensorView& view, F f) {
  if (view.dtype == DType::kBf16) {
    f(uint16_t{});
  } else {
    f(float{});
  }
}

template <typename F>
inline void WithTypes(const TensorView& a, const TensorView& b, F f) {
  WithType(a, [&](auto ta) { WithType(b, [&](auto tb) { f(ta, tb); }); });
}

}  // namespace
}  // namespace quern::cpu::QUERN_ISA
