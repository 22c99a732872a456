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

// Tiles of few rows wait for memory: they ask for the same place of `ahead` while they read.
constexpr bool AsksAhead(int rows) { return rows <= 4; }
template <typename T>
inline void Ask(const T* p, int64_t vector) {
  if (sizeof(T) == 4 || vector % 2 == 0) __builtin_prefetch(p);
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

// `blocks` blocks one after another in memory. `ahead`: null, or keys that are scored next.
template <int R, typename Key>
inline void Score(const float* q, int64_t dim, const Key* keys, int64_t blocks, float* scores, int64_t stride,
                  const Key* ahead = nullptr) {
  constexpr int kTogether = kAccumulators / R >= 4 ? 4 : kAccumulators / R >= 2 ? 2 : 1;
  if (ahead == nullptr) ahead = keys;
  const auto score = [&](int64_t b, auto count) {
    const int64_t at = b * dim * kLanes;
    ScoreBlocks<R, decltype(count)::value>(q, dim, keys + at, scores + b * kLanes, stride, ahead + at);
  };
  int64_t b = 0;
  for (; b + kTogether <= blocks; b += kTogether) score(b, Count<kTogether>{});
  for (; b < blocks; ++b) score(b, Count<1>{});
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

// `ahead`: null, or rows that are added next.
template <int R, typename Value>
inline void AddRows(const float* weights, int64_t row_step, int64_t step, const Value* rows, int64_t rows_stride,
                    int64_t count, int64_t dim, float* sums, int64_t sums_stride, const Value* ahead = nullptr) {
  if (count <= 0) return;
  if (ahead == nullptr) ahead = rows;
  int64_t i = 0;
  const auto add = [&](auto vectors, auto lanes) {
    AddRowsVectors<R, decltype(vectors)::value>(weights, row_step, step, rows + i, rows_stride, count, sums + i,
                                                sums_stride, ahead + i, lanes);
    i += decltype(vectors)::value * kLanes;
  };
  if constexpr (kAccumulators >= 16) {
    constexpr int kWide = R >= 8 ? 3 : 4;
    // Four vectors are two and two rather than three and one.
    while (dim - i >= kWide * kLanes && !(kWide == 3 && (dim - i) / kLanes == 4)) add(Count<kWide>{}, All{});
    if constexpr (kWide == 4)
      if (dim - i >= 3 * kLanes) add(Count<3>{}, All{});
    while (dim - i >= 2 * kLanes) add(Count<2>{}, All{});
  }
  while (dim - i >= kLanes) add(Count<1>{}, All{});
  if (dim > i) add(Count<1>{}, dim - i);
}

}  // namespace
}  // namespace quern::cpu::QUERN_ISA
