#include "compute/cpu/kernels.h"
#include "compute/cpu/simd.h"
#include "compute/cpu/views.h"

namespace quern::cpu::QUERN_ISA {

namespace {

// y = rotation of x scaled by weight[j] inv (norm) or as it is. x and y may be the same.
template <bool kNorm, typename In, typename Out>
void RotateHead(const In* x, const float* weight, float inv, const float* cos, const float* sin, int64_t half, Out* y) {
  ForVectors(half, [&](int64_t i, auto lanes) {
    F16 a = Load(x + i, lanes);
    F16 b = Load(x + half + i, lanes);
    if constexpr (kNorm) {
      a = a * Set(inv) * Load(weight + i, lanes);
      b = b * Set(inv) * Load(weight + half + i, lanes);
    }
    const F16 c = Load(cos + i, lanes);
    const F16 s = Load(sin + i, lanes);
    Store(y + i, Fnma(b, s, a * c), lanes);
    Store(y + half + i, Fma(a, s, b * c), lanes);
  });
}

template <typename In>
float InverseRms(const In* x, int64_t dim, float eps) {
  const float squares = SumVectors(dim, [&](F16 sum, int64_t i, auto lanes) {
    const F16 v = Load(x + i, lanes);
    return Fma(v, v, sum);
  });
  return 1.0f / __builtin_sqrtf(squares / static_cast<float>(dim) + eps);
}

// In place: dy, the gradient of the rotated head, becomes the gradient of the head.
template <typename Grad>
void UnrotateHead(Grad* dy, const float* cos, const float* sin, int64_t half) {
  ForVectors(half, [&](int64_t i, auto lanes) {
    const F16 a = Load(dy + i, lanes);
    const F16 b = Load(dy + half + i, lanes);
    const F16 c = Load(cos + i, lanes);
    const F16 s = Load(sin + i, lanes);
    Store(dy + i, Fma(b, s, a * c), lanes);
    Store(dy + half + i, Fnma(a, s, b * c), lanes);
  });
}

// The same with the norm: unrotated gradients are kept in fp32 (`u`, head_dim floats) before they go through the norm.
template <typename In, typename Grad>
void NormHeadBackward(const In* x, const float* weight, float eps, const float* cos, const float* sin, int64_t half,
                      float* u, float* dweight, Grad* dy) {
  const int64_t dim = 2 * half;
  const float inv = InverseRms(x, dim, eps);
  ForVectors(half, [&](int64_t i, auto lanes) {
    const F16 a = Load(dy + i, lanes);
    const F16 b = Load(dy + half + i, lanes);
    const F16 c = Load(cos + i, lanes);
    const F16 s = Load(sin + i, lanes);
    Store(u + i, Fma(b, s, a * c), lanes);
    Store(u + half + i, Fnma(a, s, b * c), lanes);
  });
  const float dot = SumVectors(dim, [&](F16 sum, int64_t i, auto lanes) {
    return Fma(Load(u + i, lanes) * Load(weight + i, lanes), Load(x + i, lanes), sum);
  });
  const F16 slope = Set(dot * inv * inv * inv / static_cast<float>(dim));
  ForVectors(dim, [&](int64_t i, auto lanes) {
    const F16 v = Load(x + i, lanes);
    const F16 scaled = Load(u + i, lanes) * Set(inv);
    Store(dweight + i, Fma(scaled, v, Load(dweight + i, lanes)), lanes);
    Store(dy + i, Fnma(v, slope, scaled * Load(weight + i, lanes)), lanes);
  });
}

}  // namespace

void Rotary(const RotaryArgs& args, int64_t begin, int64_t end) {
  const int64_t half = args.head_dim / 2;
  const int64_t rotated = args.heads + args.kv_heads;
  const auto* q_norm = static_cast<const float*>(args.q_norm.data);
  const auto* k_norm = static_cast<const float*>(args.k_norm.data);
  const int32_t* positions = args.positions.data();
  WithTypes(args.qkv, args.out, [&](auto in, auto out) {
    for (int64_t row = begin; row < end; ++row) {
      const auto* x = Row<decltype(in)>(args.qkv, row);
      auto* y = Row<decltype(out)>(args.out, row);
      const float* cos = Row<float>(args.cos, positions[row]);
      const float* sin = Row<float>(args.sin, positions[row]);
      for (int64_t head = 0; head < rotated; ++head) {
        const auto* xh = x + head * args.head_dim;
        auto* yh = y + head * args.head_dim;
        if (q_norm == nullptr) {
          RotateHead<false>(xh, nullptr, 0, cos, sin, half, yh);
        } else {
          RotateHead<true>(xh, head < args.heads ? q_norm : k_norm, InverseRms(xh, args.head_dim, args.norm_eps), cos,
                           sin, half, yh);
        }
      }
      if (static_cast<const void*>(x) == static_cast<const void*>(y)) continue;
      const int64_t values = rotated * args.head_dim;
      ForVectors(args.kv_heads * args.head_dim,
                 [&](int64_t i, auto lanes) { Store(y + values + i, Load(x + values + i, lanes), lanes); });
    }
  });
}

void RotaryBackward(const RotaryBackwardArgs& args, int64_t begin, int64_t end, float* dnorms) {
  const RotaryArgs& forward = args.forward;
  const int64_t dim = forward.head_dim;
  const auto* q_norm = static_cast<const float*>(forward.q_norm.data);
  const auto* k_norm = static_cast<const float*>(forward.k_norm.data);
  const int32_t* positions = forward.positions.data();
  WithTypes(forward.qkv, args.dqkv, [&](auto in, auto grad) {
    for (int64_t row = begin; row < end; ++row) {
      auto* dy = Row<decltype(grad)>(args.dqkv, row);
      const float* cos = Row<float>(forward.cos, positions[row]);
      const float* sin = Row<float>(forward.sin, positions[row]);
      for (int64_t head = 0; head < forward.heads + forward.kv_heads; ++head) {
        if (q_norm == nullptr) {
          UnrotateHead(dy + head * dim, cos, sin, dim / 2);
          continue;
        }
        const bool query = head < forward.heads;
        // dnorms: the two sums, then room for one head.
        NormHeadBackward(Row<decltype(in)>(forward.qkv, row) + head * dim, query ? q_norm : k_norm, forward.norm_eps,
                         cos, sin, dim / 2, dnorms + 2 * dim, query ? dnorms : dnorms + dim, dy + head * dim);
      }
    }
  });
}

}  // namespace quern::cpu::QUERN_ISA
