#include <cmath>

#include "compute/cpu/kernels.h"
#include "compute/cpu/simd.h"

namespace quern::cpu::QUERN_ISA {

void AdamW(const AdamWArgs& args, int64_t begin, int64_t end) {
  auto* param = static_cast<float*>(args.param.data) + begin;
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
  ForVectors(end - begin, [&](int64_t i, auto lanes) {
    const F16 g = Load(grad + i, lanes) * scale;
    const F16 m = Fma(beta1, Load(first + i, lanes), rest1 * g);
    const F16 v = Fma(beta2, Load(second + i, lanes), rest2 * (g * g));
    const F16 change = rate * m / Fma(Sqrt(v), root, eps);
    Store(first + i, m, lanes);
    Store(second + i, v, lanes);
    Store(param + i, Load(param + i, lanes) * keep - change, lanes);
  });
}

}  // namespace quern::cpu::QUERN_ISA
