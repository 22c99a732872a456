#include "compute/cuda/cast_row.h"

namespace quern::cuda {

namespace {

template <int kMantissa, int kBias>
__device__ __forceinline__ float Decode(uint8_t code) {
  const uint32_t magnitude = code & 0x7fu;
  if (kMantissa == 3 && magnitude == 0x7f) return NAN;
  if (kMantissa == 2 && magnitude >= 0x7c) return magnitude > 0x7c ? NAN : (code & 0x80) != 0 ? -INFINITY : INFINITY;
  // A float of the same exponent and mantissa bits, whose bias is larger; subnormals too.
  const float value = std::bit_cast<float>(magnitude << (23 - kMantissa)) *
                      std::bit_cast<float>(static_cast<uint32_t>(127 + 127 - kBias) << 23);
  return (code & 0x80) != 0 ? -value : value;
}

template <typename In>
struct QuantizeParams {
  Rows<const In> x;
  CastParams cast;
};

template <typename In, int kN>
__device__ __forceinline__ void LoadScaled(const QuantizeParams<In>& args, int64_t row, int64_t i, float (&v)[kN]) {
  Load(args.x.At(row) + i, v);
  ScaleColumns(args.cast, i, v);
}

// Bits of the block's row's largest magnitude.
template <int kN, typename In>
__device__ __forceinline__ uint32_t RowAmax(const QuantizeParams<In>& args) {
  uint32_t most = 0;
  for (int64_t i = int64_t{threadIdx.x} * kN; i < args.cast.cols; i += kRowThreads * kN) {
    float v[kN];
    LoadScaled(args, blockIdx.x, i, v);
    most = Max::Of(most, Largest(v));
  }
  return BlockReduce<Max>(most);
}

template <typename In, int kN>
__global__ void __launch_bounds__(kRowThreads) AmaxKernel(QuantizeParams<In> args, uint32_t* most) {
  const uint32_t own = RowAmax<kN>(args);
  if (threadIdx.x != 0) return;
  if (most != nullptr) atomicMax(most, own);
  if (args.cast.amax != nullptr) atomicMax(args.cast.amax, own);
}

// scale[i] = the power of two for amax[i].
__global__ void ScalesKernel(const uint32_t* amax, int64_t count, float max, bool inverse, float* scale) {
  const int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (i >= count) return;
  const float own = ScaleFor(amax[i], max);
  scale[i] = inverse ? 1.0f / own : own;
}

__global__ void DivideKernel(const float* one, const float* columns, int64_t count, float* scale) {
  const int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (i < count) scale[i] = *one / columns[i];
}

// A block a row. The second reading of the row comes from the cache.
template <typename Codec, typename In, int kN>
__global__ void __launch_bounds__(kRowThreads) QuantizeKernel(QuantizeParams<In> args) {
  const uint32_t most = args.cast.own_scale ? RowAmax<kN>(args) : 0;
  CastRow<Codec, kN>(args.cast, blockIdx.x, most, args.cast.own_scale,
                     [&](int64_t i, float(&v)[kN]) { LoadScaled(args, blockIdx.x, i, v); });
}

template <typename Out, int kMantissa, int kBias, int kN>
struct DequantizeOp {
  Rows<const uint8_t> codes;
  const float* scale;
  bool one_scale;
  const float* column_scale;
  Rows<Out> y;
  __device__ void operator()(int64_t row, int64_t i) const {
    const Group<uint8_t, kN> group = *reinterpret_cast<const Group<uint8_t, kN>*>(codes.At(row) + i);
    const float own = scale[one_scale ? 0 : row];
    float v[kN];
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      v[j] = Decode<kMantissa, kBias>(group.values[j]) * own;
      if (column_scale != nullptr) v[j] /= column_scale[i + j];
    }
    Store(y.At(row) + i, v);
  }
};

template <typename F>
void WithCodec(DType dtype, F f) {
  if (dtype == DType::kE4M3) {
    f(E4M3Codec());
  } else {
    f(E5M2Codec());
  }
}

unsigned VectorGrid(int64_t count) { return static_cast<unsigned>((count + kRowThreads - 1) / kRowThreads); }

}  // namespace

void Quantize(Context& context, const QuantizeArgs& args) {
  using Scale = QuantizeArgs::Scale;
  if (args.x.rows == 0) return;
  const Arena::Scope scope(context.scratch);
  WithType(args.x, [&](auto type) {
    using In = decltype(type);
    const QuantizeParams<In> params = {RowsOf<const In>(args.x), CastParamsOf(args, args.x.cols)};
    const dim3 grid(static_cast<unsigned>(args.x.rows)), block(kRowThreads);
    WithWidth(
        [&](auto width) {
          constexpr int kN = width;
          if (args.rule == Scale::kTensor) {
            const TensorView most = context.scratch.New(DType::kF32, 1, 1);
            Fill(context, most, 0);
            auto* bits = static_cast<uint32_t*>(most.data);
            Launch(AmaxKernel<In, kN>, grid, block, 0, context.stream(), params, bits);
            Launch(ScalesKernel, dim3(1), block, 0, context.stream(), bits, int64_t{1}, args.format.max, false,
                   params.cast.scale);
          } else if (args.rule == Scale::kGiven && params.cast.amax != nullptr) {
            Launch(AmaxKernel<In, kN>, grid, block, 0, context.stream(), params, static_cast<uint32_t*>(nullptr));
          }
          WithCodec(args.format.dtype, [&](auto codec) {
            Launch(QuantizeKernel<decltype(codec), In, kN>, grid, block, 0, context.stream(), params);
          });
        },
        args.x, args.column_scale, args.codes);
  });
}

void Dequantize(Context& context, const DequantizeArgs& args) {
  WithType(args.y, [&](auto type) {
    using Out = decltype(type);
    WithWidth(
        [&](auto width) {
          constexpr int kN = width;
          const auto launch = [&](auto op) { LaunchForGroups<kN>(context, args.codes.rows, args.codes.cols, op); };
          const Rows<const uint8_t> codes = RowsOf<const uint8_t>(args.codes);
          const bool one = args.scale.cols == 1;
          if (args.codes.dtype == DType::kE4M3) {
            launch(DequantizeOp<Out, 3, 7, kN>{codes, Vector(args.scale), one, Vector(args.column_scale),
                                               RowsOf<Out>(args.y)});
          } else {
            launch(DequantizeOp<Out, 2, 15, kN>{codes, Vector(args.scale), one, Vector(args.column_scale),
                                                RowsOf<Out>(args.y)});
          }
        },
        args.codes, args.y);
  });
}

void ScalesFor(Context& context, const TensorView& amax, const Fp8Format& format, bool inverse,
               const TensorView& scale) {
  Launch(ScalesKernel, dim3(VectorGrid(amax.cols)), dim3(kRowThreads), 0, context.stream(),
         static_cast<const uint32_t*>(amax.data), amax.cols, format.max, inverse, Vector(scale));
}

void DivideScale(Context& context, const TensorView& one, const TensorView& columns, const TensorView& scale) {
  Launch(DivideKernel, dim3(VectorGrid(columns.cols)), dim3(kRowThreads), 0, context.stream(), Vector(one),
         Vector(columns), columns.cols, Vector(scale));
}

}  // namespace quern::cuda
