#include "compute/cpu/kernels.h"
#include "compute/cpu/logit_blocks.h"
#include "compute/cpu/simd.h"

namespace quern::cpu::QUERN_ISA {

namespace {

// The element at which the running sum of `masses` goes beyond `left`, which becomes what is left of it there. Where
// rounding lets it run past the end, the last one that has mass; -1 where none has.
int64_t Walk(const float* masses, int64_t count, int64_t step, float& left) {
  int64_t last = -1;
  for (int64_t i = 0; i < count; ++i) {
    const float mass = masses[i * step];
    if (!(mass > 0)) continue;
    last = i;
    if (left < mass) return i;
    left -= mass;
  }
  return last;
}

}  // namespace

// The inverse of the distribution function goes through the lanes first, then through a lane's elements: an order of a
// block's ids is as good as another.
void DrawInBlock(const float* z, int64_t n, float uniform, BlockDraw& out) {
  alignas(64) float weights[kLogitBlock + kLanes], lanes[kLanes];
  out.max = BlockMax(z, n);
  const F16 mass = LaneMass(z, n, Origin(out.max), [&](int64_t i, int64_t, F16, F16 e) { Store(weights + i, e); });
  out.mass = SumLanes(mass);
  if (uniform < 0) {
    out.index = 0;
    while (out.index + 1 < n && z[out.index] != out.max) ++out.index;
  } else {
    Store(lanes, mass);
    float left = uniform * out.mass;
    const int64_t lane = Walk(lanes, kLanes, 1, left);
    const int64_t i = lane < 0 ? -1 : Walk(weights + lane, (n - lane + kLanes - 1) / kLanes, kLanes, left);
    out.index = i < 0 ? 0 : static_cast<int32_t>(i * kLanes + lane);
  }
  out.logit = z[out.index];
}

int64_t DrawBlock(const BlockDraw* draws, int64_t blocks, float uniform, float* scratch, float* lse) {
  float *maxima = scratch, *masses = scratch + blocks;
  for (int64_t b = 0; b < blocks; ++b) {
    maxima[b] = draws[b].max;
    masses[b] = draws[b].mass;
  }
  const RowSums total = SumRow(maxima, masses, blocks);
  *lse = total.max + __builtin_logf(total.mass);
  if (uniform < 0) {
    int64_t b = 0;
    while (b + 1 < blocks && maxima[b] != total.max) ++b;
    return b;
  }
  float left = uniform * total.mass;
  return Walk(masses, blocks, 1, left);
}

}  // namespace quern::cpu::QUERN_ISA
