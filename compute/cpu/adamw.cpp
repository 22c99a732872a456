#include <cmath>

#include "compute/cpu/kernels.h"
#include "compute/cpu/philox.h"
#include "compute/cpu/simd.h"
#include "compute/cpu/views.h"

namespace quern::cpu::QUERN_ISA {

namespace {

// A bf16 parameter is rounded stochastically, with the third word of its element's counter.
void StoreParam(const AdamWArgs& args, int64_t element, F16 p, int64_t lanes) {
  if (args.param.dtype == DType::kF32) {
    Store(static_cast<float*>(args.param.data) + element, p, lanes);
    return;
  }
  float values[kLanes];
  Store(values, p);
  PhiloxWords words;
  Philox(static_cast<uint64_t>(args.first_element + element), 0, args.seed, words);
  auto* to = static_cast<uint16_t*>(args.param.data) + element;
  for (int64_t i = 0; i < lanes; ++i) to[i] = StochasticBf16(values[i], words.word[2][i]);
}
void StoreParam(const AdamWArgs& args, int64_t element, F16 p, All) { StoreParam(args, element, p, kLanes); }

}  // namespace

void AdamW(const AdamWArgs& args, int64_t begin, int64_t end) {
  const auto* grad = static_cast<const float*>(args.grad.data) + begin;
  auto* first = static_cast<float*>(args.m.data) + begin;
  auto* second = static_cast<float*>(args.v.data) + begin;
  const auto step = static_cast<double>(args.step);
  const double correction1 = 1.0 - __builtin_pow(static_cast<double>(args.beta1), step);
  const double correction2 = 1.0 - __builtin_pow(static_cast<double>(args.beta2), step);
  const F16 beta1 = Set(args.beta1), rest1 = Set(1.0f - args.beta1);
  const F16 beta2 = Set(args.beta2), rest2 = Set(1.0f - args.beta2);
  const F16 scale = Set(args.grad_scale);
  const F16 keep = Set(static_cast<float>(1.0 - static_cast<double>(args.learning_rate) * args.weight_decay));
  const F16 rate = Set(static_cast<float>(args.learning_rate / correction1));
  const F16 root = Set(static_cast<float>(1.0 / __builtin_sqrt(correction2)));
  const F16 eps = Set(args.eps);
  WithType(args.param, [&](auto type) {
    const auto* param = static_cast<const decltype(type)*>(args.param.data) + begin;
    ForVectors(end - begin, [&](int64_t i, auto lanes) {
      const F16 g = Load(grad + i, lanes) * scale;
      const F16 m = Fma(beta1, Load(first + i, lanes), rest1 * g);
      const F16 v = Fma(beta2, Load(second + i, lanes), rest2 * (g * g));
      const F16 change = rate * m / Fma(Sqrt(v), root, eps);
      Store(first + i, m, lanes);
      Store(second + i, v, lanes);
      StoreParam(args, begin + i, Load(param + i, lanes) * keep - change, lanes);
    });
  });
}

}  // namespace quern::cpu::QUERN_ISA
