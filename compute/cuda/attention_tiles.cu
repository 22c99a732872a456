#include "compute/cuda/attention.h"
#include "compute/cuda/mma_tiles.h"

// Attention over pages by tensor cores (Dao 2023, FlashAttention-2): a warp has 16 queries, a block kWarps warps of one
// sequence and KV head, and goes through the pages, the next of which is copied to shared memory meanwhile.

namespace quern::cuda {

namespace {

// Keys lie in blocks of 16 positions, [channel][16]: rows of 32 bytes. Of every eight rows the last four have their
// halves exchanged, so that the rows of a matrix lie in different banks.
__device__ __forceinline__ Bf16* KeyPiece(Bf16* keys, int row, int half) {
  return keys + row * kBlock + (half ^ (row / 4 % 2)) * 8;
}

template <int kDim>
constexpr int kPageElements = 2 * kPage* kDim;  // keys and values of one head

// `valid`: values of that many positions were written; others would make NaN of a probability of zero.
template <int kDim, int kWarps>
__device__ __forceinline__ void CopyPage(Bf16* shared, const Bf16* keys, const Bf16* values, int64_t valid) {
  for (int i = static_cast<int>(threadIdx.x); i < kPage * kDim / 8; i += kWarps * kWarp)
    CopyAsync(KeyPiece(shared, i / 2, i % 2), keys + i * 8);
  CopyTile<kDim, kWarps * kWarp>(shared + kPage * kDim, values, kDim, kPage, valid);
  CommitCopies();
}

template <int kDim, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp) AttentionTileKernel(AttentionParams args) {
  constexpr int kSteps = kDim / 16, kColumns = kDim / 8;
  constexpr float kLog2E = 1.4426950408889634f;
  QUERN_DYNAMIC_SHARED(memory);  // two pages' keys and values
  auto* shared = reinterpret_cast<Bf16*>(memory);
  const int warp = static_cast<int>(threadIdx.x / kWarp), lane = static_cast<int>(threadIdx.x % kWarp);
  const int g = lane / 4, t = 2 * (lane % 4);
  const Tile tile = args.tiles[blockIdx.x];
  const Sequence s = args.sequences[tile.sequence];
  const int64_t queries = s.count * args.group;

  // A lane's two queries, g and g + 8 of the warp's. Those beyond the last are copies of it and are not written.
  int64_t row[2], head[2], position[2], first[2];
  bool real[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int64_t i = tile.begin + 16 * warp + g + 8 * r;
    real[r] = i < queries;
    if (!real[r]) i = queries - 1;
    row[r] = s.row + i / args.group;
    head[r] = int64_t{tile.kv_head} * args.group + i % args.group;
    position[r] = s.context + i / args.group;
    first[r] = FirstPosition(position[r], args.window);
  }
  uint32_t q[kSteps][4];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto* from = static_cast<const Bf16*>(args.q) + row[i % 2] * args.q_stride + head[i % 2] * kDim;
      q[step][i] = *reinterpret_cast<const uint32_t*>(from + 16 * step + i / 2 * 8 + t);
    }
  }

  // Pages that any query of the block attends to.
  int64_t end = tile.begin + 16 * kWarps;
  if (end > queries) end = queries;
  const int64_t last_position = s.context + (end - 1) / args.group;
  int64_t page = FirstPosition(s.context + tile.begin / args.group, args.window) / kPage;
  int64_t last_page = last_position / kPage;
  const bool split = args.parts != nullptr;
  if (split) {
    const int64_t begin = int64_t{blockIdx.y} * kSegmentPages;
    if (page < begin) page = begin;
    if (last_page > begin + kSegmentPages - 1) last_page = begin + kSegmentPages - 1;
    if (page > last_page) return;
  }
  const auto copy_page = [&](int64_t which, int stage) {
    const auto* base = static_cast<const Bf16*>(s.pages[which]);
    CopyPage<kDim, kWarps>(shared + stage * kPageElements<kDim>, base + args.layout.KeyOffset(args.layer, tile.kv_head),
                           base + args.layout.ValueOffset(args.layer, tile.kv_head),
                           s.context + s.count - which * kPage);
  };

  float sums[kColumns][4] = {}, own[kColumns][4] = {};
  float max[2] = {-INFINITY, -INFINITY}, mass[2] = {}, own_max[2] = {-INFINITY, -INFINITY}, own_mass[2] = {};
  copy_page(page, 0);
  for (int stage = 0; page <= last_page; ++page, stage ^= 1) {
    if (page < last_page) {
      copy_page(page + 1, stage ^ 1);
      AwaitCopies<1>();
    } else {
      AwaitCopies<0>();
    }
    __syncthreads();
    Bf16* keys = shared + stage * kPageElements<kDim>;
    Bf16* values = keys + kPage * kDim;

    float scores[8][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int block = 0; block < kPage / kBlock; ++block) {
        uint32_t b[4];
        LoadMatricesTransposed(b, KeyPiece(keys, block * kDim + 16 * step + lane / 8 % 2 * 8 + lane % 8, lane / 16));
        Mma(scores[2 * block], q[step], b[0], b[1]);
        Mma(scores[2 * block + 1], q[step], b[2], b[3]);
      }
    }

    const int64_t begin = page * kPage;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float* penalties =
          s.penalties == nullptr ? nullptr : s.penalties + (row[r] - s.row) * s.penalty_stride + begin;
      float largest = own_max[r];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int64_t at = begin + 8 * n + t + c;
          float& score = scores[n][2 * r + c];
          const bool in = at >= first[r] && at <= position[r];
          score = in ? score * args.scale - (penalties == nullptr ? 0.0f : penalties[8 * n + t + c]) : -INFINITY;
          largest = fmaxf(largest, score);
        }
      }
      largest = fmaxf(largest, ShuffleXor(largest, 1));
      largest = fmaxf(largest, ShuffleXor(largest, 2));
      const float factor = own_max[r] == -INFINITY ? 0.0f : exp2f((own_max[r] - largest) * kLog2E);
      own_max[r] = largest;
      float added = 0;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[n][2 * r + c];
          score = score == -INFINITY ? 0.0f : exp2f((score - largest) * kLog2E);
          added += score;
        }
      }
      own_mass[r] = own_mass[r] * factor + added;  // this lane's columns
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        own[n][2 * r] *= factor;
        own[n][2 * r + 1] *= factor;
      }
    }

#pragma unroll
    for (int block = 0; block < kPage / 16; ++block) {
      uint32_t p[4];
      AsA(p, scores[2 * block], scores[2 * block + 1]);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t b[4];
        LoadBPlain<kDim>(b, values, 16 * block, step);
        Mma(own[2 * step], p, b[0], b[1]);
        Mma(own[2 * step + 1], p, b[2], b[3]);
      }
    }
    __syncthreads();  // before the next copy overwrites this page

    if (page != last_page && (page + 1) % kSegmentPages != 0) continue;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      own_mass[r] += ShuffleXor(own_mass[r], 1);
      own_mass[r] += ShuffleXor(own_mass[r], 2);
    }
    if (split) break;  // the block's only segment
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Factors by = MergeMass(max[r], mass[r], own_max[r], own_mass[r]);
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          sums[n][2 * r + c] = MergeSum(sums[n][2 * r + c], own[n][2 * r + c], by);
          own[n][2 * r + c] = 0;
        }
      }
      own_max[r] = -INFINITY;
      own_mass[r] = 0;
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (!real[r]) continue;
    if (split) {
      float* part = args.parts + ((row[r] * args.heads + head[r]) * args.splits + blockIdx.y) * (kDim + 2);
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        part[8 * n + t] = own[n][2 * r];
        part[8 * n + t + 1] = own[n][2 * r + 1];
      }
      if (t == 0) {
        part[kDim] = own_max[r];
        part[kDim + 1] = own_mass[r];
      }
      continue;
    }
    const float inverse = 1.0f / mass[r];
    const int64_t at = row[r] * args.out_stride + head[r] * kDim;
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      StoreAct(args.out, args.out_bf16, at + 8 * n + t, sums[n][2 * r] * inverse);
      StoreAct(args.out, args.out_bf16, at + 8 * n + t + 1, sums[n][2 * r + 1] * inverse);
    }
    if (args.lse.data != nullptr && t == 0) args.lse.At(row[r])[head[r]] = max[r] + logf(mass[r]);
  }
}

}  // namespace

bool HasTiles(const AttentionArgs& args) {
  const KvLayout& layout = args.layout;
  if (args.q.dtype != DType::kBf16 || layout.dtype != DType::kBf16) return false;
  if (layout.head_dim != 64 && layout.head_dim != 128) return false;
  if (reinterpret_cast<uintptr_t>(args.q.data) % 4 != 0 || args.q.stride % 2 != 0) return false;
  for (const SequenceRows& s : args.sequences)
    if (s.pruned != nullptr && s.pruned->pages > 0) return false;
  return true;
}

void AttentionTiles(Context& context, const AttentionArgs& args, const AttentionParams& params, int64_t queries,
                    int64_t tiles) {
  const dim3 grid(static_cast<unsigned>(tiles), params.parts != nullptr ? static_cast<unsigned>(params.splits) : 1);
  const auto launch = [&](auto dim) {
    constexpr int kDim = dim;
    constexpr int64_t kShared = 2 * kPageElements<kDim> * int64_t{sizeof(Bf16)};
    if (queries == 16) {
      Launch(AttentionTileKernel<kDim, 1>, grid, dim3(kWarp), kShared, context.stream(), params);
    } else {
      Launch(AttentionTileKernel<kDim, 4>, grid, dim3(4 * kWarp), kShared, context.stream(), params);
    }
  };
  if (args.layout.head_dim == 64) {
    launch(std::integral_constant<int, 64>());
  } else {
    launch(std::integral_constant<int, 128>());
  }
}

}  // namespace quern::cuda
