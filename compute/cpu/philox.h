#pragma once

// Philox4x32-10 (base/random.h) for sixteen neighbouring counters at once. With internal linkage, for the reason simd.h
// gives.

#include <cstdint>

namespace quern::cpu::QUERN_ISA {
namespace {

constexpr int64_t kPhiloxLanes = 16;

struct PhiloxWords {
  alignas(64) uint32_t word[4][kPhiloxLanes];
};

// Words of the counters {low half of first + lane, high half, third, 0}.
inline void Philox(uint64_t first, uint32_t third, uint64_t seed, PhiloxWords& out) {
  alignas(64) uint32_t c0[kPhiloxLanes], c1[kPhiloxLanes], c2[kPhiloxLanes], c3[kPhiloxLanes];
  for (int64_t i = 0; i < kPhiloxLanes; ++i) {
    const uint64_t counter = first + static_cast<uint64_t>(i);
    c0[i] = static_cast<uint32_t>(counter);
    c1[i] = static_cast<uint32_t>(counter >> 32);
    c2[i] = third;
    c3[i] = 0;
  }
  auto key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int64_t i = 0; i < kPhiloxLanes; ++i) {
      const uint64_t product0 = uint64_t{0xD2511F53} * c0[i];
      const uint64_t product1 = uint64_t{0xCD9E8D57} * c2[i];
      c0[i] = static_cast<uint32_t>(product1 >> 32) ^ c1[i] ^ key0;
      c1[i] = static_cast<uint32_t>(product1);
      c2[i] = static_cast<uint32_t>(product0 >> 32) ^ c3[i] ^ key1;
      c3[i] = static_cast<uint32_t>(product0);
    }
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  for (int64_t i = 0; i < kPhiloxLanes; ++i) {
    out.word[0][i] = c0[i];
    out.word[1][i] = c1[i];
    out.word[2][i] = c2[i];
    out.word[3][i] = c3[i];
  }
}

}  // namespace
}  // namespace quern::cpu::QUERN_ISA
