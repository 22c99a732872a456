#include <algorithm>

#include "compute/cuda/attention.h"

// Selective Attention on the GPU: F as a matrix a sequence, its sums down the rows taken row by row, as on the CPU, so
// that a row's F is the same number however rows are cut into calls. Plain rather than fused kernels.

namespace quern::cuda {

namespace {

constexpr int64_t kRowsOfBlock = 4;  // scores: kPage keys of so many rows

// What changes with every step of decoding is read from a sequence of the device's table, so that launches of equal
// arguments come again (recorder.h). Null: a whole sequence from its first position on, without a selection.
__device__ __forceinline__ int64_t ContextOf(const Sequence* sequence) {
  return sequence == nullptr ? 0 : sequence->context;
}

// Scaled scores of head 0. Keys come from pages or from rows of their own.
struct PageKeys {
  const Sequence* sequence;
  bool bf16;
  KvLayout layout;
  int64_t layer;
  __device__ __forceinline__ float At(int64_t position, int64_t d) const {
    return LoadAct(sequence->pages[position / kPage], bf16,
                   layout.KeyOffset(layer, 0) + layout.KeyElement(position % kPage, d));
  }
};
struct RowKeys {
  const void* data;
  bool bf16;
  int64_t stride, begin;  // element of the sequence's first key
  __device__ __forceinline__ float At(int64_t position, int64_t d) const {
    return LoadAct(data, bf16, begin + position * stride + d);
  }
};

struct Queries {
  const void* data;
  bool bf16;
  int64_t stride, begin;
};

// s[r, p] = max(0, score) for 0 < p < the row's position, else 0. A block: kPage positions of kRowsOfBlock rows.
template <typename Keys>
__global__ void SelectScores(Queries q, Keys keys, const Sequence* sequence, int64_t count, int dim, float scale,
                             Rows<float> s) {
  const int64_t context = ContextOf(sequence);
  const int64_t p = int64_t{blockIdx.x} * kPage + threadIdx.x, r = int64_t{blockIdx.y} * kRowsOfBlock + threadIdx.y;
  if (r >= count) return;
  float selected = 0;
  if (p > 0 && p < context + r) {
    float sum = 0;
    for (int d = 0; d < dim; ++d) sum += LoadAct(q.data, q.bf16, q.begin + r * q.stride + d) * keys.At(p, d);
    selected = fmaxf(sum * scale, 0.0f);
  }
  s.At(r)[p] = selected;
}

// Down one column: s becomes F, and the carry that of the next row.
__global__ void SumRows(Rows<float> s, float gain, int64_t count, int64_t cols, KvLayout layout, int64_t layer,
                        const Sequence* sequence) {
  const int64_t p = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (p >= cols) return;
  float* carry =
      sequence == nullptr ? nullptr : sequence->selection + layout.SelectionOffset(p / kPage, layer) + p % kPage;
  float sum = p >= ContextOf(sequence) ? 0.0f : *carry;
  for (int64_t r = 0; r < count; ++r) {
    float* at = s.At(r) + p;
    const float selected = *at;
    *at = sum;
    sum = fmaf(selected, gain, sum);
  }
  if (carry != nullptr) *carry = sum;
}

struct Worst {
  float f;
  int64_t position;
};
__device__ __forceinline__ Worst Worse(Worst a, Worst b) {
  if (b.position < 0) return a;
  if (a.position < 0) return b;
  if (a.f != b.f) return a.f > b.f ? a : b;
  return a.position < b.position ? a : b;
}

// A sequence's block: row after row, what is masked most is evicted until `budget` positions are left.
__global__ void __launch_bounds__(kRowThreads)
    EvictKernel(Rows<float> f, int64_t count, int64_t budget, KvLayout layout, int64_t layer, const Sequence* sequence,
                int32_t* evicted /* [count + context], zero */) {
  __shared__ float worst_f[kWarp];
  __shared__ int64_t worst_position[kWarp];
  const int64_t context = sequence->context;
  float* const selection = sequence->selection;
  const auto carry = [&](int64_t p) { return selection + layout.SelectionOffset(p / kPage, layer) + p % kPage; };
  int before = 0;
  for (int64_t p = threadIdx.x; p < context; p += kRowThreads) before += *carry(p) == INFINITY ? 1 : 0;
  int64_t gone = BlockReduce<Sum>(before);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t position = context + r;
    float* row = f.At(r);
    for (int64_t p = threadIdx.x; p < position; p += kRowThreads)
      if (evicted[p] != 0) row[p] = INFINITY;
    __syncthreads();
    for (; position + 1 - gone > budget; ++gone) {
      Worst worst = {0, -1};
      for (int64_t p = int64_t{threadIdx.x}; p < position; p += kRowThreads)
        if (p > 0 && row[p] != INFINITY) worst = Worse(worst, {row[p], p});
#pragma unroll
      for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
        worst = Worse(worst, {ShuffleXor(worst.f, lanes), ShuffleXor(worst.position, lanes)});
      if (threadIdx.x % kWarp == 0) {
        worst_f[threadIdx.x / kWarp] = worst.f;
        worst_position[threadIdx.x / kWarp] = worst.position;
      }
      __syncthreads();
      for (int i = 0; i < kRowThreads / kWarp; ++i) worst = Worse(worst, {worst_f[i], worst_position[i]});
      if (threadIdx.x == 0) {
        row[worst.position] = INFINITY;
        evicted[worst.position] = 1;
        *carry(worst.position) = INFINITY;
      }
      __syncthreads();
    }
  }
}

// A block a row.
__global__ void __launch_bounds__(kRowThreads)
    LiveKernel(Rows<const float> f, const Sequence* sequence, float tau, float* live) {
  const int64_t position = ContextOf(sequence) + blockIdx.x;
  float masked = 0;
  for (int64_t p = threadIdx.x; p <= position; p += kRowThreads) masked += fminf(f.At(blockIdx.x)[p], tau);
  masked = BlockReduce<Sum>(masked);
  if (threadIdx.x == 0) live[blockIdx.x] = static_cast<float>(position + 1) - masked / tau;
}

// gradient -= live_weight / tau where F < tau, in the first row with the largest `live`.
__global__ void __launch_bounds__(kRowThreads)
    LiveBackward(Rows<const float> f, const float* live, int64_t count, float weight, float tau, Rows<float> gradient) {
  __shared__ int64_t most;
  if (threadIdx.x == 0) {
    float largest = 0;
    most = 0;
    for (int64_t r = 0; r < count; ++r) {
      if (live[r] <= largest) continue;
      largest = live[r];
      most = r;
    }
  }
  __syncthreads();
  for (int64_t p = threadIdx.x; p <= most; p += kRowThreads)
    if (f.At(most)[p] < tau) gradient.At(most)[p] -= weight / tau;
}

// Up one column: s, the scores that were selected, and the gradient by F become what the scores' gradients get: where a
// row selected, the gradients of all later rows. `by_gain`: the column's share of the gradient by the gain.
__global__ void SelectBackward(Rows<const float> s, float gain, int64_t count, int64_t cols, Rows<float> gradient,
                               float* by_gain) {
  const int64_t p = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (p >= cols) return;
  float below = 0, sum = 0;
  for (int64_t r = count - 1; r >= 0; --r) {
    float* at = gradient.At(r) + p;
    const float own = *at;
    const float selected = s.At(r)[p];
    *at = selected > 0 ? gain * below : 0.0f;
    sum += below * selected;
    below += own;
  }
  by_gain[p] = sum;
}

// One block.
__global__ void __launch_bounds__(kRowThreads) AddGain(const float* by_gain, int64_t cols, float* dgain) {
  float sum = 0;
  for (int64_t p = threadIdx.x; p < cols; p += kRowThreads) sum += by_gain[p];
  sum = BlockReduce<Sum>(sum);
  if (threadIdx.x == 0) *dgain += sum;
}

dim3 ScoreGrid(int64_t cols, int64_t count) {
  return dim3(static_cast<unsigned>(cols / kPage), static_cast<unsigned>((count + kRowsOfBlock - 1) / kRowsOfBlock));
}
constexpr const Sequence* kWhole = nullptr;
unsigned ColumnBlocks(int64_t cols) { return static_cast<unsigned>((cols + kRowThreads - 1) / kRowThreads); }

void OwnScores(Context& context, const AttentionBackwardArgs& args, const SequenceRows& sequence, const TensorView& s) {
  const bool bf16 = args.qkv.dtype == DType::kBf16;
  const int64_t begin = sequence.row * args.qkv.stride;
  Launch(SelectScores<RowKeys>, ScoreGrid(s.cols, s.rows), dim3(kPage, kRowsOfBlock), 0, context.stream(),
         Queries{args.qkv.data, bf16, args.qkv.stride, begin},
         RowKeys{args.qkv.data, bf16, args.qkv.stride, begin + args.heads * args.head_dim}, kWhole, s.rows,
         static_cast<int>(args.head_dim), args.scale, RowsOf<float>(s));
}

}  // namespace

std::vector<TensorView> NewPenalties(Context& context, const AttentionArgs& args) {
  std::vector<TensorView> out;
  for (const SequenceRows& s : args.sequences)
    out.push_back(context.scratch.New(DType::kF32, s.count, (s.context + s.count + kPage - 1) / kPage * kPage));
  return out;
}

void SelectRows(Context& context, const AttentionArgs& args, const Sequence* sequences,
                const std::vector<TensorView>& penalties) {
  const KvLayout& layout = args.layout;
  QUERN_CHECK(args.window == 0 && (args.budget == 0 || args.budget >= 2));
  // Which pages are pruned makes no difference: head 0's keys, which select, lie where they lie in other pages.
  for (size_t i = 0; i < args.sequences.size(); ++i) {
    const SequenceRows& s = args.sequences[i];
    if (s.count == 0) continue;
    QUERN_CHECK(s.selection != nullptr);
    const TensorView& f = penalties[i];
    const Sequence* sequence = sequences + i;
    Launch(SelectScores<PageKeys>, ScoreGrid(f.cols, s.count), dim3(kPage, kRowsOfBlock), 0, context.stream(),
           Queries{args.q.data, args.q.dtype == DType::kBf16, args.q.stride, s.row * args.q.stride},
           PageKeys{sequence, layout.dtype == DType::kBf16, layout, args.layer}, sequence, s.count,
           static_cast<int>(layout.head_dim), args.scale, RowsOf<float>(f));
    Launch(SumRows, dim3(ColumnBlocks(f.cols)), dim3(kRowThreads), 0, context.stream(), RowsOf<float>(f),
           static_cast<float>(args.gain), s.count, f.cols, layout, args.layer, sequence);
    if (args.budget > 0 && s.context + s.count > args.budget) {
      const TensorView evicted = context.scratch.New(DType::kI32, 1, f.cols);
      Fill(context, evicted, 0);
      Launch(EvictKernel, dim3(1), dim3(kRowThreads), 0, context.stream(), RowsOf<float>(f), s.count, args.budget,
             layout, args.layer, sequence, static_cast<int32_t*>(evicted.data));
    }
    if (!args.live.empty())
      Launch(LiveKernel, dim3(static_cast<unsigned>(s.count)), dim3(kRowThreads), 0, context.stream(),
             RowsOf<const float>(f), sequence, args.live_tau, Vector(args.live) + s.row);
  }
}

TensorView SelectOwnRows(Context& context, const AttentionBackwardArgs& args, const SequenceRows& sequence) {
  const int64_t cols = (sequence.count + kPage - 1) / kPage * kPage;
  const TensorView f = context.scratch.New(DType::kF32, sequence.count, cols);
  OwnScores(context, args, sequence, f);
  Launch(SumRows, dim3(ColumnBlocks(cols)), dim3(kRowThreads), 0, context.stream(), RowsOf<float>(f),
         static_cast<float>(args.gain), sequence.count, cols, KvLayout(), int64_t{0}, kWhole);
  return f;
}

void SelectionBackward(Context& context, const AttentionBackwardArgs& args, const SequenceRows& sequence,
                       const TensorView& f, const TensorView& gradient) {
  const Arena::Scope scope(context.scratch);
  if (args.live_weight != 0) {
    const TensorView live = context.scratch.New(DType::kF32, 1, sequence.count);
    Launch(LiveKernel, dim3(static_cast<unsigned>(sequence.count)), dim3(kRowThreads), 0, context.stream(),
           RowsOf<const float>(f), kWhole, args.live_tau, Vector(live));
    Launch(LiveBackward, dim3(1), dim3(kRowThreads), 0, context.stream(), RowsOf<const float>(f), Vector(live),
           sequence.count, args.live_weight, args.live_tau, RowsOf<float>(gradient));
  }
  const TensorView s = context.scratch.New(DType::kF32, f.rows, f.cols);
  OwnScores(context, args, sequence, s);
  const TensorView by_gain = context.scratch.New(DType::kF32, 1, f.cols);
  Launch(SelectBackward, dim3(ColumnBlocks(f.cols)), dim3(kRowThreads), 0, context.stream(), RowsOf<const float>(s),
         static_cast<float>(args.gain), f.rows, f.cols, RowsOf<float>(gradient), Vector(by_gain));
  if (!args.dgain.empty())
    Launch(AddGain, dim3(1), dim3(kRowThreads), 0, context.stream(), static_cast<const float*>(Vector(by_gain)), f.cols,
           Vector(args.dgain));
}

}  // namespace quern::cuda
