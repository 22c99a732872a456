#include "compute/cuda/rows.h"

namespace quern::cuda {

namespace {

constexpr int kSoftmaxThreads = 512;

// Of part of a row: the largest z, and the sums of e^(z - max), e^(z - max) (z - max) and z.
struct Part {
  float max = -INFINITY;
  float mass = 0;
  float offsets = 0;
  float total = 0;
};

// Sums relative to `max`, which is at least p.max.
__device__ __forceinline__ void Raise(Part& p, float max) {
  if (p.max == max) return;
  const float factor = expf(p.max - max);  // 0 for a part that has seen nothing finite
  if (p.mass > 0) p.offsets = factor * (p.offsets + (p.max - max) * p.mass);
  p.mass *= factor;
  p.max = max;
}

__device__ __forceinline__ Part Merge(Part a, Part b) {
  const float max = fmaxf(a.max, b.max);
  Raise(a, max);
  Raise(b, max);
  return {max, a.mass + b.mass, a.offsets + b.offsets, a.total + b.total};
}

template <int kN>
__device__ __forceinline__ void Add(Part& p, const float (&z)[kN]) {
  float max = p.max;
#pragma unroll
  for (int j = 0; j < kN; ++j) max = fmaxf(max, z[j]);
  Raise(p, max);
#pragma unroll
  for (int j = 0; j < kN; ++j) {
    const float offset = z[j] - max;
    const float e = z[j] == -INFINITY ? 0.0f : expf(offset);  // also where max is -infinity
    p.mass += e;
    p.offsets += e > 0 ? e * offset : 0.0f;
    p.total += z[j];
  }
}

// Every thread gets the sum over the block's threads, always in the same order.
__device__ __forceinline__ Part BlockMerge(Part p) {
  __shared__ float shared[4][kWarp];
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const Part other = {ShuffleXor(p.max, lanes), ShuffleXor(p.mass, lanes), ShuffleXor(p.offsets, lanes),
                        ShuffleXor(p.total, lanes)};
    // The lower lane first: both lanes then compute the same bits.
    p = (threadIdx.x & static_cast<unsigned>(lanes)) == 0 ? Merge(p, other) : Merge(other, p);
  }
  const unsigned warp = threadIdx.x / kWarp;
  __syncthreads();
  if (threadIdx.x % kWarp == 0) {
    shared[0][warp] = p.max;
    shared[1][warp] = p.mass;
    shared[2][warp] = p.offsets;
    shared[3][warp] = p.total;
  }
  __syncthreads();
  Part out = {shared[0][0], shared[1][0], shared[2][0], shared[3][0]};
  for (unsigned i = 1; i < blockDim.x / kWarp; ++i)
    out = Merge(out, {shared[0][i], shared[1][i], shared[2][i], shared[3][i]});
  return out;
}

struct LogSoftmaxOut {
  float* lse = nullptr;
  float* log_prob = nullptr;
  float* mean_log_prob = nullptr;
  float* entropy = nullptr;
};

// A block a row, which is read once.
template <int kN>
__global__ void __launch_bounds__(kSoftmaxThreads)
    LogSoftmaxKernel(Rows<const float> logits, int64_t cols, const int32_t* targets, LogSoftmaxOut out) {
  const float* row = logits.At(blockIdx.x);
  Part part;
  for (int64_t i = int64_t{threadIdx.x} * kN; i < cols; i += kSoftmaxThreads * kN) {
    float z[kN];
    Load(row + i, z);
    Add(part, z);
  }
  part = BlockMerge(part);
  if (threadIdx.x != 0) return;
  const float log_mass = logf(part.mass), lse = part.max + log_mass;
  if (out.lse != nullptr) out.lse[blockIdx.x] = lse;
  if (out.log_prob != nullptr) {
    const int32_t target = targets[blockIdx.x];
    out.log_prob[blockIdx.x] = target < 0 ? NAN : row[target] - lse;
  }
  if (out.mean_log_prob != nullptr) out.mean_log_prob[blockIdx.x] = part.total / static_cast<float>(cols) - lse;
  if (out.entropy != nullptr) out.entropy[blockIdx.x] = log_mass - part.offsets / part.mass;
}

void LaunchLogSoftmax(Context& context, const TensorView& logits, const int32_t* targets, const LogSoftmaxOut& out) {
  WithWidth(
      [&](auto width) {
        Launch(LogSoftmaxKernel<width>, dim3(static_cast<unsigned>(logits.rows)), dim3(kSoftmaxThreads), 0,
               context.stream(), RowsOf<const float>(logits), logits.cols, targets, out);
      },
      logits);
}

template <typename Out, int kN>
struct LogSoftmaxBackwardOp {
  Rows<const float> logits;
  const float* lse;
  const int32_t* targets;
  const float* a;
  const float* b;
  const float* c;
  int32_t reserved;
  float each;  // 1 / V
  Rows<Out> dlogits;
  __device__ void operator()(int64_t row, int64_t i) const {
    const float by_target = a[row], by_mean = b == nullptr ? 0.0f : b[row], by_reserved = c == nullptr ? 0.0f : c[row];
    const float mass = by_target + by_mean + by_reserved, rest = by_mean * each, shift = lse[row];
    const int64_t target = targets[row] - i, other = c == nullptr ? -1 : reserved - i;
    float z[kN];
    Load(logits.At(row) + i, z);
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      float d = rest - mass * expf(z[j] - shift);
      if (j == target) d += by_target;
      if (j == other) d += by_reserved;
      z[j] = d;
    }
    Store(dlogits.At(row) + i, z);
  }
};

struct MaxRatioParams {
  Rows<const float> value, behaviour;
  int64_t cols;
  float epsilon, top_p;
  int64_t reserved;
  Rows<float> p;  // scratch
  float* out;
};

// Mass of the ids whose p is at least `threshold`. Never decreases when the threshold falls: rounding is monotone.
__device__ __forceinline__ float MassFrom(const float* p, int64_t cols, float threshold) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < cols; i += kSoftmaxThreads) sum += p[i] >= threshold ? p[i] : 0.0f;
  return BlockReduce<Sum>(sum);
}

// As the CPU's (cpu/max_ratio.cpp): the nucleus by bisection over the bits of its smallest probability. A block a row.
__global__ void __launch_bounds__(kSoftmaxThreads) MaxRatioKernel(MaxRatioParams args) {
  const float* behaviour = args.behaviour.At(blockIdx.x);
  const float* value = args.value.At(blockIdx.x);
  float* p = args.p.At(blockIdx.x);
  float most = -INFINITY, value_most = -INFINITY;
  for (int64_t i = threadIdx.x; i < args.cols; i += kSoftmaxThreads) {
    if (i != args.reserved) most = fmaxf(most, behaviour[i]);
    value_most = fmaxf(value_most, value[i]);
  }
  most = BlockReduce<Max>(most);
  value_most = BlockReduce<Max>(value_most);
  float mass = 0, value_mass = 0;
  for (int64_t i = threadIdx.x; i < args.cols; i += kSoftmaxThreads) {
    const float e = expf(behaviour[i] - most);
    p[i] = e;
    if (i != args.reserved) mass += e;
    value_mass += expf(value[i] - value_most);
  }
  mass = BlockReduce<Sum>(mass);
  value_mass = BlockReduce<Sum>(value_mass);
  const float inverse = 1.0f / mass, value_inverse = 1.0f / value_mass;
  for (int64_t i = threadIdx.x; i < args.cols; i += kSoftmaxThreads) p[i] = i == args.reserved ? -1.0f : p[i] * inverse;
  __syncthreads();

  uint32_t low = 0, high = std::bit_cast<uint32_t>(1.0f) + 1;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    if (MassFrom(p, args.cols, std::bit_cast<float>(middle)) >= args.top_p) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const float boundary = std::bit_cast<float>(low);
  // Everything from `support` on is in. Ids exactly at the boundary are cut off where the mass is reached.
  float support = args.epsilon < boundary ? args.epsilon : boundary;
  int64_t last = 0;
  if (boundary > 0 && boundary < args.epsilon) {
    support = std::bit_cast<float>(low + 1);
    const float above = MassFrom(p, args.cols, support);
    __shared__ int64_t end;
    if (threadIdx.x == 0) {
      float sum = above;
      int64_t id = 0;
      for (; id < args.cols && sum < args.top_p; ++id)
        if (p[id] == boundary) sum += boundary;
      end = id;
    }
    __syncthreads();
    last = end;
  }
  float best = 0;
  for (int64_t i = threadIdx.x; i < args.cols; i += kSoftmaxThreads) {
    const bool in = p[i] >= support || (i < last && p[i] == boundary);
    if (!in) continue;
    best = fmaxf(best, fminf(1.0f, expf(value[i] - value_most) * value_inverse / fmaxf(args.epsilon, p[i])));
  }
  best = BlockReduce<Max>(best);
  if (threadIdx.x == 0) args.out[blockIdx.x] = best;
}

}  // namespace

void LogSoftmax(Context& context, const LogSoftmaxArgs& args) {
  const int32_t* targets = args.log_prob.empty() ? nullptr : context.staging.Put(args.targets);
  LaunchLogSoftmax(context, args.logits, targets,
                   {Vector(args.lse), Vector(args.log_prob), Vector(args.mean_log_prob), Vector(args.entropy)});
}

void LogProbs(Context& context, const TensorView& logits, const TensorView& ids, const TensorView& log_prob) {
  LaunchLogSoftmax(context, logits, static_cast<const int32_t*>(ids.data), {.log_prob = Vector(log_prob)});
}

void LogSoftmaxBackward(Context& context, const LogSoftmaxBackwardArgs& args) {
  const int32_t* targets = context.staging.Put(args.targets);
  WithType(args.dlogits, [&](auto type) {
    using T = decltype(type);
    WithWidth(
        [&](auto width) {
          constexpr int kN = width;
          LaunchForGroups<kN>(
              context, args.logits.rows, args.logits.cols,
              LogSoftmaxBackwardOp<T, kN>{RowsOf<const float>(args.logits), Vector(args.lse), targets, Vector(args.a),
                                          Vector(args.b), Vector(args.c), args.reserved,
                                          1.0f / static_cast<float>(args.logits.cols), RowsOf<T>(args.dlogits)});
        },
        args.logits, args.dlogits);
  });
}

void MaxRatio(Context& context, const MaxRatioArgs& args) {
  constexpr int64_t kMost = 256;  // rows at a time: they need scratch
  const int64_t rows = args.value_logits.rows, cols = args.value_logits.cols;
  const Arena::Scope scope(context.scratch);
  const TensorView p = context.scratch.New(DType::kF32, rows < kMost ? rows : kMost, cols);
  for (int64_t begin = 0; begin < rows; begin += kMost) {
    const int64_t count = rows - begin < kMost ? rows - begin : kMost;
    const MaxRatioParams params = {RowsOf<const float>(args.value_logits.Rows(begin, count)),
                                   RowsOf<const float>(args.behaviour_logits.Rows(begin, count)),
                                   cols,
                                   args.epsilon,
                                   args.top_p,
                                   args.reserved,
                                   RowsOf<float>(p),
                                   Vector(args.max_ratio) + begin};
    Launch(MaxRatioKernel, dim3(static_cast<unsigned>(count)), dim3(kSoftmaxThreads), 0, context.stream(), params);
  }
}

}  // namespace quern::cuda
