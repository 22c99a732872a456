#pragma once

// The two inner products of attention, for a tile of R rows at a time. An element of either is one chain of fused
// multiply-adds in ascending order, the same chain whatever the tile.

#include "compute/cpu/simd.h"

namespace quern::cpu::QUERN_ISA {
namespace {

constexpr int64_t kMaxTile = kAccumulators >= 16 ? 8 : 4;  // rows; tiles are powers of two

// The largest tile that fits `rows`.
inline int64_t TileOf(int64_t rows) {
  int64_t tile = kMaxTile;
  while (tile > rows) tile /= 2;
  return tile;
}

// Calls f with an integral constant equal to `tile`.
template <int kValue>
struct Count {
  static constexpr int value = kValue;
};
template <typename F>
inline void WithTile(int64_t tile, F f) {
  switch (tile) {
    case 8:
      if constexpr (kMaxTile >= 8) f(Count<8>{});
      break;
    case 4: f(Count<4>{}); break;
    case 2: f(Count<2>{}); break;
    default: f(Count<1>{}); break;
  }
}

// Tiles of few rows wait for memory: they ask for the same place of `ahead` while they read. Into L2, which has more
// requests under way than L1 (measured on Zen 4: 16 instead of 11 GB/s).
constexpr bool AsksAhead(int rows) { return rows <= 4; }
template <typename T>
inline void Ask(const T* p) {
  __builtin_prefetch(p, 0, 2);
}
template <typename T>
inline void Ask(const T* p, int64_t vector) {
  if (sizeof(T) == 4 || vector % 2 == 0) Ask(p);
}

// scores[r, 16 b + lane] = sum over d of q[r, d] keys[b, d, lane], d ascending, for B blocks.
template <int R, int B, typename Key>
inline void ScoreBlocks(const float* q, int64_t dim, const Key* keys, float* scores, int64_t stride, const Key* ahead) {
  F16 sum[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sum[r][b] = Zero();
  for (int64_t d = 0; d < dim; ++d) {
    F16 key[B];
    for (int b = 0; b < B; ++b) key[b] = Load(keys + (b * dim + d) * kLanes);
    if constexpr (AsksAhead(R))
      for (int b = 0; b < B; ++b) Ask(ahead + (b * dim + d) * kLanes, d);
    for (int r = 0; r < R; ++r) {
      const F16 value = Set(q[r * dim + d]);
      for (int b = 0; b < B; ++b) sum[r][b] = Fma(value, key[b], sum[r][b]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) Store(scores + r * stride + b * kLanes, sum[r][b]);
}

// f(b, count) for `count` blocks at a time.
template <int R, typename F>
inline void ForBlocks(int64_t blocks, F f) {
  constexpr int kTogether = kAccumulators / R >= 4 ? 4 : kAccumulators / R >= 2 ? 2 : 1;
  int64_t b = 0;
  for (; b + kTogether <= blocks; b += kTogether) f(b, Count<kTogether>{});
  for (; b < blocks; ++b) f(b, Count<1>{});
}

// `blocks` blocks one after another in memory. `ahead`: null, or keys that are scored next.
template <int R, typename Key>
inline void Score(const float* q, int64_t dim, const Key* keys, int64_t blocks, float* scores, int64_t stride,
                  const Key* ahead = nullptr) {
  if (ahead == nullptr) ahead = keys;
  ForBlocks<R>(blocks, [&](int64_t b, auto count) {
    const int64_t at = b * dim * kLanes;
    ScoreBlocks<R, decltype(count)::value>(q, dim, keys + at, scores + b * kLanes, stride, ahead + at);
  });
}

// sums[r, i] += sum over j of weights[r row_step + j step] rows[j, i], j ascending, for N vectors of i.
template <int R, int N, typename Value, typename Lanes>
inline void AddRowsVectors(const float* weights, int64_t row_step, int64_t step, const Value* rows, int64_t rows_stride,
                           int64_t count, float* sums, int64_t sums_stride, const Value* ahead, Lanes lanes) {
  const auto load = [&](const auto* p, int n) {
    if (n == N - 1) return Load(p + n * kLanes, lanes);
    return Load(p + n * kLanes);
  };
  F16 sum[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) sum[r][n] = load(sums + r * sums_stride, n);
  for (int64_t j = 0; j < count; ++j) {
    F16 row[N];
    for (int n = 0; n < N; ++n) row[n] = load(rows + j * rows_stride, n);
    if constexpr (AsksAhead(R))
      for (int n = 0; n < N; ++n) Ask(ahead + j * rows_stride + n * kLanes, n);
    for (int r = 0; r < R; ++r) {
      const F16 weight = Set(weights[r * row_step + j * step]);
      for (int n = 0; n < N; ++n) sum[r][n] = Fma(weight, row[n], sum[r][n]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) {
      if (n == N - 1) {
        Store(sums + r * sums_stride + n * kLanes, sum[r][n], lanes);
      } else {
        Store(sums + r * sums_stride + n * kLanes, sum[r][n]);
      }
    }
  }
}

// f(i, vectors, lanes) for `vectors` vectors of columns at a time, the last of which has `lanes` lanes.
template <int R, typename F>
inline void ForColumns(int64_t dim, F f) {
  int64_t i = 0;
  const auto call = [&](auto vectors, auto lanes) {
    f(i, vectors, lanes);
    i += decltype(vectors)::value * kLanes;
  };
  if constexpr (kAccumulators >= 16) {
    constexpr int kWide = R >= 8 ? 3 : 4;
    // Four vectors are two and two rather than three and one.
    while (dim - i >= kWide * kLanes && !(kWide == 3 && (dim - i) / kLanes == 4)) call(Count<kWide>{}, All{});
    if constexpr (kWide == 4)
      if (dim - i >= 3 * kLanes) call(Count<3>{}, All{});
    while (dim - i >= 2 * kLanes) call(Count<2>{}, All{});
  }
  while (dim - i >= kLanes) call(Count<1>{}, All{});
  if (dim > i) call(Count<1>{}, dim - i);
}

// `ahead`: null, or rows that are added next.
template <int R, typename Value>
inline void AddRows(const float* weights, int64_t row_step, int64_t step, const Value* rows, int64_t rows_stride,
                    int64_t count, int64_t dim, float* sums, int64_t sums_stride, const Value* ahead = nullptr) {
  if (count <= 0) return;
  if (ahead == nullptr) ahead = rows;
  ForColumns<R>(dim, [&](int64_t i, auto vectors, auto lanes) {
    AddRowsVectors<R, decltype(vectors)::value>(weights, row_step, step, rows + i, rows_stride, count, sums + i,
                                                sums_stride, ahead + i, lanes);
  });
}

// How a query attends to keys and values of type T: in fp32.
template <typename T>
struct FloatProducts {
  using Kv = T;
  using Element = float;               // of queries
  static constexpr int64_t kStep = 1;  // positions whose values are added at once
  static constexpr int64_t RowElements(int64_t dim) { return dim; }

  template <typename Act>
  static void Query(const Act* from, int64_t dim, float* to) {
    ForVectors(dim, [&](int64_t i, auto lanes) { Store(to + i, Load(from + i, lanes), lanes); });
  }
  template <int R>
  static void Scores(const float* q, int64_t dim, const Kv* keys, int64_t blocks, float* scores, int64_t stride,
                     const Kv* ahead) {
    Score<R>(q, dim, keys, blocks, scores, stride, ahead);
  }
  // Takes the place of a row's scores; what the weights are then.
  static F16 StoreWeights(float* row, int64_t i, F16 e) {
    Store(row + i, e);
    return e;
  }
  // Adds rows [begin, end) of a page, whose weights are those from row[first] on for the first of the tile's rows.
  template <int R>
  static void Add(const float* row, int64_t first, int64_t stride, const Kv* rows, int64_t begin, int64_t end,
                  int64_t dim, float* sums, const Kv* ahead) {
    AddRows<R>(row + first + begin, stride, 1, rows + begin * dim, dim, end - begin, dim, sums, dim,
               ahead == nullptr ? nullptr : ahead + begin * dim);
  }
};

}  // namespace
}  // namespace quern::cpu::QUERN_ISA
