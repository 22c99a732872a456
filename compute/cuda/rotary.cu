#include "compute/cuda/rows.h"

namespace quern::cuda {

namespace {

constexpr int kHeads = 4;  // a block is kHeads warps; a warp has one head at a time
constexpr int kPairs = 4;  // of a lane: heads of up to 256 channels
constexpr int64_t kPartialRows = 16;

template <typename In, typename Out>
struct RotaryParams {
  Rows<const In> x;
  Rows<Out> y;
  const int32_t* positions;
  Rows<const float> cos, sin;
  const float* q_norm;
  const float* k_norm;
  float eps;
  int heads, kv_heads, half;
};

// A warp's head: lane i has the pairs (i + 32 j, half + i + 32 j).
template <typename T>
__device__ __forceinline__ void LoadPairs(const T* x, int half, float (&a)[kPairs], float (&b)[kPairs]) {
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int i = static_cast<int>(threadIdx.x % kWarp) + kWarp * j;
    a[j] = i < half ? static_cast<float>(x[i]) : 0.0f;
    b[j] = i < half ? static_cast<float>(x[half + i]) : 0.0f;
  }
}

__device__ __forceinline__ float InverseRms(const float (&a)[kPairs], const float (&b)[kPairs], int half, float eps) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) sum += a[j] * a[j] + b[j] * b[j];
  return 1.0f / sqrtf(WarpReduce<Sum>(sum) / static_cast<float>(2 * half) + eps);
}

// x and y may be the same: a lane writes only what it has read.
template <typename In, typename Out>
__global__ void __launch_bounds__(kHeads* kWarp) RotaryKernel(RotaryParams<In, Out> args) {
  const int64_t row = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y * kHeads + threadIdx.x / kWarp), half = args.half;
  if (head >= args.heads + 2 * args.kv_heads) return;
  float a[kPairs], b[kPairs];
  LoadPairs(args.x.At(row) + 2 * half * head, half, a, b);
  Out* y = args.y.At(row) + 2 * half * head;
  const bool rotated = head < args.heads + args.kv_heads;
  const float* weight = !rotated ? nullptr : head < args.heads ? args.q_norm : args.k_norm;
  const float inv = weight == nullptr ? 1.0f : InverseRms(a, b, half, args.eps);
  const int64_t position = args.positions[row];
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int i = static_cast<int>(threadIdx.x % kWarp) + kWarp * j;
    if (i >= half) continue;
    if (weight != nullptr) {
      a[j] = a[j] * inv * weight[i];
      b[j] = b[j] * inv * weight[half + i];
    }
    const float cos = rotated ? args.cos.At(position)[i] : 1.0f, sin = rotated ? args.sin.At(position)[i] : 0.0f;
    y[i] = Out(a[j] * cos - b[j] * sin);
    y[half + i] = Out(b[j] * cos + a[j] * sin);
  }
}

// In place on y, which holds the gradient of the rotated heads; values' gradients pass. With norms a block's warps sum
// what kPartialRows rows give to the norms' weights: partials [pieces, 2 * head_dim] for queries, then keys.
template <typename In, typename Grad>
__global__ void __launch_bounds__(kHeads* kWarp)
    RotaryBackwardKernel(RotaryParams<In, Grad> args, int64_t rows, Rows<float> partials) {
  QUERN_DYNAMIC_SHARED(memory);  // [kHeads][4 half], with norms
  const int warp = static_cast<int>(threadIdx.x / kWarp), lane = static_cast<int>(threadIdx.x % kWarp);
  const int half = args.half;
  const bool norm = args.q_norm != nullptr;
  float dq_low[kPairs] = {}, dq_high[kPairs] = {}, dk_low[kPairs] = {}, dk_high[kPairs] = {};
  const int64_t begin = int64_t{blockIdx.x} * kPartialRows;
  const int64_t end = begin + kPartialRows < rows ? begin + kPartialRows : rows;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t position = args.positions[row];
    for (int head = warp; head < args.heads + args.kv_heads; head += kHeads) {
      Grad* dy = args.y.At(row) + 2 * half * head;
      const bool query = head < args.heads;
      const float* weight = query ? args.q_norm : args.k_norm;
      float a[kPairs], b[kPairs], x_low[kPairs] = {}, x_high[kPairs] = {}, inv = 1;
      LoadPairs(dy, half, a, b);
      if (norm) {
        LoadPairs(args.x.At(row) + 2 * half * head, half, x_low, x_high);
        inv = InverseRms(x_low, x_high, half, args.eps);
      }
      float dot = 0;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        const int i = lane + kWarp * j;
        if (i >= half) continue;
        const float cos = args.cos.At(position)[i], sin = args.sin.At(position)[i];
        const float low = a[j] * cos + b[j] * sin, high = b[j] * cos - a[j] * sin;
        a[j] = low;
        b[j] = high;
        if (norm) dot += low * weight[i] * x_low[j] + high * weight[half + i] * x_high[j];
      }
      float slope = 0;
      if (norm) slope = WarpReduce<Sum>(dot) * inv * inv * inv / static_cast<float>(2 * half);
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        const int i = lane + kWarp * j;
        if (i >= half) continue;
        if (norm) {
          (query ? dq_low : dk_low)[j] += a[j] * x_low[j] * inv;
          (query ? dq_high : dk_high)[j] += b[j] * x_high[j] * inv;
          a[j] = a[j] * inv * weight[i] - x_low[j] * slope;
          b[j] = b[j] * inv * weight[half + i] - x_high[j] * slope;
        }
        dy[i] = Grad(a[j]);
        dy[half + i] = Grad(b[j]);
      }
    }
  }
  if (!norm) return;
  auto* sums = reinterpret_cast<float*>(memory);
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane + kWarp * j;
    if (i >= half) continue;
    float* own = sums + warp * 4 * half;
    own[i] = dq_low[j];
    own[half + i] = dq_high[j];
    own[2 * half + i] = dk_low[j];
    own[3 * half + i] = dk_high[j];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 4 * half; i += kHeads * kWarp) {
    float sum = 0;
    for (int w = 0; w < kHeads; ++w) sum += sums[w * 4 * half + i];
    partials.At(blockIdx.x)[i] = sum;
  }
}

template <typename In, typename Out>
RotaryParams<In, Out> Params(Context& context, const RotaryArgs& args, const TensorView& y) {
  QUERN_CHECK(args.head_dim <= 2 * kPairs * kWarp, "heads of more than 256 channels");
  return {RowsOf<const In>(args.qkv),
          RowsOf<Out>(y),
          context.staging.Put(args.positions),
          RowsOf<const float>(args.cos),
          RowsOf<const float>(args.sin),
          Vector(args.q_norm),
          Vector(args.k_norm),
          args.norm_eps,
          static_cast<int>(args.heads),
          static_cast<int>(args.kv_heads),
          static_cast<int>(args.head_dim / 2)};
}

}  // namespace

void Rotary(Context& context, const RotaryArgs& args) {
  const int64_t heads = args.heads + 2 * args.kv_heads;
  WithTypes(args.qkv, args.out, [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    Launch(RotaryKernel<In, Out>,
           dim3(static_cast<unsigned>(args.qkv.rows), static_cast<unsigned>((heads + kHeads - 1) / kHeads)),
           dim3(kHeads * kWarp), 0, context.stream(), Params<In, Out>(context, args, args.out));
  });
}

void RotaryBackward(Context& context, const RotaryBackwardArgs& args) {
  const RotaryArgs& forward = args.forward;
  const int64_t rows = args.dqkv.rows, dim = forward.head_dim;
  const int64_t pieces = (rows + kPartialRows - 1) / kPartialRows;
  if (rows == 0) return;
  const bool norm = !forward.q_norm.empty();
  const Arena::Scope scope(context.scratch);
  const TensorView partials = norm ? context.scratch.New(DType::kF32, pieces, 2 * dim) : TensorView{};
  WithTypes(forward.qkv, args.dqkv, [&](auto in, auto grad) {
    using In = decltype(in);
    using Grad = decltype(grad);
    Launch(RotaryBackwardKernel<In, Grad>, dim3(static_cast<unsigned>(pieces)), dim3(kHeads * kWarp),
           norm ? kHeads * 2 * dim * 4 : 0, context.stream(), Params<In, Grad>(context, forward, args.dqkv), rows,
           RowsOf<float>(partials));
  });
  if (!norm) return;
  AddPartials(context, partials.Cols(0, dim), args.dq_norm);
  AddPartials(context, partials.Cols(dim, dim), args.dk_norm);
}

}  // namespace quern::cuda
