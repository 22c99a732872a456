#include "compute/cpu/kernels.h"
#include "compute/cpu/logit_blocks.h"
#include "compute/cpu/simd.h"
#include "compute/cpu/views.h"

namespace quern::cpu::QUERN_ISA {

namespace {

// Sums over one block of logits, relative to its largest.
struct BlockSums {
  float max = 0;          // of z
  float mass = 0;         // sum of e^(z - max)
  float sum = 0;          // sum of z - max
  float mass_offset = 0;  // sum of e^(z - max) (z - max)
};

// kOffsets: also the two sums that only the mean and the entropy need.
template <bool kOffsets>
BlockSums SumBlock(const float* z, int64_t n) {
  BlockSums out;
  out.max = BlockMax(z, n);
  F16 sum[4] = {Zero(), Zero(), Zero(), Zero()};
  F16 mass_offset[4] = {Zero(), Zero(), Zero(), Zero()};
  out.mass = SumLanes(LaneMass(z, n, Origin(out.max), [&](int64_t, int64_t j, F16 offset, F16 e, F16) {
    if constexpr (kOffsets) {
      sum[j] = sum[j] + offset;
      // A logit of -infinity has no mass: its 0 * infinity is left out.
      mass_offset[j] = mass_offset[j] + IfLess(Zero(), e, e * offset, e);
    }
  }));
  if constexpr (kOffsets) {
    const auto total = [](const F16* part) { return SumLanes((part[0] + part[1]) + (part[2] + part[3])); };
    out.sum = total(sum);
    out.mass_offset = total(mass_offset);
  }
  return out;
}

}  // namespace

void LogSoftmax(const LogSoftmaxArgs& args, int64_t begin, int64_t end, float* scratch) {
  const int64_t n = args.logits.cols, blocks = LogitBlocks(n);
  const bool offsets = args.mean_log_prob.data != nullptr || args.entropy.data != nullptr;
  float *maxima = scratch, *masses = maxima + blocks, *own_masses = masses + blocks, *sums = own_masses + blocks,
        *mass_offsets = sums + blocks;
  const auto length = [&](int64_t b) { return b + 1 < blocks ? kLogitBlock : n - b * kLogitBlock; };
  for (int64_t row = begin; row < end; ++row) {
    const float* z = Row<float>(args.logits, row);
    for (int64_t b = 0; b < blocks; ++b) {
      const float* at = z + b * kLogitBlock;
      const BlockSums block = offsets ? SumBlock<true>(at, length(b)) : SumBlock<false>(at, length(b));
      maxima[b] = block.max;
      masses[b] = own_masses[b] = block.mass;
      sums[b] = block.sum;
      mass_offsets[b] = block.mass_offset;
    }
    const RowSums total = SumRow(maxima, masses, blocks);
    const float log_mass = __builtin_logf(total.mass);
    const float lse = total.max + log_mass;
    Put(args.lse, row, lse);
    if (args.log_prob.data != nullptr) Put(args.log_prob, row, z[args.targets.data()[row]] - lse);
    if (!offsets) continue;
    float sum = 0, mass_offset = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const float offset = Origin(maxima[b]) - total.max;
      sum += sums[b] + static_cast<float>(length(b)) * offset;
      if (own_masses[b] > 0) mass_offset += masses[b] / own_masses[b] * (mass_offsets[b] + own_masses[b] * offset);
    }
    Put(args.mean_log_prob, row, sum / static_cast<float>(n) - log_mass);
    Put(args.entropy, row, log_mass - mass_offset / total.mass);
  }
}

void LogSoftmaxBackward(const LogSoftmaxBackwardArgs& args, int64_t begin, int64_t end) {
  const int64_t n = args.logits.cols;
  WithType(args.dlogits, [&](auto type) {
    for (int64_t row = begin; row < end; ++row) {
      const float* z = Row<float>(args.logits, row);
      auto* dz = Row<decltype(type)>(args.dlogits, row);
      const float a = At(args.a, row), b = At(args.b, row), c = At(args.c, row);
      const float lse = At(args.lse, row);
      const F16 slope = Set(-(a + b + c));
      const F16 base = Set(b / static_cast<float>(n));
      // What differs from the common term is computed from the logits before they may be overwritten.
      const auto special = [&](float logit, float extra) {
        return Fma(slope, Exp(Set(logit - lse)), base) + Set(extra);
      };
      const int64_t target = args.targets.data()[row];
      const int64_t reserved = args.reserved;
      const F16 at_target = special(z[target], a + (target == reserved ? c : 0.0f));
      const F16 at_reserved = reserved < 0 ? Zero() : special(z[reserved], c);
      ForVectors(n, [&](int64_t i, auto lanes) {
        Store(dz + i, Fma(slope, Exp(Load(z + i, lanes) - Set(lse)), base), lanes);
      });
      if (reserved >= 0) Store(dz + reserved, at_reserved, 1);
      Store(dz + target, at_target, 1);
    }
  });
}

}  // namespace quern::cpu::QUERN_ISA
