#include "base/random.h"

#include <cmath>
#include <numbers>

namespace quern {

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

uint64_t MixSeed(uint64_t a, uint64_t b) {
  const auto out = Philox4x32({static_cast<uint32_t>(b), static_cast<uint32_t>(b >> 32), 0x51, 0x7EED},
                              {static_cast<uint32_t>(a), static_cast<uint32_t>(a >> 32)});
  return (uint64_t{out[1]} << 32) | out[0];
}

uint32_t Random::NextU32() {
  if (left_ == 0) {
    buffer_ = Philox4x32({static_cast<uint32_t>(counter_), static_cast<uint32_t>(counter_ >> 32),
                          static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)},
                         {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
    ++counter_;
    left_ = 4;
  }
  return buffer_[4 - left_--];
}

uint64_t Random::NextU64() {
  const uint64_t low = NextU32();
  return (uint64_t{NextU32()} << 32) | low;
}

uint64_t Random::Below(uint64_t bound) {
  const uint64_t threshold = -bound % bound;
  while (true) {
    const uint64_t value = NextU64();
    if (value >= threshold) return value % bound;
  }
}

double Random::Uniform() { return static_cast<double>(NextU64() >> 11) * 0x1.0p-53; }
float Random::UniformFloat() { return static_cast<float>(NextU32() >> 8) * 0x1.0p-24f; }

double Random::Normal() {
  const double u = 1.0 - Uniform();
  const double v = Uniform();
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

}  // namespace quern
