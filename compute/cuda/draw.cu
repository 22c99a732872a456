#include "compute/cuda/rows.h"

// Ops::Draw's choice, in the order that ops.h defines and with the CPU's arithmetic (cpu/simd.h, cpu/draw.cpp), bit by
// bit: compiled without contraction (CMakeLists.txt), fused operations are named.

namespace quern::cuda {

namespace {

constexpr int kLanes = 16;  // of a vector there
constexpr int kSums = 4, kStep = kSums * kLanes;
constexpr int kBlocks = kRowThreads / kLanes;

struct BlockDraw {
  float max;
  float weight;   // of e^((logit - max) / temperature)
  int32_t index;  // in the block, of what was drawn
};

// cpu/simd.h's, for x <= 0.
__device__ __forceinline__ float Exp(float x) {
  if (x < -87.33f) return 0;
  const float n = rintf(x * 1.44269504f);
  float r = __fmaf_rn(-n, 0.693145751953125f, x);
  r = __fmaf_rn(-n, 1.42860677e-6f, r);
  float p = 1.383832423e-3f;
  p = __fmaf_rn(p, r, 8.369165473e-3f);
  p = __fmaf_rn(p, r, 4.166810215e-2f);
  p = __fmaf_rn(p, r, 1.666651666e-1f);
  p = __fmaf_rn(p, r, 4.999999404e-1f);
  p = __fmaf_rn(p, r * r, r) + 1.0f;
  return p * std::bit_cast<float>(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
}

// Sixteen threads beside each other: what all of them hold, folded as SumLanes does.
template <typename Op, typename T>
__device__ __forceinline__ T Fold(T value) {
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) value = Op::Of(value, ShuffleXor(value, half));
  return value;
}

// How many of `count` ascending running sums sum(i) are not beyond `left`, which is kept below `total`: which part it
// falls into. `left` becomes what is left of it there.
template <typename F>
__device__ __forceinline__ int Part(int count, float total, float& left, F sum) {
  left = fminf(left, total * (1 - 0x1p-24f));
  int part = 0;
  float before = 0;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const float s = sum(i);
    if (s <= left) before = s;
    part += s <= left ? 1 : 0;
  }
  left -= before;
  return part;
}

// Sixteen threads a block of logits.
__global__ void __launch_bounds__(kRowThreads) DrawInBlocks(Rows<const float> logits, int64_t rows, int64_t vocabulary,
                                                            const DrawUniforms* uniforms, BlockDraw* draws) {
  const int64_t blocks = LogitBlocks(vocabulary), all = rows * blocks;
  const int64_t own_block = int64_t{blockIdx.x} * kBlocks + threadIdx.x / kLanes;
  const int64_t at = own_block < all ? own_block : all - 1;
  const int lane = static_cast<int>(threadIdx.x % kLanes);
  const int64_t row = at / blocks, begin = at % blocks * kLogitBlock;
  const int n = static_cast<int>(vocabulary - begin < kLogitBlock ? vocabulary - begin : kLogitBlock);
  const float* z = logits.At(row) + begin;
  const DrawUniforms by = uniforms[row];

  float max = -INFINITY;
  for (int i = lane; i < n; i += kLanes) max = z[i] > max ? z[i] : max;
  max = Fold<Max>(max);
  const float origin = max == -INFINITY ? 0.0f : max;
  const auto mass = [&](int i) { return Exp((z[i] - origin) * by.inverse_temperature); };
  float own[kSums] = {};  // of this lane: every kSums-th vector each
  int i = 0;
  for (; i + kStep <= n; i += kStep) {
#pragma unroll
    for (int j = 0; j < kSums; ++j) own[j] += mass(i + j * kLanes + lane);
  }
#pragma unroll
  for (int j = 0; j < kSums; ++j)
    if (i + j * kLanes + lane < n) own[j] += mass(i + j * kLanes + lane);
  const float of_lane = (own[0] + own[1]) + (own[2] + own[3]), weight = Fold<Sum>(of_lane);

  // Neighbouring sixteens may be different rows: all take part in every shuffle.
  int first = lane;
  while (first < n && z[first] != max) first += kLanes;
  first = -Fold<Max>(first < n ? -first : 1 - n);
  const int group = static_cast<int>(threadIdx.x % kWarp) / kLanes * kLanes;
  float lanes[kLanes];  // running sums
#pragma unroll
  for (int l = 0; l < kLanes; ++l) {
    lanes[l] = ShuffleFrom(of_lane, group + l);
    if (l > 0) lanes[l] += lanes[l - 1];
  }
  float left = by.in_block * weight;
  const int drawn = Part(kLanes, lanes[kLanes - 1], left, [&](int l) { return lanes[l]; });
  int index = 0;
  if (lane == drawn) {
    const float two = own[0] + own[1], three = own[2] + two, four = two + (own[2] + own[3]);
    const int j = Part(kSums, four, left, [&](int k) {
      return k == 0 ? own[0] : k == 1 ? two : k == 2 ? three : four;
    });
    left = fminf(left, (j == 0 ? own[0] : j == 1 ? own[1] : j == 2 ? own[2] : own[3]) * (1 - 0x1p-24f));
    float sum = 0;
    for (index = j * kLanes + lane; index < n; index += kStep) {
      sum += mass(index);
      if (sum > left) break;
    }
  }
  index = ShuffleFrom(index, group + drawn % kLanes);
  if (!(weight > 0) || index >= n) index = 0;
  if (own_block < all && lane == 0) draws[at] = {max, weight, by.in_block < 0 ? first : index};
}

// A warp a row, both halves of which do the same: one of its blocks, and so the id.
__global__ void __launch_bounds__(kWarp)
    DrawBlocks(const BlockDraw* all_draws, int64_t blocks, const DrawUniforms* uniforms, int32_t* ids) {
  QUERN_DYNAMIC_SHARED(memory);
  float* weights = reinterpret_cast<float*>(memory);  // relative to the row's largest logit
  const BlockDraw* draws = all_draws + blockIdx.x * blocks;
  const DrawUniforms by = uniforms[blockIdx.x];
  const int lane = static_cast<int>(threadIdx.x % kLanes);
  float max = -INFINITY;
  for (int64_t b = lane; b < blocks; b += kLanes) max = draws[b].max > max ? draws[b].max : max;
  max = Fold<Max>(max);
  for (int64_t b = threadIdx.x; b < blocks; b += kWarp)
    weights[b] = draws[b].weight * Exp((draws[b].max - max) * by.inverse_temperature);
  __syncthreads();
  float sums[kSums] = {};  // as SumVectors has them
  int64_t v = lane;
  for (; v - lane + kStep <= blocks; v += kStep) {
#pragma unroll
    for (int j = 0; j < kSums; ++j) sums[j] += weights[v + j * kLanes];
  }
  for (; v - lane + kLanes <= blocks; v += kLanes) sums[0] += weights[v];
  if (v < blocks) sums[1] += weights[v];
  float left = by.block * Fold<Sum>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if (threadIdx.x != 0) return;
  int block = by.block < 0 ? 0 : -1;
  if (by.block < 0) {
    while (block + 1 < blocks && draws[block].max != max) ++block;
  } else {
    // Where rounding lets it run past the end, the last one that has mass.
#pragma unroll 8
    for (int b = 0; b < blocks; ++b) {
      const float weight = weights[b];
      if (!(weight > 0)) continue;
      block = b;
      if (left < weight) break;
      left -= weight;
    }
  }
  ids[blockIdx.x] = block < 0 ? -1 : static_cast<int32_t>(block * kLogitBlock) + draws[block].index;
}

}  // namespace

void DrawIds(Context& context, const DrawArgs& args, const TensorView& logits) {
  const int64_t rows = logits.rows, blocks = LogitBlocks(logits.cols), all = rows * blocks;
  const Arena::Scope scope(context.scratch);
  const TensorView memory = context.scratch.New(DType::kI32, all, sizeof(BlockDraw) / 4);
  auto* draws = static_cast<BlockDraw*>(memory.data);
  const DrawUniforms* uniforms = context.staging.Put(args.uniforms);
  Launch(DrawInBlocks, dim3(static_cast<unsigned>((all + kBlocks - 1) / kBlocks)), dim3(kRowThreads), 0,
         context.stream(), RowsOf<const float>(logits), rows, logits.cols, uniforms, draws);
  Launch(DrawBlocks, dim3(static_cast<unsigned>(rows)), dim3(kWarp), blocks * 4, context.stream(),
         static_cast<const BlockDraw*>(draws), blocks, uniforms, static_cast<int32_t*>(args.ids.data));
}

}  // namespace quern::cuda
