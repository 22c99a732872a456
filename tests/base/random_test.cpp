#include "base/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace quern {
namespace {

using Block = std::array<uint32_t, 4>;

// Known answers of philox4x32-10 from the Random123 distribution (kat_vectors).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, EqualSeedsGiveEqualStreams) {
  Random a(7, 3), b(7, 3), other_stream(7, 4), other_seed(8, 3);
  int equal_stream = 0, equal_seed = 0;
  for (int i = 0; i < 100; ++i) {
    const uint64_t value = a.NextU64();
    EXPECT_EQ(value, b.NextU64());
    equal_stream += value == other_stream.NextU64();
    equal_seed += value == other_seed.NextU64();
  }
  EXPECT_EQ(equal_stream, 0);
  EXPECT_EQ(equal_seed, 0);
}

TEST(Random, RangesAndMoments) {
  Random random(1);
  double sum = 0, squares = 0, uniform = 0;
  std::array<int, 6> counts{};
  constexpr int kCount = 60000;
  for (int i = 0; i < kCount; ++i) {
    const double u = random.Uniform();
    const float f = random.UniformFloat();
    ASSERT_TRUE(u >= 0 && u < 1 && f >= 0 && f < 1);
    uniform += u;
    const double normal = random.Normal();
    sum += normal;
    squares += normal * normal;
    ++counts[random.Below(6)];
  }
  EXPECT_NEAR(uniform / kCount, 0.5, 0.01);
  EXPECT_NEAR(sum / kCount, 0, 0.02);
  EXPECT_NEAR(squares / kCount, 1, 0.03);
  for (const int count : counts) EXPECT_NEAR(count, kCount / 6, 400);
  EXPECT_EQ(random.Below(1), 0u);
}

TEST(Random, MixedSeedsDiffer) {
  std::set<uint64_t> seen;
  for (uint64_t a = 0; a < 40; ++a)
    for (uint64_t b = 0; b < 40; ++b) seen.insert(MixSeed(a, b));
  EXPECT_EQ(seen.size(), 1600u);
  EXPECT_NE(MixSeed(1, 2), MixSeed(2, 1));
}

}  // namespace
}  // namespace quern
