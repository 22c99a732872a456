#include <algorithm>

#include "compute/cuda/attention.h"

// Attention for every type and shape, one warp a query; and how decode's segments are merged.

namespace quern::cuda {

namespace {

constexpr int kQueries = 4;                        // of a block, one a warp
constexpr int kDims = 8;                           // channels of a lane: heads of up to 256
constexpr int64_t kMostParts = int64_t{64} << 20;  // bytes of scratch for segments

// A block a task and KV head. Neighbouring threads write neighbouring positions' keys.
template <typename In, typename Kv>
__global__ void __launch_bounds__(kRowThreads)
    KvWriteKernel(const Sequence* sequences, const WriteTask* tasks, Rows<const In> qkv, KvLayout layout, int64_t layer,
                  int64_t heads) {
  const WriteTask task = tasks[blockIdx.x];
  const Sequence s = sequences[task.sequence];
  const int64_t dim = layout.head_dim, head = blockIdx.y, count = task.end - task.begin;
  const int64_t first = s.context + task.begin;
  auto* page = static_cast<Kv*>(const_cast<void*>(s.pages[first / kPage]));
  Kv* keys = page + layout.KeyOffset(layer, head);
  Kv* values = page + layout.ValueOffset(layer, head);
  for (int64_t i = threadIdx.x; i < dim * count; i += kRowThreads) {
    const int64_t key_row = i % count, d = i / count;
    keys[layout.KeyElement(first % kPage + key_row, d)] =
        Kv(static_cast<float>(qkv.At(s.row + task.begin + key_row)[(heads + head) * dim + d]));
    const int64_t value_row = i / dim, e = i % dim;
    values[(first % kPage + value_row) * dim + e] =
        Kv(static_cast<float>(qkv.At(s.row + task.begin + value_row)[(heads + layout.kv_heads + head) * dim + e]));
  }
}

struct Query {
  int64_t row, head, position, first;  // row of the call; attends to first .. position
};
__device__ __forceinline__ Query QueryAt(const AttentionParams& args, const Sequence& s, const Tile& tile, int64_t i) {
  const int64_t row = i / args.group, position = s.context + row;
  return {s.row + row, int64_t{tile.kv_head} * args.group + i % args.group, position,
          FirstPosition(position, args.window)};
}

__device__ __forceinline__ float* PartOf(const AttentionParams& args, const Query& query, int64_t split) {
  return args.parts + ((query.row * args.heads + query.head) * args.splits + split) * (args.layout.head_dim + 2);
}

// Lane i has channels i, i + 32, ... of the output.
__device__ __forceinline__ void WriteOut(const AttentionParams& args, const Query& query, const float (&sums)[kDims],
                                         float max, float mass) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const float inverse = 1.0f / mass;
#pragma unroll
  for (int j = 0; j < kDims; ++j) {
    const int64_t d = lane + kWarp * j;
    if (d < args.layout.head_dim)
      StoreAct(args.out, args.out_bf16, query.row * args.out_stride + query.head * args.layout.head_dim + d,
               sums[j] * inverse);
  }
  if (args.lse.data != nullptr && lane == 0) args.lse.At(query.row)[query.head] = max + logf(mass);
}

template <typename Kv>
__global__ void __launch_bounds__(kQueries* kWarp) AttentionKernel(AttentionParams args) {
  QUERN_DYNAMIC_SHARED(memory);  // a warp: q, the kept channels of q, a page's probabilities
  const int warp = static_cast<int>(threadIdx.x / kWarp), lane = static_cast<int>(threadIdx.x % kWarp);
  const int dim = static_cast<int>(args.layout.head_dim);
  const Tile tile = args.tiles[blockIdx.x];
  const Sequence s = args.sequences[tile.sequence];
  const int64_t i = tile.begin + warp;
  if (i >= s.count * args.group) return;
  const Query query = QueryAt(args, s, tile, i);

  float* q = reinterpret_cast<float*>(memory) + warp * (2 * dim + kPage);
  float* kept_q = q + dim;
  float* p = kept_q + dim;
  const int channels = s.pruned_pages > 0 && tile.kv_head >= s.full_heads ? static_cast<int>(s.pruned_channels) : dim;
  for (int d = lane; d < dim; d += kWarp)
    q[d] = LoadAct(args.q, args.q_bf16, query.row * args.q_stride + query.head * dim + d);
  __syncwarp();
  if (channels < dim)
    for (int c = lane; c < channels; c += kWarp) kept_q[c] = q[s.kept[tile.kv_head * s.pruned_channels + c]];
  __syncwarp();
  const PrunedKeys pruned = {s.pruned_pages, s.pruned_channels, s.full_heads, nullptr};

  float sums[kDims] = {}, max = -INFINITY, mass = 0;
  int64_t segment = query.first / kSegment, last_segment = query.position / kSegment;
  if (args.parts != nullptr) {
    if (blockIdx.y < segment || blockIdx.y > last_segment) return;
    segment = last_segment = blockIdx.y;
  }
  for (; segment <= last_segment; ++segment) {
    float own[kDims] = {}, own_max = -INFINITY, own_mass = 0;
    for (int64_t page = segment * kSegmentPages; page < (segment + 1) * kSegmentPages; ++page) {
      const int64_t begin = page * kPage;
      if (begin > query.position || begin + kPage <= query.first) continue;
      const bool small = page < s.pruned_pages;
      const auto* base = static_cast<const Kv*>(s.pages[page]);
      const Kv* keys = base + (small ? pruned.KeyOffset(args.layout, tile.kv_head)
                                     : args.layout.KeyOffset(args.layer, tile.kv_head));
      const Kv* values = base + (small ? pruned.ValueOffset(args.layout, tile.kv_head)
                                       : args.layout.ValueOffset(args.layer, tile.kv_head));
      const float* own_q = small && channels < dim ? kept_q : q;
      const int width = small ? channels : dim;
      float scores[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int slot = lane + kWarp * half;
        const int64_t position = begin + slot;
        const Kv* key = keys + slot / kBlock * width * kBlock + slot % kBlock;
        float sum = 0;
        for (int d = 0; d < width; ++d) sum += own_q[d] * static_cast<float>(key[d * kBlock]);
        scores[half] = -INFINITY;  // what lies beyond may never have been written
        if (position >= query.first && position <= query.position) {
          scores[half] = sum * args.scale;
          if (s.penalties != nullptr) scores[half] -= s.penalties[(query.row - s.row) * s.penalty_stride + position];
        }
      }
      const float largest = fmaxf(own_max, WarpReduce<Max>(fmaxf(scores[0], scores[1])));
      if (largest == -INFINITY) continue;
      const float factor = own_max == -INFINITY ? 0.0f : expf(own_max - largest);
      own_max = largest;
      const float p0 = expf(scores[0] - largest), p1 = expf(scores[1] - largest);
      own_mass = own_mass * factor + WarpReduce<Sum>(p0 + p1);
      p[lane] = p0;
      p[lane + kWarp] = p1;
      __syncwarp();
      const int from = static_cast<int>(query.first > begin ? query.first - begin : 0);
      const int to = static_cast<int>(query.position - begin + 1 < kPage ? query.position - begin + 1 : kPage);
#pragma unroll
      for (int j = 0; j < kDims; ++j) {
        const int d = lane + kWarp * j;
        if (d >= dim) continue;
        float sum = own[j] * factor;
        for (int k = from; k < to; ++k) sum += p[k] * static_cast<float>(values[k * dim + d]);
        own[j] = sum;
      }
      __syncwarp();
    }
    if (args.parts != nullptr) {
      float* part = PartOf(args, query, segment);
#pragma unroll
      for (int j = 0; j < kDims; ++j)
        if (lane + kWarp * j < dim) part[lane + kWarp * j] = own[j];
      if (lane == 0) {
        part[dim] = own_max;
        part[dim + 1] = own_mass;
      }
      return;
    }
    const Factors by = MergeMass(max, mass, own_max, own_mass);
#pragma unroll
    for (int j = 0; j < kDims; ++j) sums[j] = MergeSum(sums[j], own[j], by);
  }
  WriteOut(args, query, sums, max, mass);
}

// A warp a query: its segments in order. `queries` of a tile.
__global__ void __launch_bounds__(kQueries* kWarp) MergeKernel(AttentionParams args, int queries) {
  const int warp = static_cast<int>(threadIdx.x / kWarp), lane = static_cast<int>(threadIdx.x % kWarp);
  const Tile tile = args.tiles[blockIdx.x];
  const Sequence s = args.sequences[tile.sequence];
  for (int64_t i = tile.begin + warp; i < tile.begin + queries && i < s.count * args.group; i += kQueries) {
    const Query query = QueryAt(args, s, tile, i);
    float sums[kDims] = {}, max = -INFINITY, mass = 0;
    for (int64_t segment = query.first / kSegment; segment <= query.position / kSegment; ++segment) {
      const float* part = PartOf(args, query, segment);
      const Factors by = MergeMass(max, mass, part[args.layout.head_dim], part[args.layout.head_dim + 1]);
#pragma unroll
      for (int j = 0; j < kDims; ++j)
        if (lane + kWarp * j < args.layout.head_dim) sums[j] = MergeSum(sums[j], part[lane + kWarp * j], by);
    }
    WriteOut(args, query, sums, max, mass);
  }
}

}  // namespace

const Sequence* PutSequences(Context& context, std::span<const SequenceRows> sequences, const KvLayout& layout,
                             const std::vector<TensorView>& penalties) {
  std::vector<const void*> pages;
  std::vector<int32_t> kept;
  for (const SequenceRows& s : sequences) {
    if (s.pages != nullptr) pages.insert(pages.end(), s.pages, s.pages + (s.context + s.count + kPage - 1) / kPage);
    if (s.pruned != nullptr && s.pruned->kept != nullptr)
      kept.insert(kept.end(), s.pruned->kept, s.pruned->kept + layout.kv_heads * s.pruned->channels);
  }
  const void* const* page = context.staging.Put(pages);
  const int32_t* channel = context.staging.Put(kept);
  std::vector<Sequence> out;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const SequenceRows& s = sequences[i];
    Sequence to = {};
    to.row = s.row;
    to.count = s.count;
    to.context = s.context;
    to.pages = page;
    to.selection = static_cast<float*>(s.selection);
    if (s.pages != nullptr) page += (s.context + s.count + kPage - 1) / kPage;
    if (!penalties.empty()) {
      to.penalties = static_cast<float*>(penalties[i].data);
      to.penalty_stride = penalties[i].stride;
    }
    if (s.pruned != nullptr) {
      to.pruned_pages = s.pruned->pages;
      to.pruned_channels = s.pruned->channels;
      to.full_heads = s.pruned->full_heads;
      to.kept = channel;
      if (s.pruned->kept != nullptr) channel += layout.kv_heads * s.pruned->channels;
    }
    out.push_back(to);
  }
  return context.staging.Put(out);
}

std::vector<WriteTask> WriteTasks(std::span<const SequenceRows> sequences) {
  std::vector<WriteTask> tasks;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const SequenceRows& s = sequences[i];
    for (int64_t begin = 0; begin < s.count;) {
      const int64_t end = std::min(s.count, begin + kBlock - (s.context + begin) % kBlock);
      tasks.push_back({static_cast<int32_t>(i), static_cast<int32_t>(begin), static_cast<int32_t>(end)});
      begin = end;
    }
  }
  return tasks;
}

void KvWrite(Context& context, const KvWriteArgs& args) {
  const std::vector<WriteTask> tasks = WriteTasks(args.sequences);
  const Sequence* sequences = PutSequences(context, args.sequences, args.layout, {});
  const WriteTask* put = context.staging.Put(tasks);
  WithTypes(args.qkv, TensorView{.dtype = args.layout.dtype}, [&](auto in, auto kv) {
    using In = decltype(in);
    using Kv = decltype(kv);
    Launch(KvWriteKernel<In, Kv>,
           dim3(static_cast<unsigned>(tasks.size()), static_cast<unsigned>(args.layout.kv_heads)), dim3(kRowThreads), 0,
           context.stream(), sequences, put, RowsOf<const In>(args.qkv), args.layout, args.layer, args.heads);
  });
}

void Attention(Context& context, const AttentionArgs& args) {
  const KvLayout& layout = args.layout;
  QUERN_CHECK(layout.head_dim <= kDims * kWarp, "heads of more than 256 channels");
  const Arena::Scope scope(context.scratch);
  const std::vector<TensorView> penalties = layout.selective ? NewPenalties(context, args) : std::vector<TensorView>();
  const int64_t group = args.heads / layout.kv_heads;
  const bool tiled = HasTiles(args);
  // A tile is a warp's 16 queries where no sequence has more, else four warps'.
  int64_t most = 0, longest = 0;
  for (const SequenceRows& s : args.sequences) {
    most = std::max(most, s.count * group);
    longest = std::max(longest, s.context + s.count);
  }
  const int64_t queries = !tiled ? kQueries : most <= 16 ? 16 : 64;
  std::vector<Tile> tiles;
  for (size_t i = 0; i < args.sequences.size(); ++i)
    for (int64_t head = 0; head < layout.kv_heads; ++head)
      for (int64_t begin = 0; begin < args.sequences[i].count * group; begin += queries)
        tiles.push_back({static_cast<int32_t>(i), static_cast<int32_t>(head), static_cast<int32_t>(begin)});
  if (tiles.empty()) return;
  const Sequence* sequences = PutSequences(context, args.sequences, layout, penalties);
  if (layout.selective) SelectRows(context, args, sequences, penalties);
  AttentionParams params = {.sequences = sequences,
                            .tiles = context.staging.Put(tiles),
                            .layout = layout,
                            .layer = args.layer,
                            .group = static_cast<int>(group),
                            .q = args.q.data,
                            .q_bf16 = args.q.dtype == DType::kBf16,
                            .q_stride = args.q.stride,
                            .out = args.out.data,
                            .out_bf16 = args.out.dtype == DType::kBf16,
                            .out_stride = args.out.stride,
                            .lse = RowsOf<float>(args.lse),
                            .scale = args.scale,
                            .window = args.window,
                            .heads = static_cast<int>(args.heads),
                            .parts = nullptr,
                            .splits = (longest + kSegment - 1) / kSegment};
  // A block a segment where there are too few tiles for the GPU.
  const int64_t parts = args.q.rows * args.heads * params.splits * (layout.head_dim + 2);
  const bool split = params.splits > 1 && params.splits <= 65535 && 4 * parts <= kMostParts &&
                     static_cast<int64_t>(tiles.size()) < 4 * context.runtime.processors();
  if (split) params.parts = static_cast<float*>(context.scratch.New(DType::kF32, 1, parts).data);
  if (tiled) {
    AttentionTiles(context, args, params, queries, static_cast<int64_t>(tiles.size()));
  } else {
    WithType(TensorView{.dtype = layout.dtype}, [&](auto kv) {
      Launch(AttentionKernel<decltype(kv)>,
             dim3(static_cast<unsigned>(tiles.size()), split ? static_cast<unsigned>(params.splits) : 1),
             dim3(kQueries * kWarp), kQueries * (2 * layout.head_dim + kPage) * 4, context.stream(), params);
    });
  }
  if (split)
    Launch(MergeKernel, dim3(static_cast<unsigned>(tiles.size())), dim3(kQueries * kWarp), 0, context.stream(), params,
           static_cast<int>(queries));
}

}  // namespace quern::cuda
