#include <cmath>

#include "compute/cuda/rows.h"

// The CPU's arithmetic (cpu/adamw.cpp, cpu/adamw_fp8.cpp), operation for operation: this file is compiled without
// contraction to fused multiply-add, so that both give the same bits.

namespace quern::cuda {

namespace {

constexpr int64_t kPiece = 4096;      // elements of a block of threads
constexpr float kLeastAmax = 1e-30f;  // of moments: below, their scale's inverse would overflow

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
    rate = static_cast<float>(args.learning_rate / (1.0 - std::pow(static_cast<double>(args.beta1), step)));
    root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(args.beta2), step)));
  }
  float beta1, rest1, beta2, rest2, keep, eps, scale;
  float rate = 0, root = 0;
};

template <typename P>
struct AdamWParams {
  P* param;
  const float* grad;
  int64_t count;
  uint64_t seed;
  uint64_t first_element;
  Rates r;
};

__device__ __forceinline__ void SetParam(float* at, float p, uint32_t) { *at = p; }
__device__ __forceinline__ void SetParam(Bf16* at, float p, uint32_t bits) { at->bits = StochasticBf16(p, bits); }

__device__ __forceinline__ void ElementWords(uint64_t element, uint64_t seed, uint32_t (&words)[4]) {
  words[0] = static_cast<uint32_t>(element);
  words[1] = static_cast<uint32_t>(element >> 32);
  words[2] = words[3] = 0;
  Philox(words, seed);
}

template <typename P>
__global__ void __launch_bounds__(kRowThreads) AdamWKernel(AdamWParams<P> args, float* first, float* second) {
  const int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (i >= args.count) return;
  const Rates& r = args.r;
  const float g = args.grad[i] * r.scale;
  const float m = __fmaf_rn(r.beta1, first[i], r.rest1 * g);
  const float v = __fmaf_rn(r.beta2, second[i], r.rest2 * (g * g));
  const float change = r.rate * m / __fmaf_rn(sqrtf(v), r.root, r.eps);
  first[i] = m;
  second[i] = v;
  uint32_t words[4] = {};
  if constexpr (sizeof(P) == 2) ElementWords(args.first_element + static_cast<uint64_t>(i), args.seed, words);
  SetParam(args.param + i, static_cast<float>(args.param[i]) * r.keep - change, words[2]);
}

struct Fp8Moments {
  uint8_t* first;
  uint8_t* second;
  float* first_scale;
  float* second_scale;
  int64_t block;   // elements that share a scale
  int64_t pieces;  // of a block
  uint32_t* amax;  // [blocks, 2], bits
};

__device__ __forceinline__ float DecodeFirst(uint8_t code) {
  const float value = std::bit_cast<float>((code & 0x7fu) << 20) * 0x1p120f;
  return (code & 0x7f) == 0x7f ? NAN : (code & 0x80) != 0 ? -value : value;
}
__device__ __forceinline__ float DecodeSecond(uint8_t code) {
  const uint32_t magnitude = code & 0x7fu;
  if (magnitude >= 0x7c) return magnitude > 0x7c ? NAN : (code & 0x80) != 0 ? -INFINITY : INFINITY;
  const float value = std::bit_cast<float>(magnitude << 21) * 0x1p112f;
  return (code & 0x80) != 0 ? -value : value;
}

struct NewMoments {
  float m, v;
};
template <typename P>
__device__ __forceinline__ NewMoments Moments(const AdamWParams<P>& args, const Fp8Moments& moments, float m_scale,
                                              float v_scale, int64_t i) {
  const Rates& r = args.r;
  const float g = args.grad[i] * r.scale;
  return {r.beta1 * (DecodeFirst(moments.first[i]) * m_scale) + r.rest1 * g,
          r.beta2 * (DecodeSecond(moments.second[i]) * v_scale) + r.rest2 * (g * g)};
}

__device__ __forceinline__ float Held(uint32_t amax) {
  const float value = std::bit_cast<float>(amax);
  return value < kLeastAmax ? kLeastAmax : value;
}

// Bits of the largest magnitudes of a piece's new moments. Every thread gets both.
template <typename P>
__device__ __forceinline__ void PieceAmax(const AdamWParams<P>& args, const Fp8Moments& moments, float m_scale,
                                          float v_scale, int64_t begin, int64_t end, uint32_t (&most)[2]) {
  most[0] = most[1] = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kRowThreads) {
    const NewMoments now = Moments(args, moments, m_scale, v_scale, i);
    most[0] = Max::Of(most[0], MagnitudeBits(now.m));
    most[1] = Max::Of(most[1], MagnitudeBits(now.v));
  }
  most[0] = BlockReduce<Max>(most[0]);
  most[1] = BlockReduce<Max>(most[1]);
}

__device__ __forceinline__ int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename P>
__global__ void __launch_bounds__(kRowThreads) AdamWAmaxKernel(AdamWParams<P> args, Fp8Moments moments) {
  const int64_t block = blockIdx.x / moments.pieces;
  const int64_t stop = Least(args.count, (block + 1) * moments.block);
  const int64_t begin = block * moments.block + blockIdx.x % moments.pieces * kPiece, end = Least(stop, begin + kPiece);
  uint32_t most[2];
  PieceAmax(args, moments, moments.first_scale[block], moments.second_scale[block], begin, end, most);
  if (threadIdx.x != 0) return;
  atomicMax(moments.amax + 2 * block, most[0]);
  atomicMax(moments.amax + 2 * block + 1, most[1]);
}

// kWhole: a piece is a whole block, whose scales are found and stored here.
template <bool kWhole, typename P>
__global__ void __launch_bounds__(kRowThreads) AdamWFp8Kernel(AdamWParams<P> args, Fp8Moments moments) {
  const Rates& r = args.r;
  const int64_t block = blockIdx.x / moments.pieces;
  const int64_t stop = Least(args.count, (block + 1) * moments.block);
  const int64_t begin = block * moments.block + blockIdx.x % moments.pieces * kPiece, end = Least(stop, begin + kPiece);
  const float m_scale = moments.first_scale[block], v_scale = moments.second_scale[block];
  uint32_t most[2];
  if constexpr (kWhole) {
    PieceAmax(args, moments, m_scale, v_scale, begin, end, most);
  } else {
    most[0] = moments.amax[2 * block];
    most[1] = moments.amax[2 * block + 1];
  }
  const float m_amax = Held(most[0]), v_amax = Held(most[1]);
  const float to_m = kE4M3.max / m_amax, to_v = kE5M2.max / v_amax;
  const auto m_max = std::bit_cast<uint32_t>(448.0f), v_max = std::bit_cast<uint32_t>(57344.0f);
  for (int64_t i = begin + threadIdx.x; i < end; i += kRowThreads) {
    const NewMoments now = Moments(args, moments, m_scale, v_scale, i);
    const float change = r.rate * now.m / (sqrtf(now.v) * r.root + r.eps);
    uint32_t words[4];
    ElementWords(args.first_element + static_cast<uint64_t>(i), args.seed, words);
    SetParam(args.param + i, static_cast<float>(args.param[i]) * r.keep - change, words[2]);
    moments.first[i] = static_cast<uint8_t>(E4M3Codec::Stochastic(now.m * to_m, m_max, words[0]));
    const uint32_t code = E5M2Codec::Stochastic(now.v * to_v, v_max, words[1]);
    moments.second[i] = static_cast<uint8_t>(code == 0 && now.v > 0 ? 1u : code);
  }
  // Every thread read the old scales before the barriers of PieceAmax.
  if (kWhole && threadIdx.x == 0) {
    moments.first_scale[block] = m_amax / kE4M3.max;
    moments.second_scale[block] = v_amax / kE5M2.max;
  }
}

__global__ void StoreScales(Fp8Moments moments, int64_t blocks) {
  const int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (i >= blocks) return;
  moments.first_scale[i] = Held(moments.amax[2 * i]) / kE4M3.max;
  moments.second_scale[i] = Held(moments.amax[2 * i + 1]) / kE5M2.max;
}

template <typename P>
void AdamWFp8(Context& context, const AdamWArgs& args, const AdamWParams<P>& params) {
  const int64_t block = args.block > 0 ? args.block : params.count;
  const int64_t blocks = (params.count + block - 1) / block, pieces = (block + kPiece - 1) / kPiece;
  const Arena::Scope scope(context.scratch);
  Fp8Moments moments = {static_cast<uint8_t*>(args.m.data),
                        static_cast<uint8_t*>(args.v.data),
                        Vector(args.m_scale),
                        Vector(args.v_scale),
                        block,
                        pieces,
                        nullptr};
  const dim3 grid(static_cast<unsigned>(blocks * pieces)), threads(kRowThreads);
  if (pieces == 1) return Launch(AdamWFp8Kernel<true, P>, grid, threads, 0, context.stream(), params, moments);
  const TensorView amax = context.scratch.New(DType::kI32, 1, 2 * blocks);
  moments.amax = static_cast<uint32_t*>(amax.data);
  context.runtime.Zero(amax.data, 8 * blocks);
  Launch(AdamWAmaxKernel<P>, grid, threads, 0, context.stream(), params, moments);
  Launch(AdamWFp8Kernel<false, P>, grid, threads, 0, context.stream(), params, moments);
  Launch(StoreScales, dim3(static_cast<unsigned>((blocks + kRowThreads - 1) / kRowThreads)), threads, 0,
         context.stream(), moments, blocks);
}

}  // namespace

void AdamW(Context& context, const AdamWArgs& args) {
  if (args.param.cols == 0) return;
  WithType(args.param, [&](auto type) {
    using P = decltype(type);
    const AdamWParams<P> params = {
        static_cast<P*>(args.param.data),          Vector(args.grad), args.param.cols, args.seed,
        static_cast<uint64_t>(args.first_element), Rates(args)};
    if (IsFp8(args.m.dtype)) return AdamWFp8(context, args, params);
    Launch(AdamWKernel<P>, dim3(static_cast<unsigned>((params.count + kRowThreads - 1) / kRowThreads)),
           dim3(kRowThreads), 0, context.stream(), params, Vector(args.m), Vector(args.v));
  });
}

}  // namespace quern::cuda
