#pragma once

// Runs kernels on the CPU, for tests. Every thread of a block has a stack of its own and they take turns at barriers
// and warp operations, so a kernel is compiled as it stands. A barrier or warp operation that some threads do not reach
// is a CHECK failure; the order in which threads run can be changed, which brings out missing barriers; dynamic shared
// memory starts as NaN; the device's memory is out of reach outside kernels and copies, so that a host that reads it
// ends in a segmentation fault. x86-64 only. Several threads of the process take turns.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "base/check.h"
#include "compute/dtype.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define QUERN_DYNAMIC_SHARED(name) unsigned char* const name = ::quern::cuda::emulator::DynamicShared()

// DeviceAccess for a library that is loaded when the program runs (a stand-in for NCCL): 1 begins it, 0 ends it.
extern "C" void QuernDeviceAccess(int begin);

namespace quern::cuda {

struct dim3 {
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  unsigned x, y, z;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// While one lives its thread may read and write the device's memory, and no other has one.
class DeviceAccess {
 public:
  DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
  ~DeviceAccess();
};

// In which order the threads of a block, and the blocks, run: 0 ascending, 1 descending, else shuffled. Even orders
// give everyone a turn, odd ones let the first warp run as far ahead as barriers let it.
void SetOrder(uint64_t order);
void Run(dim3 grid, dim3 block, int64_t shared, const std::function<void()>& body);
// Does it; or, while graphs are captured, writes it down: `launches` until it is null again.
void Queue(std::function<void()> launch);
void Capture(std::vector<std::function<void()>>* launches);
unsigned char* DynamicShared();
void Barrier();
// Waits until all lanes of the warp are here, then op(args of lane 0 .. 31) happens once.
void WarpOperation(void* args, void (*op)(void* const* args));

}  // namespace emulator

template <typename... Params, typename... Args>
void LaunchNow(void (*kernel)(Params...), dim3 grid, dim3 block, int64_t shared, struct CUstream_st*,
               const Args&... args) {
  QUERN_CHECK(shared <= 227 * 1024 && block.x * block.y * block.z <= 1024 && grid.y <= 65535 && grid.z <= 65535);
  emulator::Queue([=] { emulator::Run(grid, block, shared, [&] { kernel(args...); }); });
}

inline void __syncthreads() { emulator::Barrier(); }
inline void __syncwarp() {
  emulator::WarpOperation(nullptr, [](void* const*) {});
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline uint32_t atomicMax(uint32_t* at, uint32_t value) {
  const uint32_t old = *at;
  if (value > old) *at = value;
  return old;
}
inline int atomicAdd(int* at, int value) {
  const int old = *at;
  *at += value;
  return old;
}

template <typename T>
T ShuffleFrom(T value, int lane) {
  struct Args {
    T value, out;
    int lane;
  } args{value, {}, lane};
  emulator::WarpOperation(&args, [](void* const* all) {
    for (int i = 0; i < 32; ++i) {
      auto& own = *static_cast<Args*>(all[i]);
      own.out = static_cast<Args*>(all[own.lane])->value;
    }
  });
  return args.out;
}
template <typename T>
T ShuffleXor(T value, int lanes) {
  return ShuffleFrom(value, static_cast<int>(threadIdx.x % 32) ^ lanes);
}

void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void LoadMatrices(uint32_t (&r)[4], const void* row);
void LoadMatricesTransposed(uint32_t (&r)[4], const void* row);
// With an even order as late as may be, when the thread waits for them; with an odd one at once.
void CopyAsync(void* shared, const void* global, int bytes = 16);
void CommitCopies();
void AwaitCopies(int groups);
template <int kGroups>
void AwaitCopies() {
  AwaitCopies(kGroups);
}

inline uint32_t PackBf16(float low, float high) { return uint32_t{Bf16(low).bits} | uint32_t{Bf16(high).bits} << 16; }

}  // namespace quern::cuda
