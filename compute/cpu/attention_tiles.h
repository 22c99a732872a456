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

// scores[r, 16 b + lane] = sum over d of q[r, d] keys[b, d, lane], d ascending, for B blocks.
template <int R, int B, typename Key>
inline void ScoreBlocks(const float* q, int64_t dim, const Key* keys, float* scores, int64_t stride) {
  F16 sum[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sum[r][b] = Zero();
  for (int64_t d = 0; d < dim; ++d) {
    F16 key[B];
    for (int b = 0; b < B; ++b) key[b] = Load(keys + (b * dim + d) * kLanes);
    for (int r = 0; r < R; ++r) {
      const F16 value = Set(q[r * dim + d]);
      for (int b = 0; b < B; ++b) sum[r][b] = Fma(value, key[b], sum[r][b]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) Store(scores + r * stride + b * kLanes, sum[r][b]);
}

// `blocks` blocks one after another in memory.
template <int R, typename Key>
inline void Score(const float* q, int64_t dim, const Key* keys, int64_t blocks, float* scores, int64_t stride) {
  constexpr int kTogether = kAccumulators / R >= 4 ? 4 : kAccumulators / R >= 2 ? 2 : 1;
  int64_t b = 0;
  for (; b + kTogether <= blocks; b += kTogether)
    ScoreBlocks<R, kTogether>(q, dim, keys + b * dim * kLanes, scores + b * kLanes, stride);
  for (; b < blocks; ++b) ScoreBlocks<R, 1>(q, dim, keys + b * dim * kLanes, scores + b * kLanes, stride);
}

// sums[r, i] += sum over j of weights[r row_step + j step] rows[j, i], j ascending, for N vectors of i.
template <int R, int N, typename Value, typename Lanes>
inline void AddRowsVectors(const float* weights, int64_t row_step, int64_t step, const Value* rows, int64_t rows_stride,
                           int64_t count, float* sums, int64_t sums_stride, Lanes lanes) {
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

template <int R, typename Value>
inline void AddRows(const float* weights, int64_t row_step, int64_t step, const Value* rows, int64_t rows_stride,
                    int64_t count, int64_t dim, float* sums, int64_t sums_stride) {
  if (count <= 0) return;
  int64_t i = 0;
  if constexpr (kAccumulators >= 16) {
    constexpr int64_t kWide = R >= 8 ? 3 : 4;
    // Four vectors are two and two rather than three and one.
    for (; dim - i >= kWide * kLanes && !(kWide == 3 && (dim - i) / kLanes == 4); i += kWide * kLanes)
      AddRowsVectors<R, kWide>(weights, row_step, step, rows + i, rows_stride, count, sums + i, sums_stride, All{});
    for (; dim - i >= 2 * kLanes; i += 2 * kLanes)
      AddRowsVectors<R, 2>(weights, row_step, step, rows + i, rows_stride, count, sums + i, sums_stride, All{});
  }
  for (; dim - i >= kLanes; i += kLanes)
    AddRowsVectors<R, 1>(weights, row_step, step, rows + i, rows_stride, count, sums + i, sums_stride, All{});
  if (dim > i)
    AddRowsVectors<R, 1>(weights, row_step, step, rows + i, rows_stride, count, sums + i, sums_stride, dim - i);
}

}  // namespace
}  // namespace quern::cpu::QUERN_ISA
