#pragma once

#include <array>
#include <cstdint>

namespace quern {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a pure function of (key,
// counter).
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A 64-bit mix of two words, for deriving seeds: (job seed, episode index) -> seed.
uint64_t MixSeed(uint64_t a, uint64_t b);

// A stream of numbers from (seed, stream). Cheap to make; equal arguments give equal numbers on every machine. Not
// thread-safe: make one per use.
class Random {
 public:
  explicit Random(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  uint32_t NextU32();
  uint64_t NextU64();
  // Uniform in [0, bound), without modulo bias. bound > 0.
  uint64_t Below(uint64_t bound);
  double Uniform();      // [0, 1), 53 bits
  float UniformFloat();  // [0, 1), 24 bits
  double Normal();       // standard normal (Box-Muller)

 private:
  uint64_t seed_;
  uint64_t stream_;
  uint64_t counter_ = 0;
  std::array<uint32_t, 4> buffer_{};
  int left_ = 0;
};

}  // namespace quern
