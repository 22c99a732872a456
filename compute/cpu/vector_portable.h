#pragma once

#include <cstdint>
#include <cstring>

#include "compute/dtype.h"

// Vector types of gemm_tile.h from the compiler's generic vectors: any CPU. Internal linkage: see there.

namespace quern::cpu {
namespace {

struct PortableFp32 {
  using Acc = float __attribute__((vector_size(16)));
  using Words = uint32_t __attribute__((vector_size(16)));
  using A = Acc;
  using B = Acc;
  static constexpr int kLanes = 4;
  static constexpr int kHalves = 1;
  static Acc Zero() { return Acc{}; }
  static Acc Load(const float* p) {
    Acc x;
    std::memcpy(&x, p, sizeof(x));
    return x;
  }
  static void Store(float* p, Acc x) { std::memcpy(p, &x, sizeof(x)); }
  static Acc Add(Acc x, Acc y) { return x + y; }
  static B LoadB(const uint32_t* p, int) { return Load(reinterpret_cast<const float*>(p)); }
  static A BroadcastA(const uint8_t* p) {
    float x;
    std::memcpy(&x, p, 4);
    return Acc{x, x, x, x};
  }
  static A BroadcastHalfWord(const uint8_t*) { return Acc{}; }
  static Acc MulAdd(A a, B b, Acc acc) { return acc + a * b; }
  static void StoreBf16(uint16_t* p, Acc x) {
    for (int i = 0; i < kLanes; ++i) p[i] = Bf16(x[i]).bits;
  }
};

struct PortableWiden : PortableFp32 {
  static constexpr int kHalves = 2;
  static B LoadB(const uint32_t* p, int half) {
    Words words;
    std::memcpy(&words, p, sizeof(words));
    words = half == 0 ? words << 16 : words & 0xffff0000u;
    Acc x;
    std::memcpy(&x, &words, sizeof(x));
    return x;
  }
};

}  // namespace
}  // namespace quern::cpu
