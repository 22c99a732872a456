#include "compute/cpu/kernels.h"
#include "compute/cpu/simd.h"
#include "compute/cpu/views.h"

namespace quern::cpu::QUERN_ISA {

namespace {

struct Normaliser {
  float max = 0;
  float mass = 0;  // sum of e^(z - max)
};

// Over all of z but `without` (-1: all).
Normaliser Normalise(const float* z, int64_t n, int64_t without) {
  const float lowest = -__builtin_inff();
  F16 max = Set(lowest);
  ForVectors(n, [&](int64_t i, auto lanes) {
    F16 v = Load(z + i, lanes);
    if constexpr (!std::is_same_v<decltype(lanes), All>) v = InRange(0, lanes, v, Set(lowest));
    if (without >= i && without < i + kLanes) v = InRange(without - i, without - i + 1, Set(lowest), v);
    max = Max(max, v);
  });
  Normaliser out{MaxLanes(max), 0};
  out.mass = SumVectors(n, [&](F16 sum, int64_t i, auto lanes) {
    F16 e = Exp(Load(z + i, lanes) - Set(out.max));
    if constexpr (!std::is_same_v<decltype(lanes), All>) e = InRange(0, lanes, e, Zero());
    if (without >= i && without < i + kLanes) e = InRange(without - i, without - i + 1, Zero(), e);
    return sum + e;
  });
  return out;
}

// Mass of the ids whose p is at least `threshold`. Never decreases when the threshold falls: rounding is monotone.
float MassFrom(const float* p, int64_t n, float threshold) {
  return SumVectors(n, [&](F16 sum, int64_t i, auto lanes) {
    const F16 v = Load(p + i, lanes);  // lanes beyond the end are 0 and add nothing
    return sum + IfLess(v, Set(threshold), Zero(), v);
  });
}

float FromBits(uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

uint32_t ToBits(float x) {
  uint32_t out;
  std::memcpy(&out, &x, 4);
  return out;
}

// The largest threshold at which the ids with p >= threshold hold top_p of the mass; 0 when only all of them do.
// Bisection over the bit patterns of non-negative floats, which are ordered as the floats are.
float NucleusThreshold(const float* p, int64_t n, float top_p) {
  uint32_t low = 0, high = ToBits(1.0f) + 1;  // mass(low) reaches top_p (or nothing does), mass(high) does not
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    (MassFrom(p, n, FromBits(middle)) >= top_p ? low : high) = middle;
  }
  return FromBits(low);
}

}  // namespace

// The nucleus takes ids in order of falling probability and, among equals, of rising id, until its mass reaches top_p.
void MaxRatio(const MaxRatioArgs& args, int64_t row, float* p) {
  const int64_t n = args.behaviour_logits.cols;
  const float* behaviour = Row<float>(args.behaviour_logits, row);
  const float* value = Row<float>(args.value_logits, row);
  const int64_t reserved = args.reserved;
  const Normaliser b = Normalise(behaviour, n, reserved);
  const Normaliser v = Normalise(value, n, -1);
  const F16 inverse = Set(1.0f / b.mass);
  ForVectors(
      n, [&](int64_t i, auto lanes) { Store(p + i, Exp(Load(behaviour + i, lanes) - Set(b.max)) * inverse, lanes); });
  if (reserved >= 0) p[reserved] = -1.0f;  // below every threshold

  const float boundary = NucleusThreshold(p, n, args.top_p);
  // Everything from `support` on is in. Ids exactly at the boundary are cut off where the mass is reached.
  float support = args.epsilon < boundary ? args.epsilon : boundary;
  int64_t last = n;
  if (boundary > 0 && boundary < args.epsilon) {
    const float above = FromBits(ToBits(boundary) + 1);
    float mass = MassFrom(p, n, above);
    int64_t id = 0;
    for (; id < n && mass < args.top_p; ++id)
      if (p[id] == boundary) mass += boundary;
    last = id;
    support = above;
  }
  const F16 one = Set(1.0f), floor = Set(args.epsilon), value_inverse = Set(1.0f / v.mass);
  const auto ratio = [&](F16 z, F16 mass) {  // z of an id that the largest leaves out may be beyond it
    return Min(one, Exp(Min(Set(88.37f), z - Set(v.max))) * value_inverse / Max(floor, mass));
  };
  F16 best = Zero();
  ForVectors(n, [&](int64_t i, auto lanes) {
    F16 mass = Load(p + i, lanes);
    F16 r = ratio(Load(value + i, lanes), mass);
    if constexpr (!std::is_same_v<decltype(lanes), All>) r = InRange(0, lanes, r, Zero());
    best = Max(best, IfLess(mass, Set(support), Zero(), r));
  });
  float out = MaxLanes(best);
  if (support > boundary) {
    for (int64_t id = 0; id < last; ++id) {
      if (p[id] != boundary) continue;
      const float r = MaxLanes(ratio(Set(value[id]), Set(boundary)));
      out = r > out ? r : out;
    }
  }
  Put(args.max_ratio, row, out);
}

}  // namespace quern::cpu::QUERN_ISA
