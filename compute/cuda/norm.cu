#include "compute/cuda/cast_row.h"

namespace quern::cuda {

namespace {

constexpr int64_t kPartialRows = 64;

template <int kN>
__device__ __forceinline__ float InverseRms(const float* row, float eps, int64_t cols) {
  float sum = 0;
  for (int64_t i = int64_t{threadIdx.x} * kN; i < cols; i += kRowThreads * kN) {
    float v[kN];
    Load(row + i, v);
#pragma unroll
    for (int j = 0; j < kN; ++j) sum += v[j] * v[j];
  }
  sum = BlockReduce<Sum>(sum);
  return 1.0f / sqrtf(sum / static_cast<float>(cols) + eps);
}

// A block a row.
template <typename Out, int kN>
__global__ void __launch_bounds__(kRowThreads)
    RmsNormKernel(Rows<const float> x, const float* weight, float eps, int64_t cols, Rows<Out> y, float* inv_rms) {
  const float* row = x.At(blockIdx.x);
  const float inv = InverseRms<kN>(row, eps, cols);
  Out* out = y.At(blockIdx.x);
  for (int64_t i = int64_t{threadIdx.x} * kN; i < cols; i += kRowThreads * kN) {
    float v[kN], w[kN];
    Load(row + i, v);
    Load(weight + i, w);
#pragma unroll
    for (int j = 0; j < kN; ++j) v[j] *= inv * w[j];
    Store(out + i, v);
  }
  if (inv_rms != nullptr && threadIdx.x == 0) inv_rms[blockIdx.x] = inv;
}

// The same with the cast of y, which waits for its scale in shared memory (`held`) or is read again.
__global__ void __launch_bounds__(kRowThreads)
    RmsNormCastKernel(Rows<const float> x, const float* weight, float eps, Rows<Bf16> y, float* inv_rms, bool held,
                      CastParams cast) {
  QUERN_DYNAMIC_SHARED(memory);
  constexpr int kN = kWide;
  const float* row = x.At(blockIdx.x);
  const float inv = InverseRms<kN>(row, eps, cast.cols);
  Bf16* out = y.At(blockIdx.x);
  Bf16* again = held ? reinterpret_cast<Bf16*>(memory) : out;
  uint32_t most = 0;
  for (int64_t i = int64_t{threadIdx.x} * kN; i < cast.cols; i += kRowThreads * kN) {
    float v[kN], w[kN];
    Load(row + i, v);
    Load(weight + i, w);
#pragma unroll
    for (int j = 0; j < kN; ++j) v[j] *= inv * w[j];
    Store(out + i, v);
    if (held) Store(again + i, v);
    Load(again + i, v);
    ScaleColumns(cast, i, v);
    most = Max::Of(most, Largest(v));
  }
  most = BlockReduce<Max>(most);
  if (inv_rms != nullptr && threadIdx.x == 0) inv_rms[blockIdx.x] = inv;
  CastRow<E4M3Codec, kN>(cast, blockIdx.x, most, true, [&](int64_t i, float(&v)[kN]) {
    Load(again + i, v);
    ScaleColumns(cast, i, v);
  });
}

// dx_j += dy_j w_j inv - x_j inv^3 / D * sum over i of dy_i w_i x_i.
template <typename Grad, int kN>
__global__ void __launch_bounds__(kRowThreads)
    RmsNormBackwardKernel(Rows<const Grad> dy, Rows<const float> x, const float* weight, const float* inv_rms,
                          int64_t cols, Rows<float> dx) {
  const Grad* grad = dy.At(blockIdx.x);
  const float* row = x.At(blockIdx.x);
  float dot = 0;
  for (int64_t i = int64_t{threadIdx.x} * kN; i < cols; i += kRowThreads * kN) {
    float d[kN], w[kN], v[kN];
    Load(grad + i, d);
    Load(weight + i, w);
    Load(row + i, v);
#pragma unroll
    for (int j = 0; j < kN; ++j) dot += d[j] * w[j] * v[j];
  }
  dot = BlockReduce<Sum>(dot);
  const float inv = inv_rms[blockIdx.x], slope = dot * inv * inv * inv / static_cast<float>(cols);
  float* out = dx.At(blockIdx.x);
  for (int64_t i = int64_t{threadIdx.x} * kN; i < cols; i += kRowThreads * kN) {
    float d[kN], w[kN], v[kN], sum[kN];
    Load(grad + i, d);
    Load(weight + i, w);
    Load(row + i, v);
    Load(out + i, sum);
#pragma unroll
    for (int j = 0; j < kN; ++j) sum[j] += d[j] * w[j] * inv - v[j] * slope;
    Store(out + i, sum);
  }
}

template <typename Grad>
__global__ void __launch_bounds__(kRowThreads)
    WeightPartials(Rows<const Grad> dy, Rows<const float> x, const float* inv_rms, int64_t rows, int64_t cols,
                   Rows<float> partials) {
  const int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (i >= cols) return;
  const int64_t begin = int64_t{blockIdx.y} * kPartialRows;
  const int64_t end = begin + kPartialRows < rows ? begin + kPartialRows : rows;
  float sum = 0;
  for (int64_t r = begin; r < end; ++r) sum += static_cast<float>(dy.At(r)[i]) * x.At(r)[i] * inv_rms[r];
  partials.At(blockIdx.y)[i] = sum;
}

}  // namespace

bool RmsNorm(Context& context, const RmsNormArgs& args) {
  if (args.x.rows == 0) return true;
  if (CastsInPass(args.y, args.cast, args.x, args.weight)) {
    const int64_t held = HeldBytes(args.x.cols);
    Launch(RmsNormCastKernel, dim3(static_cast<unsigned>(args.x.rows)), dim3(kRowThreads), held, context.stream(),
           RowsOf<const float>(args.x), Vector(args.weight), args.eps, RowsOf<Bf16>(args.y), Vector(args.inv_rms),
           held > 0, CastParamsOf(args.cast, args.x.cols));
    return true;
  }
  WithType(args.y, [&](auto type) {
    using T = decltype(type);
    WithWidth(
        [&](auto width) {
          Launch(RmsNormKernel<T, width>, dim3(static_cast<unsigned>(args.x.rows)), dim3(kRowThreads), 0,
                 context.stream(), RowsOf<const float>(args.x), Vector(args.weight), args.eps, args.x.cols,
                 RowsOf<T>(args.y), Vector(args.inv_rms));
        },
        args.x, args.weight, args.y);
  });
  return args.cast.codes.empty();
}

void RmsNormBackward(Context& context, const RmsNormBackwardArgs& args) {
  const int64_t rows = args.x.rows, cols = args.x.cols;
  if (rows == 0) return;
  const Arena::Scope scope(context.scratch);
  const int64_t pieces = (rows + kPartialRows - 1) / kPartialRows;
  QUERN_CHECK(pieces <= 65535, "more rows than a launch has");
  const TensorView partials = context.scratch.New(DType::kF32, pieces, cols);
  WithType(args.dy, [&](auto type) {
    using T = decltype(type);
    WithWidth(
        [&](auto width) {
          Launch(RmsNormBackwardKernel<T, width>, dim3(static_cast<unsigned>(rows)), dim3(kRowThreads), 0,
                 context.stream(), RowsOf<const T>(args.dy), RowsOf<const float>(args.x), Vector(args.weight),
                 Vector(args.inv_rms), cols, RowsOf<float>(args.dx));
        },
        args.dy, args.x, args.weight, args.dx);
    Launch(WeightPartials<T>,
           dim3(static_cast<unsigned>((cols + kRowThreads - 1) / kRowThreads), static_cast<unsigned>(pieces)),
           dim3(kRowThreads), 0, context.stream(), RowsOf<const T>(args.dy), RowsOf<const float>(args.x),
           Vector(args.inv_rms), rows, cols, RowsOf<float>(partials));
  });
  AddPartials(context, partials, args.dweight);
}

}  // namespace quern::cuda
