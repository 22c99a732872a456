#include "compute/cpu/kernels.h"
#include "compute/cpu/logit_blocks.h"
#include "compute/cpu/simd.h"

namespace quern::cpu::QUERN_ISA {

namespace {

// The element at which the running sum of `masses` goes beyond `left`; where rounding lets it run past the end, the
// last one that has mass; -1 where none has.
int64_t Walk(const float* masses, int64_t count, float left) {
  int64_t last = -1;
  for (int64_t i = 0; i < count; ++i) {
    const float mass = masses[i];
    if (!(mass > 0)) continue;
    last = i;
    if (left < mass) return i;
    left -= mass;
  }
  return last;
}

// How many of `count` running sums, `step` apart, are not beyond `left`: which part it falls into, the last one that
// has mass where rounding would let it run past `total`. `left` becomes what is left of it there. No branches: nothing
// could foretell them.
template <int64_t step>
inline int64_t Part(const float* sums, int64_t count, float total, float& left) {
  const float most = total * (1 - 0x1p-24f);  // less than total
  left = left < most ? left : most;
  int32_t part = 0;
  for (int64_t i = 0; i < count; ++i) part += sums[i * step] <= left ? 1 : 0;
  if (part > 0) left -= sums[(part - 1) * step];
  return part;
}

}  // namespace

void DrawInBlock(const float* z, int64_t n, const DrawUniforms& by, BlockDraw& out) {
  constexpr int64_t kSums = 4, kStep = kSums * kLanes;
  alignas(64) float sums[kLogitBlock + kStep];  // running ones
  out.max = BlockMax(z, n);
  const float origin = Origin(out.max);
  const auto keep = [&](int64_t i, int64_t, F16, F16, F16 sum) { Store(sums + i, sum); };
  F16 mass = LaneMass(z, n, origin, keep);
  out.mass = out.weight = SumLanes(mass);
  if (by.inverse_temperature != 1) {
    const F16 scale = Set(by.inverse_temperature);
    mass = LaneMass(
        z, n, origin, [&](F16 offset) { return offset * scale; }, keep);
    out.weight = SumLanes(mass);
  }
  out.index = 0;
  if (by.in_block < 0) {
    while (out.index + 1 < n && z[out.index] != out.max) ++out.index;
  } else if (out.weight > 0) {
    const int64_t vectors = (n + kLanes - 1) / kLanes, rows = (vectors + kSums - 1) / kSums;
    for (int64_t v = vectors; v < rows * kSums; ++v) Store(sums + v * kLanes, Set(kInfinity));
    float parts[kLanes], of_lane[kSums];
    Store(parts, mass);
    for (int64_t i = 1; i < kLanes; ++i) parts[i] += parts[i - 1];
    float left = by.in_block * out.weight;
    const int64_t lane = Part<1>(parts, kLanes, parts[kLanes - 1], left);
    for (int64_t j = 0; j < kSums; ++j) {
      const int64_t last = (vectors - 1 - j) / kSums * kSums + j;
      of_lane[j] = j < vectors ? sums[last * kLanes + lane] : 0;
    }
    const float own[kSums] = {of_lane[0], of_lane[1], of_lane[2], of_lane[3]};
    of_lane[1] += own[0];
    of_lane[2] += of_lane[1];
    of_lane[3] = of_lane[1] + (own[2] + own[3]);
    const int64_t j = Part<1>(of_lane, kSums, of_lane[3], left);
    const int64_t row = Part<kStep>(sums + j * kLanes + lane, rows, own[j], left);
    out.index = static_cast<int32_t>(row * kStep + j * kLanes + lane);
  }
  out.logit = z[out.index];
}

int64_t DrawBlock(const BlockDraw* draws, int64_t blocks, const DrawUniforms& by, float* scratch, float* lse) {
  float *maxima = scratch, *masses = scratch + blocks;
  for (int64_t b = 0; b < blocks; ++b) {
    maxima[b] = draws[b].max;
    masses[b] = draws[b].mass;
  }
  RowSums total = SumRow(maxima, masses, blocks);
  *lse = total.max + __builtin_logf(total.mass);
  if (by.block < 0) {
    int64_t b = 0;
    while (b + 1 < blocks && maxima[b] != total.max) ++b;
    return b;
  }
  if (by.inverse_temperature != 1) {
    for (int64_t b = 0; b < blocks; ++b) masses[b] = draws[b].weight;
    total = SumRow(maxima, masses, blocks, by.inverse_temperature);
  }
  const float left = by.block * total.mass;
  return Walk(masses, blocks, left);
}

}  // namespace quern::cpu::QUERN_ISA
