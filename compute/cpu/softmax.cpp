#include "compute/cpu/kernels.h"
#include "compute/cpu/simd.h"
#include "compute/cpu/views.h"

namespace quern::cpu::QUERN_ISA {

namespace {

struct RowSums {
  float max = 0;          // of z
  float mass = 0;         // sum of e^(z - max)
  float sum = 0;          // sum of z - max
  float mass_offset = 0;  // sum of e^(z - max) (z - max)
};

float RowMax(const float* z, int64_t n) {
  F16 max[4];
  for (F16& m : max) m = Set(-__builtin_inff());
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int64_t j = 0; j < 4; ++j) max[j] = Max(max[j], Load(z + i + j * kLanes));
  for (; i + kLanes <= n; i += kLanes) max[0] = Max(max[0], Load(z + i));
  if (i < n) max[0] = Max(max[0], InRange(0, n - i, Load(z + i, n - i), max[0]));
  return MaxLanes(Max(Max(max[0], max[1]), Max(max[2], max[3])));
}

// kOffsets: also the two sums that only the mean and the entropy need.
template <bool kOffsets>
RowSums SumRow(const float* z, int64_t n) {
  RowSums out;
  out.max = RowMax(z, n);
  F16 mass[4] = {Zero(), Zero(), Zero(), Zero()};
  F16 sum[4] = {Zero(), Zero(), Zero(), Zero()};
  F16 mass_offset[4] = {Zero(), Zero(), Zero(), Zero()};
  const F16 max = Set(out.max);
  const auto add = [&](int64_t j, F16 offset, F16 e) {
    mass[j] = mass[j] + e;
    if constexpr (kOffsets) {
      sum[j] = sum[j] + offset;
      // A logit of -infinity has no mass: its 0 * infinity is left out.
      mass_offset[j] = mass_offset[j] + IfLess(Zero(), e, e * offset, e);
    }
  };
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int64_t j = 0; j < 4; ++j) {
      const F16 offset = Load(z + i + j * kLanes) - max;
      add(j, offset, Exp(offset));
    }
  }
  for (; i + kLanes <= n; i += kLanes) {
    const F16 offset = Load(z + i) - max;
    add(0, offset, Exp(offset));
  }
  if (i < n) {
    const F16 offset = Load(z + i, n - i) - max;
    add(1, InRange(0, n - i, offset, Zero()), InRange(0, n - i, Exp(offset), Zero()));
  }
  const auto total = [](const F16* part) { return SumLanes((part[0] + part[1]) + (part[2] + part[3])); };
  out.mass = total(mass);
  if constexpr (kOffsets) {
    out.sum = total(sum);
    out.mass_offset = total(mass_offset);
  }
  return out;
}

}  // namespace

void LogSoftmax(const LogSoftmaxArgs& args, int64_t begin, int64_t end) {
  const int64_t n = args.logits.cols;
  const bool offsets = args.mean_log_prob.data != nullptr || args.entropy.data != nullptr;
  for (int64_t row = begin; row < end; ++row) {
    const float* z = Row<float>(args.logits, row);
    const RowSums sums = offsets ? SumRow<true>(z, n) : SumRow<false>(z, n);
    const float log_mass = __builtin_logf(sums.mass);
    const float lse = sums.max + log_mass;
    Put(args.lse, row, lse);
    if (args.log_prob.data != nullptr) Put(args.log_prob, row, z[args.targets.data()[row]] - lse);
    Put(args.mean_log_prob, row, sums.sum / static_cast<float>(n) - log_mass);
    Put(args.entropy, row, log_mass - sums.mass_offset / sums.mass);
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
