#pragma once

// The two inner products of attention by VDPBF16PS, for bf16 queries, keys and values: twice the rate of fp32
// multiply-adds. Scores are sums over pairs of channels, exact products in fp32. The softmax's weights are rounded to
// bf16 (and divided by the sum of what they became) and values are summed over pairs of positions 2i, 2i + 1; a
// position that is not attended to counts as a zero row. An element is one chain in ascending order, the same whatever
// the tile.

#include "compute/cpu/attention_tiles.h"

namespace quern::cpu::QUERN_ISA {
namespace {

inline F16 Dot(F16 sum, __m512i a, __m512i b) {
  return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
}
inline __m512i SetPair(const uint16_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return _mm512_set1_epi32(pair);
}
// Sixteen values and sixteen more, one after another, become sixteen pairs.
inline __m512i Zip(__m512i x) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, x);
}
inline __m256i LoadBits(const uint16_t* p, All) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256i LoadBits(const uint16_t* p, int64_t n) { return _mm256_maskz_loadu_epi16(FirstLanes(n), p); }
inline __m512i Zip(__m256i low, __m256i high) { return Zip(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)); }

template <int R, int B>
inline void DotScoreBlocks(const uint16_t* q, int64_t dim, const uint16_t* keys, float* scores, int64_t stride,
                           const uint16_t* ahead) {
  const int64_t row = (dim + 1) / 2 * 2;
  F16 sum[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sum[r][b] = Zero();
  const auto add = [&](int64_t d, auto load) {
    __m512i key[B];
    for (int b = 0; b < B; ++b) key[b] = Zip(load(keys + (b * dim + d) * kLanes));
    if constexpr (AsksAhead(R))
      for (int b = 0; b < B; ++b) Ask(ahead + (b * dim + d) * kLanes);
    for (int r = 0; r < R; ++r) {
      const __m512i value = SetPair(q + r * row + d);
      for (int b = 0; b < B; ++b) sum[r][b] = Dot(sum[r][b], value, key[b]);
    }
  };
  int64_t d = 0;
  for (; d + 2 <= dim; d += 2) add(d, [](const uint16_t* p) { return _mm512_loadu_si512(p); });
  if (d < dim) add(d, [](const uint16_t* p) { return _mm512_zextsi256_si512(LoadBits(p, All{})); });
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) Store(scores + r * stride + b * kLanes, sum[r][b]);
}

// sums[r, i] += sum over j in [begin, end) of weights[r, j] rows[j, i] for N vectors of i, rows 2i and 2i + 1 together.
template <int R, int N, typename Lanes>
inline void DotRowsVectors(const uint16_t* weights, int64_t weight_stride, const uint16_t* rows, int64_t dim,
                           int64_t begin, int64_t end, float* sums, const uint16_t* ahead, Lanes lanes) {
  const auto bits = [&](const uint16_t* p, int n) {
    if (n == N - 1) return LoadBits(p + n * kLanes, lanes);
    return LoadBits(p + n * kLanes, All{});
  };
  F16 sum[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n)
      sum[r][n] = n == N - 1 ? Load(sums + r * dim + n * kLanes, lanes) : Load(sums + r * dim + n * kLanes);
  const auto add = [&](int64_t j, const __m512i* pairs) {
    for (int r = 0; r < R; ++r) {
      const __m512i weight = SetPair(weights + r * weight_stride + j);
      for (int n = 0; n < N; ++n) sum[r][n] = Dot(sum[r][n], weight, pairs[n]);
    }
  };
  __m512i pairs[N];
  int64_t j = begin;
  if (j % 2 == 1 && j < end) {
    for (int n = 0; n < N; ++n) pairs[n] = Zip(_mm256_setzero_si256(), bits(rows + j * dim, n));
    add(j - 1, pairs);
    ++j;
  }
  for (; j + 2 <= end; j += 2) {
    for (int n = 0; n < N; ++n) pairs[n] = Zip(bits(rows + j * dim, n), bits(rows + (j + 1) * dim, n));
    if constexpr (AsksAhead(R)) {
      if (dim == N * kLanes) {  // two rows are N cache lines
        for (int n = 0; n < N; ++n) Ask(ahead + j * dim + 2 * n * kLanes);
      } else {
        for (int n = 0; n < N; n += 2) {
          Ask(ahead + j * dim + n * kLanes);
          Ask(ahead + (j + 1) * dim + n * kLanes);
        }
      }
    }
    add(j, pairs);
  }
  if (j < end) {
    for (int n = 0; n < N; ++n) pairs[n] = Zip(bits(rows + j * dim, n), _mm256_setzero_si256());
    add(j, pairs);
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) {
      if (n == N - 1) {
        Store(sums + r * dim + n * kLanes, sum[r][n], lanes);
      } else {
        Store(sums + r * dim + n * kLanes, sum[r][n]);
      }
    }
  }
}

struct DotProducts {
  using Kv = uint16_t;
  using Element = uint16_t;
  static constexpr int64_t kStep = 2;
  static constexpr int64_t RowElements(int64_t dim) { return (dim + 1) / 2 * 2; }

  static void Query(const uint16_t* from, int64_t dim, uint16_t* to) {
    std::memcpy(to, from, static_cast<size_t>(dim) * sizeof(uint16_t));
    if (dim % 2 == 1) to[dim] = 0;
  }

  template <int R>
  static void Scores(const uint16_t* q, int64_t dim, const uint16_t* keys, int64_t blocks, float* scores,
                     int64_t stride, const uint16_t* ahead) {
    ForBlocks<R>(blocks, [&](int64_t b, auto count) {
      const int64_t at = b * dim * kLanes;
      DotScoreBlocks<R, decltype(count)::value>(q, dim, keys + at, scores + b * kLanes, stride,
                                                (ahead == nullptr ? keys : ahead) + at);
    });
  }

  // The weights of a row take the first half of the place of its scores.
  static F16 StoreWeights(float* row, int64_t i, F16 e) {
    const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(e.v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(reinterpret_cast<uint16_t*>(row) + i), rounded);
    return Widen(rounded);
  }

  // Adds `rows` [begin, end) of a page; `row` holds the weights of row 0, from the page's first on.
  template <int R>
  static void Add(const float* row, int64_t first, int64_t stride, const uint16_t* rows, int64_t begin, int64_t end,
                  int64_t dim, float* sums, const uint16_t* ahead) {
    const uint16_t* weights = reinterpret_cast<const uint16_t*>(row) + first;
    if (ahead == nullptr) ahead = rows;
    ForColumns<R>(dim, [&](int64_t i, auto vectors, auto lanes) {
      DotRowsVectors<R, decltype(vectors)::value>(weights, 2 * stride, rows + i, dim, begin, end, sums + i, ahead + i,
                                                  lanes);
    });
  }
};

}  // namespace
}  // namespace quern::cpu::QUERN_ISA
