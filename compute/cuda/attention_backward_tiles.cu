#include "compute/cuda/attention.h"
#include "compute/cuda/mma_tiles.h"

// Attention's gradients by tensor cores, bf16, heads of 64 or 128 channels. A block owns 64 queries (or keys), 16 a
// warp, and goes through the keys (or queries) kStep at a time, the next copied to shared memory meanwhile.

namespace quern::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kOwn = 16 * kWarps;
constexpr int kStep = 32;
constexpr float kLog2E = 1.4426950408889634f;

template <int kDim>
constexpr int64_t kSharedBytes = (2 * kOwn + 4 * kStep) * kDim* int64_t{sizeof(Bf16)};

struct Place {
  int warp = static_cast<int>(threadIdx.x / kWarp);
  int g = static_cast<int>(threadIdx.x % kWarp) / 4;        // a lane has rows g and g + 8 of a 16x8 result
  int t = 2 * (static_cast<int>(threadIdx.x % kWarp) % 4);  // and columns t and t + 1
};

// result[16, kStep] = own rows of the warp times transposed `step` rows.
template <int kDim>
__device__ __forceinline__ void Dots(float (&result)[kStep / 8][4], Bf16* own, Bf16* step, int warp) {
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    uint32_t a[4];
    LoadA<kDim>(a, own, 16 * warp, i);
#pragma unroll
    for (int n = 0; n < kStep / 16; ++n) {
      uint32_t b[4];
      LoadB<kDim>(b, step, 16 * n, i);
      Mma(result[2 * n], a, b[0], b[1]);
      Mma(result[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// sums[16, kDim] += weights[16, kStep] times `step` rows.
template <int kDim>
__device__ __forceinline__ void AddProduct(float (&sums)[kDim / 8][4], const float (&weights)[kStep / 8][4],
                                           Bf16* step) {
#pragma unroll
  for (int n = 0; n < kStep / 16; ++n) {
    uint32_t a[4];
    AsA(a, weights[2 * n], weights[2 * n + 1]);
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      uint32_t b[4];
      LoadBPlain<kDim>(b, step, 16 * n, i);
      Mma(sums[2 * i], a, b[0], b[1]);
      Mma(sums[2 * i + 1], a, b[2], b[3]);
    }
  }
}

// For query i and key j: a score's dot product and that of dout and v become p and what dq and dk are sums of.
__device__ __forceinline__ void Pair(const BackwardParams& args, const Sequence& s, int64_t i, int64_t j, bool first,
                                     float lse, float delta, float& score, float& dp) {
  const bool in = j <= i && i < s.count && (args.window == 0 || i - j < args.window);
  if (!in) {
    score = dp = 0;
    return;
  }
  const float f = s.penalties == nullptr ? 0.0f : s.penalties[i * s.penalty_stride + j];
  const float p = exp2f((score * args.scale - f - lse) * kLog2E);
  float by_score = p * (dp - delta);
  if (first && args.selected != nullptr) by_score += args.selected[i * s.penalty_stride + j];
  score = p;
  dp = by_score * args.scale;
}

template <int kDim>
__device__ __forceinline__ void WriteRows(const BackwardParams& args, int64_t row, int64_t rows, int64_t column,
                                          const float (&sums)[kDim / 8][4], Place at) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int own = 16 * at.warp + at.g + 8 * r;
    if (own >= rows) continue;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c)
        StoreAct(args.dqkv, args.dqkv_bf16, (row + own) * args.dqkv_stride + column + 8 * n + at.t + c,
                 sums[n][2 * r + c]);
    }
  }
}

// dq. Tiles' kv_head is the query's head.
template <int kDim>
__global__ void __launch_bounds__(kThreads) QueryTileKernel(BackwardParams args) {
  QUERN_DYNAMIC_SHARED(memory);
  auto* q = reinterpret_cast<Bf16*>(memory);
  Bf16* dout = q + kOwn * kDim;
  Bf16* steps = dout + kOwn * kDim;  // keys, values; twice
  const Place at;
  const Tile tile = args.tiles[blockIdx.x];
  const Sequence s = args.sequences[tile.sequence];
  const int head = tile.kv_head, kv_head = head / (args.heads / args.kv_heads);
  const int64_t begin = tile.begin, own = s.count - begin, row = s.row + begin;
  const int64_t k_at = int64_t{args.heads + kv_head} * kDim, v_at = k_at + int64_t{args.kv_heads} * kDim;
  const auto copy_step = [&](int64_t key, int stage) {
    Bf16* to = steps + stage * 2 * kStep * kDim;
    const Bf16* from = args.qkv.At(s.row + key);
    CopyTile<kDim, kThreads>(to, from + k_at, args.qkv.stride, kStep, s.count - key);
    CopyTile<kDim, kThreads>(to + kStep * kDim, from + v_at, args.qkv.stride, kStep, s.count - key);
    CommitCopies();
  };
  int64_t key = FirstPosition(begin, args.window) / kStep * kStep;
  const int64_t end = own < kOwn ? s.count : begin + kOwn;  // keys that any query attends to
  CopyTile<kDim, kThreads>(q, args.qkv.At(row) + int64_t{head} * kDim, args.qkv.stride, kOwn, own);
  CopyTile<kDim, kThreads>(dout, args.dout.At(row) + int64_t{head} * kDim, args.dout.stride, kOwn, own);
  copy_step(key, 0);

  float lse[2], delta[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t i = 16 * at.warp + at.g + 8 * r;
    lse[r] = i < own ? args.lse.At(row + i)[head] : 0.0f;
    delta[r] = i < own ? args.delta.At(row + i)[head] : 0.0f;
  }
  float dq[kDim / 8][4] = {};
  for (int stage = 0; key < end; key += kStep, stage ^= 1) {
    if (key + kStep < end) {
      copy_step(key + kStep, stage ^ 1);
      AwaitCopies<1>();
    } else {
      AwaitCopies<0>();
    }
    __syncthreads();
    Bf16* keys = steps + stage * 2 * kStep * kDim;
    float scores[kStep / 8][4] = {}, by[kStep / 8][4] = {};
    Dots<kDim>(scores, q, keys, at.warp);
    Dots<kDim>(by, dout, keys + kStep * kDim, at.warp);
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c)
        Pair(args, s, begin + 16 * at.warp + at.g + c / 2 * 8, key + 8 * n + at.t + c % 2, head == 0, lse[c / 2],
             delta[c / 2], scores[n][c], by[n][c]);
    AddProduct<kDim>(dq, by, keys);
    __syncthreads();  // before the next copy overwrites this step
  }
  WriteRows<kDim>(args, row, own, int64_t{head} * kDim, dq, at);
}

// dk and dv, over the heads of the group.
template <int kDim>
__global__ void __launch_bounds__(kThreads) KeyTileKernel(BackwardParams args) {
  QUERN_DYNAMIC_SHARED(memory);
  auto* keys = reinterpret_cast<Bf16*>(memory);
  Bf16* values = keys + kOwn * kDim;
  Bf16* steps = values + kOwn * kDim;  // queries, dout; twice
  const Place at;
  const Tile tile = args.tiles[blockIdx.x];
  const Sequence s = args.sequences[tile.sequence];
  const int group = args.heads / args.kv_heads;
  const int64_t begin = tile.begin, own = s.count - begin, row = s.row + begin;
  const int64_t k_at = int64_t{args.heads + tile.kv_head} * kDim, v_at = k_at + int64_t{args.kv_heads} * kDim;
  // Steps of queries that attend to any key, of one head after the other.
  const int64_t first = begin / kStep * kStep;
  const int64_t last_query = args.window > 0 && begin + kOwn - 1 + args.window < s.count
                                 ? begin + kOwn - 1 + args.window
                                 : s.count;  // exclusive
  const int64_t of_head = (last_query - first + kStep - 1) / kStep, count = of_head * group;
  const auto query_of = [&](int64_t step) { return first + step % of_head * kStep; };
  const auto head_of = [&](int64_t step) { return tile.kv_head * group + static_cast<int>(step / of_head); };
  const auto copy_step = [&](int64_t step, int stage) {
    const int64_t query = query_of(step), column = int64_t{head_of(step)} * kDim;
    Bf16* to = steps + stage * 2 * kStep * kDim;
    CopyTile<kDim, kThreads>(to, args.qkv.At(s.row + query) + column, args.qkv.stride, kStep, s.count - query);
    CopyTile<kDim, kThreads>(to + kStep * kDim, args.dout.At(s.row + query) + column, args.dout.stride, kStep,
                             s.count - query);
    CommitCopies();
  };
  CopyTile<kDim, kThreads>(keys, args.qkv.At(row) + k_at, args.qkv.stride, kOwn, own);
  CopyTile<kDim, kThreads>(values, args.qkv.At(row) + v_at, args.qkv.stride, kOwn, own);
  copy_step(0, 0);

  float dk[kDim / 8][4] = {}, dv[kDim / 8][4] = {};
  for (int64_t step = 0; step < count; ++step) {
    const int stage = static_cast<int>(step % 2);
    if (step + 1 < count) {
      copy_step(step + 1, stage ^ 1);
      AwaitCopies<1>();
    } else {
      AwaitCopies<0>();
    }
    __syncthreads();
    Bf16* queries = steps + stage * 2 * kStep * kDim;
    const int head = head_of(step);
    const int64_t query = query_of(step);
    float scores[kStep / 8][4] = {}, by[kStep / 8][4] = {};  // [keys, queries]
    Dots<kDim>(scores, keys, queries, at.warp);
    Dots<kDim>(by, values, queries + kStep * kDim, at.warp);
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t i = query + 8 * n + at.t + c;
        const bool there = i < s.count;
        const float lse = there ? args.lse.At(s.row + i)[head] : 0.0f;
        const float delta = there ? args.delta.At(s.row + i)[head] : 0.0f;
#pragma unroll
        for (int r = 0; r < 2; ++r)
          Pair(args, s, i, begin + 16 * at.warp + at.g + 8 * r, head == 0, lse, delta, scores[n][2 * r + c],
               by[n][2 * r + c]);
      }
    }
    AddProduct<kDim>(dv, scores, queries + kStep * kDim);
    AddProduct<kDim>(dk, by, queries);
    __syncthreads();  // before the next copy overwrites this step
  }
  WriteRows<kDim>(args, row, own, k_at, dk, at);
  WriteRows<kDim>(args, row, own, v_at, dv, at);
}

bool IsAligned(const TensorView& view) {
  return view.dtype == DType::kBf16 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.stride % 8 == 0;
}

}  // namespace

bool HasBackwardTiles(const AttentionBackwardArgs& args) {
  return (args.head_dim == 64 || args.head_dim == 128) && IsAligned(args.qkv) && IsAligned(args.dout);
}

void AttentionBackwardTiles(Context& context, const AttentionBackwardArgs& args, const BackwardParams& params) {
  const auto launch = [&](void (*kernel)(BackwardParams), int64_t heads, int64_t shared) {
    std::vector<Tile> tiles;
    for (size_t i = 0; i < args.sequences.size(); ++i)
      for (int64_t begin = 0; begin < args.sequences[i].count; begin += kOwn)
        for (int64_t head = 0; head < heads; ++head)
          tiles.push_back({static_cast<int32_t>(i), static_cast<int32_t>(head), static_cast<int32_t>(begin)});
    BackwardParams own = params;
    own.tiles = context.staging.Put(tiles);
    Launch(kernel, dim3(static_cast<unsigned>(tiles.size())), dim3(kThreads), shared, context.stream(), own);
  };
  if (args.head_dim == 64) {
    launch(QueryTileKernel<64>, args.heads, kSharedBytes<64>);
    launch(KeyTileKernel<64>, args.kv_heads, kSharedBytes<64>);
  } else {
    launch(QueryTileKernel<128>, args.heads, kSharedBytes<128>);
    launch(KeyTileKernel<128>, args.kv_heads, kSharedBytes<128>);
  }
}

}  // namespace quern::cuda
