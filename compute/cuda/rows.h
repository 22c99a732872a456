#pragma once

// How kernels over rows are launched.

#include "compute/cuda/device.h"
#include "compute/cuda/kernels.h"

namespace quern::cuda {

constexpr int kRowThreads = 256;
constexpr int kWide = 8;  // elements that a thread takes at a time, where alignment allows

template <typename T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  __device__ __forceinline__ T* At(int64_t row) const { return data + row * stride; }
};
template <typename T>
Rows<T> RowsOf(const TensorView& view) {
  return {static_cast<T*>(view.data), view.stride};
}
inline float* Vector(const TensorView& view) { return static_cast<float*>(view.data); }

// Calls f with a value of the element type of an fp32 or bf16 view.
template <typename F>
void WithType(const TensorView& view, F f) {
  if (view.dtype == DType::kBf16) {
    f(Bf16());
  } else {
    f(float());
  }
}
template <typename F>
void WithTypes(const TensorView& a, const TensorView& b, F f) {
  WithType(a, [&](auto ta) { WithType(b, [&](auto tb) { f(ta, tb); }); });
}

// Calls f with kWide or 1 as a type, by whether every row of every view can be read in groups.
template <typename F, typename... Views>
void WithWidth(F f, const Views&... views) {
  const auto aligned = [](const TensorView& v) {
    return v.empty() || (v.cols % kWide == 0 && reinterpret_cast<uintptr_t>(v.data) % 16 == 0 &&
                         (v.rows <= 1 || v.stride * DTypeSize(v.dtype) % 16 == 0));
  };
  if ((aligned(views) && ...)) {
    f(std::integral_constant<int, kWide>());
  } else {
    f(std::integral_constant<int, 1>());
  }
}

// op(row, column) for the first column of every group of kN of a [rows, cols] matrix.
template <int kN, typename Op>
__global__ void __launch_bounds__(kRowThreads) ForGroups(Op op, uint32_t groups, uint32_t total) {
  const uint32_t i = blockIdx.x * kRowThreads + threadIdx.x;
  if (i < total) op(int64_t{i / groups}, int64_t{i % groups} * kN);
}
template <int kN, typename Op>
void LaunchForGroups(Context& context, int64_t rows, int64_t cols, const Op& op) {
  const int64_t groups = cols / kN, total = rows * groups;
  QUERN_CHECK(total <= 0xffff0000, "more elements than a launch has");
  Launch(ForGroups<kN, Op>, dim3(static_cast<unsigned>((total + kRowThreads - 1) / kRowThreads)), dim3(kRowThreads), 0,
         context.stream(), op, static_cast<uint32_t>(groups), static_cast<uint32_t>(total));
}

}  // namespace quern::cuda
