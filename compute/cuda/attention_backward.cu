#include <algorithm>

#include "compute/cuda/attention.h"

// Attention's gradients. With s = scale q k - F, p = e^(s - lse), D = dout . out: dv = p dout; dp = dout v; by score
// p (dp - D); dq = scale by k; dk = scale by q. One pass over the queries makes dq, another over the keys dk and dv:
// every sum has one owner and one order. Here for every type and shape, a warp a query or key.

namespace quern::cuda {

namespace {

constexpr int kRowsOfBlock = 4;  // one a warp
constexpr int kDims = 8;         // channels of a lane

struct Warp {
  int index = static_cast<int>(threadIdx.x / kWarp);
  int lane = static_cast<int>(threadIdx.x % kWarp);
};

__global__ void __launch_bounds__(kRowsOfBlock* kWarp) DeltaKernel(BackwardParams args, int64_t rows) {
  const Warp warp;
  const int64_t i = int64_t{blockIdx.x} * kRowsOfBlock + warp.index;
  if (i >= rows * args.heads) return;
  const int64_t row = i / args.heads, at = i % args.heads * args.dim;
  float sum = 0;
  for (int d = warp.lane; d < args.dim; d += kWarp)
    sum += LoadAct(args.grad, args.grad_bf16, row * args.grad_stride + at + d) *
           LoadAct(args.out, args.out_bf16, row * args.out_stride + at + d);
  sum = WarpReduce<Sum>(sum);
  if (warp.lane == 0) args.delta.At(row)[i % args.heads] = sum;
}

// p and the gradient by the score of a query (row i of the sequence, all heads' row `query` of qkv) and key j.
struct Pair {
  float p, by_score;
};
template <typename Load>
__device__ __forceinline__ Pair PairOf(const BackwardParams& args, const Sequence& s, int64_t i, int64_t j, int head,
                                       const Load& dots) {
  if (j > i || i >= s.count || j < 0 || (args.window > 0 && i - j >= args.window)) return {0, 0};
  float score = 0, dp = 0;
  dots(score, dp);
  const float f = s.penalties == nullptr ? 0.0f : s.penalties[i * s.penalty_stride + j];
  const float p = expf(score * args.scale - f - args.lse.At(s.row + i)[head]);
  return {p, p * (dp - args.delta.At(s.row + i)[head])};
}
__device__ __forceinline__ float Selected(const BackwardParams& args, const Sequence& s, int64_t i, int64_t j,
                                          int head) {
  return args.selected == nullptr || head != 0 || j > i ? 0.0f : args.selected[i * s.penalty_stride + j];
}

__device__ __forceinline__ float X(const BackwardParams& args, int64_t row, int64_t column) {
  return LoadAct(args.x, args.x_bf16, row * args.x_stride + column);
}
__device__ __forceinline__ float Grad(const BackwardParams& args, int64_t row, int64_t column) {
  return LoadAct(args.grad, args.grad_bf16, row * args.grad_stride + column);
}

// A warp a query. Tiles' kv_head is the query's head here.
__global__ void __launch_bounds__(kRowsOfBlock* kWarp) QueryKernel(BackwardParams args) {
  QUERN_DYNAMIC_SHARED(memory);  // a warp: q, dout, the gradients by 32 scores
  const Warp warp;
  const Tile tile = args.tiles[blockIdx.x];
  const Sequence s = args.sequences[tile.sequence];
  const int64_t i = tile.begin + warp.index;
  if (i >= s.count) return;
  const int dim = args.dim, head = tile.kv_head, group = args.heads / args.kv_heads;
  const int64_t row = s.row + i, k_at = int64_t{args.heads + head / group} * dim;
  const int64_t v_at = k_at + int64_t{args.kv_heads} * dim;
  float* q = reinterpret_cast<float*>(memory) + warp.index * (2 * dim + kWarp);
  float* dout = q + dim;
  float* by = dout + dim;
  for (int d = warp.lane; d < dim; d += kWarp) {
    q[d] = X(args, row, int64_t{head} * dim + d);
    dout[d] = Grad(args, row, int64_t{head} * dim + d);
  }
  __syncwarp();
  float dq[kDims] = {};
  for (int64_t begin = FirstPosition(i, args.window) / kWarp * kWarp; begin <= i; begin += kWarp) {
    const int64_t j = begin + warp.lane;
    const Pair pair = PairOf(args, s, i, j, head, [&](float& score, float& dp) {
      for (int d = 0; d < dim; ++d) {
        score += q[d] * X(args, s.row + j, k_at + d);
        dp += dout[d] * X(args, s.row + j, v_at + d);
      }
    });
    by[warp.lane] = (pair.by_score + Selected(args, s, i, j, head)) * args.scale;
    __syncwarp();
    const int count = static_cast<int>(i + 1 - begin < kWarp ? i + 1 - begin : kWarp);
#pragma unroll
    for (int c = 0; c < kDims; ++c) {
      const int d = warp.lane + kWarp * c;
      if (d >= dim) continue;
      for (int key = 0; key < count; ++key) dq[c] += by[key] * X(args, s.row + begin + key, k_at + d);
    }
    __syncwarp();
  }
#pragma unroll
  for (int c = 0; c < kDims; ++c) {
    const int d = warp.lane + kWarp * c;
    if (d < dim) StoreAct(args.dqkv, args.dqkv_bf16, row * args.dqkv_stride + int64_t{head} * dim + d, dq[c]);
  }
}

// A warp a key, over the heads of its group and the queries from its position on.
__global__ void __launch_bounds__(kRowsOfBlock* kWarp) KeyKernel(BackwardParams args) {
  QUERN_DYNAMIC_SHARED(memory);  // a warp: k, v, 32 probabilities, the gradients by 32 scores
  const Warp warp;
  const Tile tile = args.tiles[blockIdx.x];
  const Sequence s = args.sequences[tile.sequence];
  const int64_t j = tile.begin + warp.index;
  if (j >= s.count) return;
  const int dim = args.dim, group = args.heads / args.kv_heads;
  const int64_t row = s.row + j, k_at = int64_t{args.heads + tile.kv_head} * dim;
  const int64_t v_at = k_at + int64_t{args.kv_heads} * dim;
  float* k = reinterpret_cast<float*>(memory) + warp.index * (2 * dim + 2 * kWarp);
  float* v = k + dim;
  float* p = v + dim;
  float* by = p + kWarp;
  for (int d = warp.lane; d < dim; d += kWarp) {
    k[d] = X(args, row, k_at + d);
    v[d] = X(args, row, v_at + d);
  }
  __syncwarp();
  float dk[kDims] = {}, dv[kDims] = {};
  const int64_t end = args.window > 0 && j + args.window < s.count ? j + args.window : s.count;
  for (int h = 0; h < group; ++h) {
    const int head = tile.kv_head * group + h;
    const int64_t q_at = int64_t{head} * dim;
    for (int64_t begin = j; begin < end; begin += kWarp) {
      const int64_t i = begin + warp.lane;
      const Pair pair = PairOf(args, s, i, j, head, [&](float& score, float& dp) {
        for (int d = 0; d < dim; ++d) {
          score += k[d] * X(args, s.row + i, q_at + d);
          dp += v[d] * Grad(args, s.row + i, q_at + d);
        }
      });
      p[warp.lane] = pair.p;
      by[warp.lane] = (pair.by_score + (i < s.count ? Selected(args, s, i, j, head) : 0.0f)) * args.scale;
      __syncwarp();
      const int count = static_cast<int>(end - begin < kWarp ? end - begin : kWarp);
#pragma unroll
      for (int c = 0; c < kDims; ++c) {
        const int d = warp.lane + kWarp * c;
        if (d >= dim) continue;
        for (int query = 0; query < count; ++query) {
          dk[c] += by[query] * X(args, s.row + begin + query, q_at + d);
          dv[c] += p[query] * Grad(args, s.row + begin + query, q_at + d);
        }
      }
      __syncwarp();
    }
  }
#pragma unroll
  for (int c = 0; c < kDims; ++c) {
    const int d = warp.lane + kWarp * c;
    if (d >= dim) continue;
    StoreAct(args.dqkv, args.dqkv_bf16, row * args.dqkv_stride + k_at + d, dk[c]);
    StoreAct(args.dqkv, args.dqkv_bf16, row * args.dqkv_stride + v_at + d, dv[c]);
  }
}

// Selective: the gradient by F of a query's positions, minus the sum over heads of those by the scores. A warp a query
// and 32 positions.
__global__ void __launch_bounds__(kRowsOfBlock* kWarp) MaskGradient(BackwardParams args, Rows<float> gradient) {
  const Warp warp;
  const Sequence s = args.sequences[0];
  const int64_t i = int64_t{blockIdx.y} * kRowsOfBlock + warp.index, j = int64_t{blockIdx.x} * kWarp + warp.lane;
  if (i >= s.count) return;
  const int dim = args.dim, group = args.heads / args.kv_heads;
  float sum = 0;
  for (int head = 0; head < args.heads; ++head) {
    const int64_t q_at = int64_t{head} * dim, k_at = int64_t{args.heads + head / group} * dim;
    const int64_t v_at = k_at + int64_t{args.kv_heads} * dim;
    sum += PairOf(args, s, i, j, head, [&](float& score, float& dp) {
             for (int d = 0; d < dim; ++d) {
               score += X(args, s.row + i, q_at + d) * X(args, s.row + j, k_at + d);
               dp += Grad(args, s.row + i, q_at + d) * X(args, s.row + j, v_at + d);
             }
           }).by_score;
  }
  gradient.At(i)[j] = -sum;
}

std::vector<Tile> Tiles(std::span<const SequenceRows> sequences, int64_t heads, int64_t rows) {
  std::vector<Tile> out;
  for (size_t i = 0; i < sequences.size(); ++i)
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t begin = 0; begin < sequences[i].count; begin += rows)
        out.push_back({static_cast<int32_t>(i), static_cast<int32_t>(head), static_cast<int32_t>(begin)});
  return out;
}

// dq, dk and dv of some sequences.
void Gradients(Context& context, const AttentionBackwardArgs& args, std::span<const SequenceRows> sequences,
               BackwardParams params) {
  if (HasBackwardTiles(args)) {
    AttentionBackwardArgs some = args;
    some.sequences = sequences;
    return AttentionBackwardTiles(context, some, params);
  }
  const auto launch = [&](void (*kernel)(BackwardParams), int64_t heads, int64_t floats) {
    const std::vector<Tile> tiles = Tiles(sequences, heads, kRowsOfBlock);
    params.tiles = context.staging.Put(tiles);
    Launch(kernel, dim3(static_cast<unsigned>(tiles.size())), dim3(kRowsOfBlock * kWarp), kRowsOfBlock * floats * 4,
           context.stream(), params);
  };
  launch(QueryKernel, args.heads, 2 * args.head_dim + kWarp);
  launch(KeyKernel, args.kv_heads, 2 * args.head_dim + 2 * kWarp);
}

}  // namespace

void AttentionBackward(Context& context, const AttentionBackwardArgs& args) {
  QUERN_CHECK(args.head_dim <= kDims * kWarp, "heads of more than 256 channels");
  const int64_t rows = args.qkv.rows;
  for (const SequenceRows& s : args.sequences) QUERN_CHECK(s.context == 0, "attention backward within a sequence");
  if (rows == 0) return;
  const Arena::Scope scope(context.scratch);
  const TensorView delta = context.scratch.New(DType::kF32, rows, args.heads);
  BackwardParams params = {.sequences = PutSequences(context, args.sequences, {}, {}),
                           .tiles = nullptr,
                           .qkv = RowsOf<const Bf16>(args.qkv),
                           .dout = RowsOf<const Bf16>(args.dout),
                           .x = args.qkv.data,
                           .x_bf16 = args.qkv.dtype == DType::kBf16,
                           .x_stride = args.qkv.stride,
                           .grad = args.dout.data,
                           .grad_bf16 = args.dout.dtype == DType::kBf16,
                           .grad_stride = args.dout.stride,
                           .out = args.out.data,
                           .out_bf16 = args.out.dtype == DType::kBf16,
                           .out_stride = args.out.stride,
                           .lse = RowsOf<const float>(args.lse),
                           .delta = RowsOf<float>(delta),
                           .dqkv = args.dqkv.data,
                           .dqkv_bf16 = args.dqkv.dtype == DType::kBf16,
                           .dqkv_stride = args.dqkv.stride,
                           .heads = static_cast<int>(args.heads),
                           .kv_heads = static_cast<int>(args.kv_heads),
                           .dim = static_cast<int>(args.head_dim),
                           .scale = args.scale,
                           .window = args.window,
                           .selected = nullptr};
  Launch(DeltaKernel, dim3(static_cast<unsigned>((rows * args.heads + kRowsOfBlock - 1) / kRowsOfBlock)),
         dim3(kRowsOfBlock * kWarp), 0, context.stream(), params, rows);
  if (!args.selective) return Gradients(context, args, args.sequences, params);
  QUERN_CHECK(args.window == 0);
  for (const SequenceRows& s : args.sequences) {
    if (s.count == 0) continue;
    const Arena::Scope own(context.scratch);
    const TensorView f = SelectOwnRows(context, args, s);
    const TensorView gradient = context.scratch.New(DType::kF32, f.rows, f.cols);
    SequenceRows plain = s;
    plain.pages = nullptr;
    params.sequences = PutSequences(context, {&plain, 1}, {}, {f});
    params.selected = nullptr;
    Launch(
        MaskGradient,
        dim3(static_cast<unsigned>(f.cols / kWarp), static_cast<unsigned>((s.count + kRowsOfBlock - 1) / kRowsOfBlock)),
        dim3(kRowsOfBlock * kWarp), 0, context.stream(), params, RowsOf<float>(gradient));
    SelectionBackward(context, args, s, f, gradient);
    params.selected = static_cast<const float*>(gradient.data);
    Gradients(context, args, {&plain, 1}, params);
  }
}

}  // namespace quern::cuda
