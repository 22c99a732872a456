#pragma once

// What the attention kernels share. Keys are attended to in segments of kSegment positions, each with a softmax of its
// own, which are then merged in order: whether one block goes through all segments of a query or every segment has a
// block (decode) makes no difference to the bits.

#include "compute/cuda/rows.h"

namespace quern::cuda {

constexpr int kPage = static_cast<int>(KvLayout::kPageTokens);
constexpr int kBlock = static_cast<int>(KvLayout::kBlockTokens);
constexpr int kSegment = 256;
constexpr int kSegmentPages = kSegment / kPage;

// SequenceRows, on the device.
struct Sequence {
  int64_t row, count, context;
  const void* const* pages;
  float* selection;  // selective layouts
  float* penalties;  // F of row r and position p at penalties[r * stride + p]; or null
  int64_t penalty_stride;
  int64_t pruned_pages, pruned_channels, full_heads;
  const int32_t* kept;
};

// Queries of one sequence and KV head, from `begin` on: query i is row i / group, head kv_head * group + i % group.
struct Tile {
  int32_t sequence, kv_head, begin;
};

// Rows of a sequence that lie in one block of kBlock positions.
struct WriteTask {
  int32_t sequence, begin, end;
};
std::vector<WriteTask> WriteTasks(std::span<const SequenceRows> sequences);

struct AttentionParams {
  const Sequence* sequences;
  const Tile* tiles;
  KvLayout layout;
  int64_t layer;
  int group;
  const void* q;
  bool q_bf16;
  int64_t q_stride;
  void* out;
  bool out_bf16;
  int64_t out_stride;
  Rows<float> lse;
  float scale;
  int64_t window;
  int heads;
  // With a block a segment: of query (row, head), split i, at ((row * heads + head) * splits + i) * (head_dim + 2): the
  // sums over values, the largest score, the mass.
  float* parts;
  int64_t splits;
};

__device__ __forceinline__ float LoadAct(const void* data, bool bf16, int64_t i) {
  return bf16 ? static_cast<float>(static_cast<const Bf16*>(data)[i]) : static_cast<const float*>(data)[i];
}
__device__ __forceinline__ void StoreAct(void* data, bool bf16, int64_t i, float value) {
  if (bf16) {
    static_cast<Bf16*>(data)[i] = Bf16(value);
  } else {
    static_cast<float*>(data)[i] = value;
  }
}

// How a segment (largest score `max`, `mass`) joins what is there: both sums are multiplied by a factor and added.
struct Factors {
  float old, fresh;
};
__device__ __forceinline__ Factors MergeMass(float& max, float& mass, float segment_max, float segment_mass) {
  if (segment_max == -INFINITY) return {1.0f, 0.0f};
  const float largest = fmaxf(max, segment_max);
  const Factors out = {max == -INFINITY ? 0.0f : expf(__fadd_rn(max, -largest)),
                       expf(__fadd_rn(segment_max, -largest))};
  max = largest;
  mass = __fmaf_rn(segment_mass, out.fresh, __fmul_rn(mass, out.old));
  return out;
}
__device__ __forceinline__ float MergeSum(float sum, float segment_sum, Factors by) {
  return __fmaf_rn(segment_sum, by.fresh, __fmul_rn(sum, by.old));
}

__device__ __forceinline__ int64_t FirstPosition(int64_t position, int64_t window) {
  return window > 0 && position + 1 > window ? position + 1 - window : 0;
}

// Sequences and tables on the device; penalties empty, or one view a sequence.
const Sequence* PutSequences(Context& context, std::span<const SequenceRows> sequences, const KvLayout& layout,
                             const std::vector<TensorView>& penalties);

// attention_tiles.cu: tensor cores; bf16, heads of 64 or 128 channels, no pruned keys.
bool HasTiles(const AttentionArgs& args);
// `queries` of a tile: 16 or 64.
void AttentionTiles(Context& context, const AttentionArgs& args, const AttentionParams& params, int64_t queries,
                    int64_t tiles);

// attention_backward_tiles.cu
struct BackwardParams {
  const Sequence* sequences;  // rows and counts; penalties are F
  const Tile* tiles;
  Rows<const Bf16> qkv;  // of attention_backward_tiles.cu
  Rows<const Bf16> dout;
  const void* x;  // the same, of any type
  bool x_bf16;
  int64_t x_stride;
  const void* grad;
  bool grad_bf16;
  int64_t grad_stride;
  const void* out;
  bool out_bf16;
  int64_t out_stride;
  Rows<const float> lse;
  Rows<float> delta;  // [rows, heads]: dout . out
  void* dqkv;
  bool dqkv_bf16;
  int64_t dqkv_stride;
  int heads, kv_heads, dim;
  float scale;
  int64_t window;
  // Selective: what is added to the gradients by head 0's scores, laid out as penalties; or null.
  const float* selected;
};
bool HasBackwardTiles(const AttentionBackwardArgs& args);
void AttentionBackwardTiles(Context& context, const AttentionBackwardArgs& args, const BackwardParams& params);

// selection.cu. Room in scratch for F of every sequence's rows, [count, positions in whole pages]; and F itself, given
// the sequences on the device: updates their selections.
std::vector<TensorView> NewPenalties(Context& context, const AttentionArgs& args);
void SelectRows(Context& context, const AttentionArgs& args, const Sequence* sequences,
                const std::vector<TensorView>& penalties);
// The same of whole sequences, from their rows' own keys.
TensorView SelectOwnRows(Context& context, const AttentionBackwardArgs& args, const SequenceRows& sequence);
// `gradient` [count, positions] of the loss by F, without the term of `live`, becomes what is added to the gradients by
// head 0's scaled scores.
void SelectionBackward(Context& context, const AttentionBackwardArgs& args, const SequenceRows& sequence,
                       const TensorView& f, const TensorView& gradient);

}  // namespace quern::cuda
