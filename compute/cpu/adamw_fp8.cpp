#include <bit>

#include "compute/cpu/kernels.h"
#include "compute/cpu/philox.h"
#include "compute/cpu/simd.h"
#include "compute/cpu/views.h"

// Without fused multiply-add and in one order: every instruction set gives the same bits.

namespace quern::cpu::QUERN_ISA {

namespace {

struct Rates {
  explicit Rates(const AdamWArgs& args)
      : beta1(args.beta1),
        rest1(1.0f - args.beta1),
        beta2(args.beta2),
        rest2(1.0f - args.beta2),
        keep(static_cast<float>(1.0 - static_cast<double>(args.learning_rate) * args.weight_decay)),
        eps(args.eps),
        scale(args.grad_scale) {
    const auto step = static_cast<double>(args.step);
    rate = static_cast<float>(args.learning_rate / (1.0 - __builtin_pow(static_cast<double>(args.beta1), step)));
    root = static_cast<float>(1.0 / __builtin_sqrt(1.0 - __builtin_pow(static_cast<double>(args.beta2), step)));
  }
  float beta1, rest1, beta2, rest2, keep, eps, scale;
  float rate, root;
};

constexpr int64_t kMost = 1024;  // elements at a time

// The updated moments of elements [begin, begin + count), which lie in one block.
void Moments(const AdamWArgs& args, const Rates& r, int64_t begin, int64_t count, float* m, float* v) {
  const int64_t block = args.block > 0 ? begin / args.block : 0;
  const float* m_values = Fp8Values(args.m.dtype);
  const float* v_values = Fp8Values(args.v.dtype);
  const float m_scale = At(args.m_scale, block), v_scale = At(args.v_scale, block);
  const auto* first = static_cast<const uint8_t*>(args.m.data) + begin;
  const auto* second = static_cast<const uint8_t*>(args.v.data) + begin;
  const auto* grad = static_cast<const float*>(args.grad.data) + begin;
  for (int64_t i = 0; i < count; ++i) {
    const float g = grad[i] * r.scale;
    m[i] = r.beta1 * (m_values[first[i]] * m_scale) + r.rest1 * g;
    v[i] = r.beta2 * (v_values[second[i]] * v_scale) + r.rest2 * (g * g);
  }
}

template <typename F>
inline void ForPieces(int64_t begin, int64_t end, F f) {
  for (; begin < end; begin += kMost) f(begin, end - begin < kMost ? end - begin : kMost);
}

inline float Stored(float p, uint32_t, float*) { return p; }
inline uint16_t Stored(float p, uint32_t bits, uint16_t*) { return StochasticBf16(p, bits); }
inline float Widen(float p) { return p; }
inline float Widen(uint16_t p) { return std::bit_cast<float>(uint32_t{p} << 16); }

}  // namespace

void AdamWAmax(const AdamWArgs& args, int64_t begin, int64_t end, MomentAmax* amax) {
  const Rates rates(args);
  float m[kMost], v[kMost];
  uint32_t most_m = 0, most_v = 0;
  ForPieces(begin, end, [&](int64_t at, int64_t count) {
    Moments(args, rates, at, count, m, v);
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t m_bits = std::bit_cast<uint32_t>(m[i]) & 0x7fffffffu;
      const uint32_t v_bits = std::bit_cast<uint32_t>(v[i]) & 0x7fffffffu;
      most_m = m_bits > most_m ? m_bits : most_m;
      most_v = v_bits > most_v ? v_bits : most_v;
    }
  });
  *amax = {std::bit_cast<float>(most_m), std::bit_cast<float>(most_v)};
}

void AdamWFp8(const AdamWArgs& args, int64_t begin, int64_t end, const MomentAmax& amax) {
  const Rates r(args);
  const float to_m = kE4M3.max / amax.m, to_v = kE5M2.max / amax.v;
  const auto m_max = std::bit_cast<uint32_t>(kE4M3.max), v_max = std::bit_cast<uint32_t>(kE5M2.max);
  auto* first = static_cast<uint8_t*>(args.m.data);
  auto* second = static_cast<uint8_t*>(args.v.data);
  float m[kMost], v[kMost];
  WithType(args.param, [&](auto type) {
    auto* param = static_cast<decltype(type)*>(args.param.data);
    ForPieces(begin, end, [&](int64_t at, int64_t count) {
      Moments(args, r, at, count, m, v);
      for (int64_t j = 0; j < count; j += kPhiloxLanes) {
        PhiloxWords words;
        Philox(static_cast<uint64_t>(args.first_element + at + j), 0, args.seed, words);
        const int64_t lanes = count - j < kPhiloxLanes ? count - j : kPhiloxLanes;
        for (int64_t i = 0; i < lanes; ++i) {
          const float change = r.rate * m[j + i] / (__builtin_sqrtf(v[j + i]) * r.root + r.eps);
          auto* p = param + at + j + i;
          *p = Stored(Widen(*p) * r.keep - change, words.word[2][i], p);
          first[at + j + i] = static_cast<uint8_t>(E4M3Codec::Stochastic(m[j + i] * to_m, m_max, words.word[0][i]));
          const uint32_t code = E5M2Codec::Stochastic(v[j + i] * to_v, v_max, words.word[1][i]);
          second[at + j + i] = static_cast<uint8_t>(code == 0 && v[j + i] > 0 ? 1u : code);
        }
      }
    });
  });
}

}  // namespace quern::cpu::QUERN_ISA
