#pragma once

// What kernels are written with. Every kernel is compiled twice: by nvcc for the GPU and, with QUERN_CUDA_EMULATED, by
// the host's compiler for the emulator (emulator.h), so that tests run the kernels' own text where there is no GPU.

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "compute/dtype.h"
#include "compute/fp8.h"
#ifdef QUERN_CUDA_EMULATED
#include "compute/cuda/emulator.h"
#include "compute/cuda/recorder.h"
#else
#include <cuda_runtime.h>

#include "base/check.h"
#include "compute/cuda/recorder.h"
#endif

namespace quern::cuda {

constexpr int kWarp = 32;

#ifndef QUERN_CUDA_EMULATED

#define QUERN_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

inline void CheckCuda(cudaError_t error, const char* what) {
  QUERN_CHECK(error == cudaSuccess, std::string(what) + ": " + cudaGetErrorString(error));
}

// kernel<<<grid, block, shared, stream>>>(args...).
template <typename... Params, typename... Args>
void LaunchNow(void (*kernel)(Params...), dim3 grid, dim3 block, int64_t shared, Stream stream, const Args&... args) {
  if (shared > 48 * 1024)
    CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
              "shared memory of a kernel");
  kernel<<<grid, block, static_cast<size_t>(shared), stream>>>(args...);
  CheckCuda(cudaGetLastError(), "launch of a kernel");
}

template <typename T>
__device__ __forceinline__ T ShuffleXor(T value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, value, lanes);
}
template <typename T>
__device__ __forceinline__ T ShuffleFrom(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// d += a b of the warp's 16x8x16 tile, bf16 with fp32 sums (PTX mma.sync.m16n8k16). With g = lane / 4, t = lane % 4:
// a = {rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8}, each a pair of neighbouring columns; b = {column g
// at rows 2t and 2t + 8}, pairs of neighbouring rows; d = {row g at columns 2t, 2t + 1, row g + 8 at the same}.
__device__ __forceinline__ void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of 16-bit elements from shared memory; lane i gives the address of row i % 8 of matrix i / 8. A
// lane gets of each matrix the elements 2 (lane % 4) and the next of row lane / 4; transposed: of column lane / 4.
__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// 16 bytes from global to shared memory, in the background; zeros when `bytes` is 0.
__device__ __forceinline__ void CopyAsync(void* shared, const void* global, int bytes = 16) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kGroups of this thread's groups are under way.
template <int kGroups>
__device__ __forceinline__ void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Two floats as bf16 in one word, rounded to nearest even.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

#endif  // QUERN_CUDA_EMULATED

// kernel<<<grid, block, shared>>>(args...) in the queue.
template <typename... Params, typename... Args>
void Launch(void (*kernel)(Params...), dim3 grid, dim3 block, int64_t shared, const Queue& queue, const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (!queue.recording()) return LaunchNow(kernel, grid, block, shared, queue.stream, args...);
  Recorder::Entry entry;
  AppendIdentity(kernel, entry.identity);
  for (const unsigned size : {grid.x, grid.y, grid.z, block.x, block.y, block.z}) AppendIdentity(size, entry.identity);
  AppendIdentity(shared, entry.identity);
  (AppendIdentity<std::remove_cv_t<Params>>(args, entry.identity), ...);
  entry.queue = [=] { LaunchNow(kernel, grid, block, shared, queue.stream, args...); };
  queue.recorder->Add(std::move(entry));
}

// N consecutive elements, read or written in pieces of up to 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Group {
  T values[N];
};
template <int N, typename T>
__device__ __forceinline__ void Load(const T* from, float (&out)[N]) {
  const Group<T, N> group = *reinterpret_cast<const Group<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = static_cast<float>(group.values[i]);
}
template <int N, typename T>
__device__ __forceinline__ void Store(T* to, const float (&in)[N]) {
  Group<T, N> group;
#pragma unroll
  for (int i = 0; i < N; ++i) group.values[i] = T(in[i]);
  *reinterpret_cast<Group<T, N>*>(to) = group;
}

struct Sum {
  template <typename T>
  static __device__ __forceinline__ T Of(T a, T b) {
    return a + b;
  }
};
struct Max {
  template <typename T>
  static __device__ __forceinline__ T Of(T a, T b) {
    return a > b ? a : b;
  }
};

// Reductions in one fixed order; every thread gets the result.
template <typename Op, typename T>
__device__ __forceinline__ T WarpReduce(T value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value = Op::Of(value, ShuffleXor(value, lanes));
  return value;
}
template <typename Op, typename T>
__device__ __forceinline__ T BlockReduce(T value) {
  __shared__ T parts[kWarp];
  value = WarpReduce<Op>(value);
  __syncthreads();  // what an earlier call left has been read
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  T out = parts[0];
  for (unsigned i = 1; i < blockDim.x / kWarp; ++i) out = Op::Of(out, parts[i]);
  return out;
}

// Bits of |x|: ordered as magnitudes are, NaN above everything.
__device__ __forceinline__ uint32_t MagnitudeBits(float x) { return std::bit_cast<uint32_t>(x) & 0x7fffffffu; }

// Philox4x32-10 (base/random.h).
__device__ __forceinline__ void Philox(uint32_t (&c)[4], uint64_t seed) {
  auto key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c[0], product1 = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ c[1] ^ key0;
    const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ c[3] ^ key1;
    c[1] = static_cast<uint32_t>(product1);
    c[3] = static_cast<uint32_t>(product0);
    c[0] = next0;
    c[2] = next2;
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
}

}  // namespace quern::cuda
