#include "compute/cpu/kernels.h"
#include "compute/cpu/simd.h"
#include "compute/cpu/views.h"

namespace quern::cpu::QUERN_ISA {

namespace {
inline F16 Sigmoid(F16 x) { return Set(1.0f) / (Set(1.0f) + Exp(Min(Set(88.37f), Zero() - x))); }
}  // namespace

void SwiGlu(const SwiGluArgs& args, int64_t begin, int64_t end) {
  const int64_t width = args.h.cols;
  WithTypes(args.gate_up, args.h, [&](auto in, auto out) {
    for (int64_t row = begin; row < end; ++row) {
      const auto* gate = Row<decltype(in)>(args.gate_up, row);
      const auto* up = gate + width;
      auto* h = Row<decltype(out)>(args.h, row);
      ForVectors(width, [&](int64_t i, auto lanes) {
        const F16 g = Load(gate + i, lanes);
        Store(h + i, g * Sigmoid(g) * Load(up + i, lanes), lanes);
      });
    }
  });
}

// silu'(g) = s (1 + g (1 - s)) with s = sigmoid(g).
void SwiGluBackward(const SwiGluBackwardArgs& args, int64_t begin, int64_t end) {
  const int64_t width = args.dh.cols;
  WithTypes(args.gate_up, args.dh, [&](auto in, auto grad) {
    WithType(args.dgate_up, [&](auto out) {
      for (int64_t row = begin; row < end; ++row) {
        const auto* gate = Row<decltype(in)>(args.gate_up, row);
        const auto* up = gate + width;
        const auto* dh = Row<decltype(grad)>(args.dh, row);
        auto* dgate = Row<decltype(out)>(args.dgate_up, row);
        auto* dup = dgate + width;
        ForVectors(width, [&](int64_t i, auto lanes) {
          const F16 g = Load(gate + i, lanes);
          const F16 u = Load(up + i, lanes);
          const F16 d = Load(dh + i, lanes);
          const F16 s = Sigmoid(g);
          const F16 slope = s * Fma(g, Set(1.0f) - s, Set(1.0f));
          Store(dgate + i, d * u * slope, lanes);
          Store(dup + i, d * g * s, lanes);
        });
      }
    });
  });
}

}  // namespace quern::cpu::QUERN_ISA
