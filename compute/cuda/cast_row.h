#pragma once

// The cast of one row to FP8 by a block, for kernels that cast what they have just computed.

#include "compute/cuda/rows.h"

namespace quern::cuda {

// 2^-floor(log2(max / amax)) by the bits of both (PowerOfTwoExponent of compute/fp8.h); NaN where amax is not finite.
__device__ __forceinline__ float ScaleFor(uint32_t amax, float max) {
  if (amax >= 0x7f800000u) return NAN;
  if (amax == 0) return 1.0f;
  const auto max_bits = std::bit_cast<uint32_t>(max);
  int exponent = static_cast<int>(max_bits >> 23) - static_cast<int>(amax >> 23);
  if ((amax & 0x7fffffu) > (max_bits & 0x7fffffu)) --exponent;
  if (exponent > 100) exponent = 100;
  return std::bit_cast<float>(static_cast<uint32_t>(127 - exponent) << 23);
}

// QuantizeArgs but for x, on the device.
struct CastParams {
  const float* column_scale;
  int64_t cols;
  Fp8Format format;
  bool own_scale;  // of each row; else one that is given
  bool stochastic;
  uint64_t seed;
  Rows<uint8_t> codes;
  float* scale;
  uint32_t* amax;
  int* counts;
};
inline CastParams CastParamsOf(const QuantizeArgs& args, int64_t cols) {
  return {.column_scale = Vector(args.column_scale),
          .cols = cols,
          .format = args.format,
          .own_scale = args.rule == QuantizeArgs::Scale::kRow,
          .stochastic = args.stochastic,
          .seed = args.seed,
          .codes = RowsOf<uint8_t>(args.codes),
          .scale = Vector(args.scale),
          .amax = static_cast<uint32_t*>(args.amax.data),
          .counts = static_cast<int*>(args.counts.data)};
}

template <int kN>
__device__ __forceinline__ void ScaleColumns(const CastParams& args, int64_t i, float (&v)[kN]) {
  if (args.column_scale == nullptr) return;
  float scale[kN];
  Load(args.column_scale + i, scale);
#pragma unroll
  for (int j = 0; j < kN; ++j) v[j] *= scale[j];
}

template <int kN>
__device__ __forceinline__ uint32_t Largest(const float (&v)[kN]) {
  uint32_t most = 0;
#pragma unroll
  for (int j = 0; j < kN; ++j) most = Max::Of(most, MagnitudeBits(v[j]));
  return most;
}

// All threads of a block of kRowThreads. most: bits of the row's largest magnitude, where the row has its own scale or
// `raise`: args.amax is raised to it. load(i, v): kN values after their columns' scales; a thread asks for those of
// i = threadIdx.x * kN, then every kRowThreads * kN.
template <typename Codec, int kN, typename F>
__device__ __forceinline__ void CastRow(const CastParams& args, int64_t row, uint32_t most, bool raise, F load) {
  const float own = args.own_scale ? ScaleFor(most, args.format.max) : args.scale[0];
  if (threadIdx.x == 0) {
    if (args.own_scale) args.scale[row] = own;
    if (raise && args.amax != nullptr) atomicMax(args.amax, most);
  }
  const float factor = 1.0f / own;
  const auto max_bits = std::bit_cast<uint32_t>(args.format.max);
  int saturated = 0, flushed = 0;
  for (int64_t i = int64_t{threadIdx.x} * kN; i < args.cols; i += kRowThreads * kN) {
    float v[kN];
    load(i, v);
    Group<uint8_t, kN> codes;
    uint32_t words[4] = {};
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      const float x = v[j] * factor;
      uint32_t code;
      if (args.stochastic) {
        // Word k of the counter {column / 4, row} is for column 4 j + k.
        if (j % 4 == 0) {
          words[0] = static_cast<uint32_t>((i + j) / 4);
          words[1] = static_cast<uint32_t>(row);
          words[2] = 1;
          words[3] = 0;
          Philox(words, args.seed);
        }
        const int which = static_cast<int>((i + j) % 4);
        const uint32_t bits = which == 0 ? words[0] : which == 1 ? words[1] : which == 2 ? words[2] : words[3];
        code = Codec::Stochastic(x, max_bits, bits);
      } else {
        code = Codec::Nearest(x, max_bits);
      }
      codes.values[j] = static_cast<uint8_t>(code);
      const float magnitude = std::bit_cast<float>(MagnitudeBits(x));
      saturated += magnitude > args.format.max ? 1 : 0;
      flushed += magnitude > 0 && (code & 0x7f) == 0 ? 1 : 0;
    }
    *reinterpret_cast<Group<uint8_t, kN>*>(args.codes.At(row) + i) = codes;
  }
  if (args.counts == nullptr) return;
  saturated = BlockReduce<Sum>(saturated);
  flushed = BlockReduce<Sum>(flushed);
  if (threadIdx.x != 0) return;
  atomicAdd(args.counts, saturated);
  atomicAdd(args.counts + 1, flushed);
}

// Whether an operation with this bf16 output casts it in its own pass; else it is done after it (CastOutput).
template <typename... Views>
bool CastsInPass(const TensorView& output, const QuantizeArgs& cast, const Views&... inputs) {
  if (cast.codes.empty() || output.dtype != DType::kBf16 || cast.format.dtype != DType::kE4M3 ||
      cast.rule == QuantizeArgs::Scale::kTensor)
    return false;
  bool wide = false;
  WithWidth([&](auto width) { wide = width == kWide; }, output, cast.codes, cast.column_scale, inputs...);
  return wide;
}

// A row's bf16 outputs between its two passes: in shared memory where they fit without asking for more.
constexpr int64_t kHeldBytes = 48 * 1024;
inline int64_t HeldBytes(int64_t cols) { return 2 * cols <= kHeldBytes - 256 ? 2 * cols : 0; }

}  // namespace quern::cuda
