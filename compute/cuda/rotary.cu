#include <algorithm>

#include "compute/cuda/attention.h"

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

// Heads of 64 and 128 channels: up to kBlock rows of one head by a block, kLanes threads a row, each with kWide
// channels of either half. Keys and values go to the pages on the way, where there are any: keys through shared memory,
// so that neighbouring threads write neighbouring positions. Without sequences a task's rows are those of the call.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kBlock* kLanes)
    RotaryPagesKernel(RotaryParams<T, T> args, const WriteTask* tasks, const Sequence* sequences, KvLayout layout,
                      int64_t layer) {
  constexpr int kHalf = kLanes * kWide, kDim = 2 * kHalf, kPad = 4 / sizeof(T);  // rows in other banks
  __shared__ T keys[kBlock * (kDim + kPad)];
  const WriteTask task = tasks[blockIdx.x];
  const Sequence s = sequences != nullptr ? sequences[task.sequence] : Sequence{};
  const int own = static_cast<int>(threadIdx.x) / kLanes, i = static_cast<int>(threadIdx.x) % kLanes * kWide;
  const int head = static_cast<int>(blockIdx.y), kv_head = head - args.heads, count = task.end - task.begin;
  const bool rotated = head < args.heads + args.kv_heads;
  const int64_t row = s.row + task.begin + (own < count ? own : 0);  // no lane leaves: they sum together
  const T* x = args.x.At(row) + kDim * head;
  float a[kWide], b[kWide];
  Load(x + i, a);
  Load(x + kHalf + i, b);
  const float* weight = !rotated ? nullptr : head < args.heads ? args.q_norm : args.k_norm;
  if (weight != nullptr) {
    float sum = 0, low[kWide], high[kWide];
#pragma unroll
    for (int j = 0; j < kWide; ++j) sum += a[j] * a[j] + b[j] * b[j];
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) sum += ShuffleXor(sum, lanes);
    const float inv = 1.0f / sqrtf(sum / static_cast<float>(kDim) + args.eps);
    Load(weight + i, low);
    Load(weight + kHalf + i, high);
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
      a[j] = a[j] * inv * low[j];
      b[j] = b[j] * inv * high[j];
    }
  }
  if (rotated) {
    const int64_t position = args.positions[row];
    float cos[kWide], sin[kWide];
    Load(args.cos.At(position) + i, cos);
    Load(args.sin.At(position) + i, sin);
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
      const float low = a[j];
      a[j] = low * cos[j] - b[j] * sin[j];
      b[j] = b[j] * cos[j] + low * sin[j];
    }
  }
  if (own < count) {
    T* y = args.y.At(row) + kDim * head;
    Store(y + i, a);
    Store(y + kHalf + i, b);
  }
  if (sequences == nullptr || kv_head < 0) return;
  const int64_t first = s.context + task.begin, slot = first % kPage;
  auto* page = static_cast<T*>(const_cast<void*>(s.pages[first / kPage]));
  if (!rotated) {
    T* values = page + layout.ValueOffset(layer, kv_head - args.kv_heads) + (slot + own) * kDim;
    if (own >= count) return;
    Store(values + i, a);
    Store(values + kHalf + i, b);
    return;
  }
#pragma unroll
  for (int j = 0; j < kWide; ++j) {
    keys[own * (kDim + kPad) + i + j] = T(a[j]);
    keys[own * (kDim + kPad) + kHalf + i + j] = T(b[j]);
  }
  __syncthreads();
  T* to = page + layout.KeyOffset(layer, kv_head) + layout.KeyElement(slot, 0);
  if (count == kBlock) {
    for (int at = static_cast<int>(threadIdx.x); at < kDim * kBlock / kWide; at += kBlock * kLanes) {
      const int d = at / (kBlock / kWide), part = at % (kBlock / kWide) * kWide;
      Group<T, kWide> group;
#pragma unroll
      for (int j = 0; j < kWide; ++j) group.values[j] = keys[(part + j) * (kDim + kPad) + d];
      *reinterpret_cast<Group<T, kWide>*>(to + d * kBlock + part) = group;
    }
    return;
  }
  for (int at = static_cast<int>(threadIdx.x); at < kDim * count; at += kBlock * kLanes)
    to[at / count * kBlock + at % count] = keys[at % count * (kDim + kPad) + at / count];
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

// Whether RotaryPagesKernel can: every access in groups of kWide.
bool IsWide(const RotaryArgs& args) {
  if ((args.head_dim != 64 && args.head_dim != 128) || args.qkv.dtype != args.out.dtype) return false;
  bool wide = false;
  WithWidth([&](auto width) { wide = width == kWide; }, args.qkv, args.out, args.cos, args.sin, args.q_norm,
            args.k_norm);
  return wide;
}

template <typename T, int kLanes>
void LaunchRotaryPages(Context& context, const RotaryArgs& args, const std::vector<WriteTask>& tasks,
                       const KvWriteArgs* pages) {
  Launch(RotaryPagesKernel<T, kLanes>,
         dim3(static_cast<unsigned>(tasks.size()), static_cast<unsigned>(args.heads + 2 * args.kv_heads)),
         dim3(kBlock * kLanes), 0, context.stream(), Params<T, T>(context, args, args.out), context.staging.Put(tasks),
         pages == nullptr ? nullptr : PutSequences(context, pages->sequences, pages->layout, {}),
         pages == nullptr ? KvLayout{} : pages->layout, pages == nullptr ? int64_t{0} : pages->layer);
}

// With the pages where their rows are those of the call and of its type.
bool RotaryWide(Context& context, const RotaryArgs& args) {
  const KvWriteArgs* pages = args.pages;
  if (pages != nullptr) {
    int64_t rows = 0;
    for (const SequenceRows& s : pages->sequences) rows += s.count;
    if (rows != args.qkv.rows || pages->layout.dtype != args.out.dtype) pages = nullptr;
  }
  std::vector<WriteTask> tasks;
  if (pages != nullptr) {
    tasks = WriteTasks(pages->sequences);
  } else {
    for (int64_t row = 0; row < args.qkv.rows; row += kBlock)
      tasks.push_back(
          {0, static_cast<int32_t>(row), static_cast<int32_t>(std::min<int64_t>(row + kBlock, args.qkv.rows))});
  }
  WithType(args.out, [&](auto type) {
    using T = decltype(type);
    args.head_dim == 64 ? LaunchRotaryPages<T, 4>(context, args, tasks, pages)
                        : LaunchRotaryPages<T, 8>(context, args, tasks, pages);
  });
  return args.pages == pages;
}

}  // namespace

bool Rotary(Context& context, const RotaryArgs& args) {
  if (args.qkv.rows == 0) return true;
  if (IsWide(args)) return RotaryWide(context, args);
  const int64_t heads = args.heads + 2 * args.kv_heads;
  WithTypes(args.qkv, args.out, [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    Launch(RotaryKernel<In, Out>,
           dim3(static_cast<unsigned>(args.qkv.rows), static_cast<unsigned>((heads + kHeads - 1) / kHeads)),
           dim3(kHeads * kWarp), 0, context.stream(), Params<In, Out>(context, args, args.out));
  });
  return args.pages == nullptr;
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
