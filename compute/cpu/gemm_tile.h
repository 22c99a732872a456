#pragma once

#include <cstdint>

#include "compute/cpu/gemm_kernels.h"

// The register-tile kernel, written once over a vector type V that each instruction set's source defines. Everything
// here has internal linkage: the same template compiled with other instructions elsewhere must not be merged with it.
//
// V has: Acc; kLanes; kHalves (1, or 2 where one word of b takes two steps of fp32 arithmetic);
//   Zero(), Load(const float*), Store(float*, Acc), StoreBf16(uint16_t*, Acc), Add(Acc, Acc),
//   LoadB(const uint32_t*, half), BroadcastA(const uint8_t*), BroadcastHalfWord(const uint8_t*), MulAdd(a, b, acc).
// A V of FP8 codes has Scale, LoadB(const uint16_t*, half, Scale) and LoadScale(const float*), of its columns, and
// StoreB(uint32_t*, b).

namespace quern::cpu {
namespace {

struct Epilogue {
  uint8_t* c;
  int64_t c_row_bytes;
  bool c_bf16;
  bool accumulate;
  bool plain;  // neither bias nor accumulate
  const float* bias;
  int64_t cols;  // valid columns from c's first
};

// Writes a row of sums, values[0, e.cols) (whole vectors are readable).
template <class V>
inline void EmitRow(const Epilogue& e, int row, const float* values) {
  uint8_t* to = e.c + row * e.c_row_bytes;
  int64_t col = 0;
  for (; col + V::kLanes <= e.cols; col += V::kLanes) {
    typename V::Acc x = V::Load(values + col);
    if (e.bias != nullptr) x = V::Add(x, V::Load(e.bias + col));
    if (e.c_bf16) {
      V::StoreBf16(reinterpret_cast<uint16_t*>(to) + col, x);
      continue;
    }
    float* out = reinterpret_cast<float*>(to) + col;
    if (e.accumulate) x = V::Add(V::Load(out), x);
    V::Store(out, x);
  }
  for (; col < e.cols; ++col) {
    float x = values[col];
    if (e.bias != nullptr) x += e.bias[col];
    if (e.c_bf16) {
      reinterpret_cast<uint16_t*>(to)[col] = Bf16(x).bits;
      continue;
    }
    float* out = reinterpret_cast<float*>(to) + col;
    *out = e.accumulate ? *out + x : x;
  }
}

// Out of line: it would be repeated in every tile shape.
template <class V>
[[gnu::noinline]] void EmitTile(const Epilogue& e, int rows, const float* values, int64_t row_values) {
  for (int r = 0; r < rows; ++r) EmitRow<V>(e, r, values + r * row_values);
}

// How words of b become operands.
template <class V>
struct Loader {
  using Word = uint32_t;
  struct Scale {};
  static Scale LoadScale(const float*) { return {}; }
  static typename V::B Load(const Word* p, int half, Scale) { return V::LoadB(p, half); }
};
template <class V>
requires requires { typename V::Scale; }
struct Loader<V> {
  using Word = uint16_t;
  using Scale = typename V::Scale;
  static Scale LoadScale(const float* p) { return V::LoadScale(p); }
  static typename V::B Load(const Word* p, int half, Scale scale) { return V::LoadB(p, half, scale); }
};

struct TileArgs {
  const uint8_t* a;
  int64_t a_row_bytes;
  const void* b;        // words
  const float* scales;  // of codes
  uint32_t* decoded;    // null, or where the words of codes go as well (of one panel)
  int64_t panel_words;
  int64_t k_words;    // whole words
  bool half_word;     // one more, of which only the low half exists in a
  int rows;           // to write
  const void* ahead;  // null, or where the panel after this one is asked for, a cache line a word
  Epilogue out;
};

// rows x (panels * vectors * lanes) accumulators stay in registers over the whole of k.
template <class V, int kRowTile, int kPanelVecs, ALayout kLayout, int kRows, int kPanels, int kVecs>
void Tile(const TileArgs& args) {
  constexpr int kPanelCols = kPanelVecs * V::kLanes;
  constexpr int kAll = kPanels * kVecs;
  typename V::Acc acc[kRows][kAll];
  if (!args.out.c_bf16) {  // what is large comes from far away: logits, and sums that these join
    for (int r = 0; r < args.rows; ++r) {
      for (int v = 0; v < kAll; ++v) __builtin_prefetch(args.out.c + r * args.out.c_row_bytes + v * V::kLanes * 4, 1);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kAll; ++v) acc[r][v] = V::Zero();
  }
  const uint8_t* a[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    a[r] = args.a + (kLayout == ALayout::kRows ? r * args.a_row_bytes : r * 4);
  }
  constexpr int64_t kHalfBytes = kLayout == ALayout::kRows ? 4 : 4 * kRowTile;
  constexpr int64_t kWordBytes = kHalfBytes * V::kHalves;
  using Words = Loader<V>;
  using Word = typename Words::Word;
  const Word* b[kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) b[p] = static_cast<const Word*>(args.b) + p * args.panel_words;
  typename Words::Scale scales[kAll];
#pragma GCC unroll 16
  for (int v = 0; v < kAll; ++v) scales[v] = Words::LoadScale(args.scales + v * V::kLanes);
  // Panels come from far away. Few rows read them once and ask for what comes next; where several row tiles use a
  // panel, the one after it is asked for meanwhile.
  constexpr bool kPrefetch = kRows * kPanels <= 8 && kLayout == ALayout::kRows;
  constexpr int64_t kWordsAhead = 16;
  // Words that are read once are asked for into L2, which has more requests under way than L1; codes, which take time
  // to decode, into L1.
  constexpr int kStreamed = sizeof(Word) == 4 ? 2 : 3;
  constexpr int64_t kLine = 64 / sizeof(Word);  // words
  [[maybe_unused]] const bool streams = args.ahead == nullptr;
  [[maybe_unused]] const Word* ahead = streams ? b[0] + kWordsAhead * kPanelCols : static_cast<const Word*>(args.ahead);
  [[maybe_unused]] const int64_t ahead_step = streams ? kPanelCols : kLine;

  [[maybe_unused]] uint32_t* decoded = args.decoded;
  int64_t offset = 0;
#pragma GCC unroll 4
  for (int64_t k = 0; k < args.k_words; ++k) {
    if constexpr (kPrefetch && kPanels == 1) {
      if (streams) {
        for (int64_t line = 0; line < kVecs * V::kLanes; line += kLine) __builtin_prefetch(ahead + line, 0, kStreamed);
      } else {
        __builtin_prefetch(ahead);
      }
      ahead += ahead_step;
    }
    // After the end of these panels come those that follow the last of them.
    [[maybe_unused]] const int64_t wide_ahead =
        kWordsAhead * kPanelCols + (k + kWordsAhead < args.k_words ? 0 : (kPanels - 1) * args.panel_words);
#pragma GCC unroll 2
    for (int half = 0; half < V::kHalves; ++half) {
      typename V::B words[kAll];
#pragma GCC unroll 16
      for (int v = 0; v < kAll; ++v) {
        const Word* from = b[v / kVecs] + (v % kVecs) * V::kLanes;
        if constexpr (kPrefetch && kPanels > 1) {
          if (half == 0 && v % kVecs * V::kLanes % kLine == 0) __builtin_prefetch(from + wide_ahead, 0, kStreamed);
        }
        words[v] = Words::Load(from, half, scales[v]);
      }
      if constexpr (sizeof(Word) == 2 && kPanels == 1) {
        if (decoded != nullptr) {
#pragma GCC unroll 16
          for (int v = 0; v < kAll; ++v) V::StoreB(decoded + v * V::kLanes, words[v]);
          decoded += kPanelCols;
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const typename V::A x = V::BroadcastA(a[r] + offset + half * kHalfBytes);
#pragma GCC unroll 16
        for (int v = 0; v < kAll; ++v) acc[r][v] = V::MulAdd(x, words[v], acc[r][v]);
      }
    }
    offset += kWordBytes;
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) b[p] += kPanelCols;
  }
  if constexpr (kLayout == ALayout::kRows && V::kHalves == 1) {
    if (args.half_word) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const typename V::A x = V::BroadcastHalfWord(a[r] + offset);
#pragma GCC unroll 16
        for (int v = 0; v < kAll; ++v) {
          const typename V::B word = Words::Load(b[v / kVecs] + (v % kVecs) * V::kLanes, 0, scales[v]);
          if constexpr (sizeof(Word) == 2 && kPanels == 1)
            if (r == 0 && decoded != nullptr) V::StoreB(decoded + v * V::kLanes, word);
          acc[r][v] = V::MulAdd(x, word, acc[r][v]);
        }
      }
    }
  }
  if (args.out.plain && args.rows == kRows && args.out.cols == kAll * V::kLanes) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      uint8_t* c = args.out.c + r * args.out.c_row_bytes;
#pragma GCC unroll 16
      for (int v = 0; v < kAll; ++v) {
        if (args.out.c_bf16) {
          V::StoreBf16(reinterpret_cast<uint16_t*>(c) + v * V::kLanes, acc[r][v]);
        } else {
          V::Store(reinterpret_cast<float*>(c) + v * V::kLanes, acc[r][v]);
        }
      }
    }
    return;
  }
  // Vectors of one row lie as their columns do in c: a partial panel is never one of several.
  alignas(64) float values[kRows][kAll * V::kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kAll; ++v) V::Store(values[r] + v * V::kLanes, acc[r][v]);
  }
  EmitTile<V>(args.out, args.rows, values[0], kAll * V::kLanes);
}

// Panels side by side for a tile of few rows, so that there are enough independent chains to hide latency.
constexpr int PanelsAtOnce(int rows, int row_tile) { return rows * 4 <= row_tile ? 4 : rows * 2 <= row_tile ? 2 : 1; }

template <class V, int kRowTile, int kPanelVecs, ALayout kLayout>
struct TileTable {
  using Function = void (*)(const TileArgs&);
  template <int kRows>
  constexpr void Fill() {
    if constexpr (kRows > 0) {
      constexpr int kPanels = PanelsAtOnce(kRows, kRowTile);
      one[kRows][1] = &Tile<V, kRowTile, kPanelVecs, kLayout, kRows, 1, 1>;
      one[kRows][2] = &Tile<V, kRowTile, kPanelVecs, kLayout, kRows, 1, 2>;
      one[kRows][kPanelVecs] = &Tile<V, kRowTile, kPanelVecs, kLayout, kRows, 1, kPanelVecs>;
      wide[kRows] = &Tile<V, kRowTile, kPanelVecs, kLayout, kRows, kPanels, kPanelVecs>;
      // Tiles of a are always whole (padded with zeros).
      if constexpr (kLayout == ALayout::kRows) Fill<kRows - 1>();
    }
  }
  constexpr TileTable() { Fill<kRowTile>(); }
  Function wide[kRowTile + 1] = {};                 // [rows]: PanelsAtOnce(rows) whole panels
  Function one[kRowTile + 1][kPanelVecs + 1] = {};  // [rows][vectors of the panel]
};

template <class V, int kRowTile, int kPanelVecs, ALayout kLayout>
void BlockOf(const BlockArgs& args) {
  static constexpr TileTable<V, kRowTile, kPanelVecs, kLayout> kTable;
  constexpr int kPanelCols = kPanelVecs * V::kLanes;
  constexpr int64_t kTileBytes = int64_t{4} * kRowTile * V::kHalves;  // of one k word of a, kTiles
  if (args.rows <= 0) return;
  TileArgs tile{};
  tile.a_row_bytes = args.a_row_bytes;
  tile.panel_words = args.panel_words;
  tile.half_word = args.half_word && kLayout == ALayout::kRows && V::kHalves == 1;
  tile.k_words = args.k_words - (tile.half_word ? 1 : 0);
  tile.out.c_row_bytes = args.c_row_bytes;
  tile.out.c_bf16 = args.c_bf16;
  tile.out.accumulate = args.accumulate;
  tile.out.plain = !args.accumulate && args.bias == nullptr;
  constexpr bool codes = sizeof(typename Loader<V>::Word) == 2;
  const int64_t c_bytes = args.c_bf16 ? 2 : 4;
  // Rows are spread evenly over tiles: 9 rows are 5 + 4, not 8 + 1.
  const int64_t tiles = (args.rows + kRowTile - 1) / kRowTile;
  const int most = kLayout == ALayout::kRows ? static_cast<int>((args.rows + tiles - 1) / tiles) : kRowTile;
  const int at_once = PanelsAtOnce(most, kRowTile);
  for (int64_t col = 0; col < args.cols;) {
    const int64_t left = args.cols - col;
    const bool wide = at_once > 1 && tiles == 1 && args.rows == most && left >= int64_t{at_once} * kPanelCols;
    const int64_t width = wide ? int64_t{at_once} * kPanelCols : (left < kPanelCols ? left : int64_t{kPanelCols});
    const int vecs = static_cast<int>((width + V::kLanes - 1) / V::kLanes);
    tile.b = codes ? static_cast<const void*>(args.codes + col / kPanelCols * args.panel_words)
                   : args.b + col / kPanelCols * args.panel_words;
    tile.scales = codes ? args.scales + col : nullptr;
    tile.decoded = args.decoded;
    tile.out.bias = args.bias == nullptr ? nullptr : args.bias + col;
    tile.out.cols = width;
    int64_t row = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t next = kLayout == ALayout::kRows        ? args.rows * (i + 1) / tiles
                           : (i + 1) * kRowTile < args.rows ? (i + 1) * kRowTile
                                                            : args.rows;
      const auto rows = static_cast<int>(next - row);
      tile.a = args.a + (kLayout == ALayout::kRows ? row * args.a_row_bytes : i * args.k_words * kTileBytes);
      tile.out.c = args.c + row * args.c_row_bytes + col * c_bytes;
      tile.rows = rows;
      // Each tile asks for its share.
      const bool given = args.next != nullptr && col + width >= args.cols;
      const int64_t next_bytes = given ? args.next_bytes : args.panel_words * 4;
      if (kLayout == ALayout::kRows && tiles > 1 && next_bytes > 0) {
        const auto* from = static_cast<const uint8_t*>(given ? args.next : tile.b);
        tile.ahead = from + (given ? 0 : next_bytes) + i * tile.k_words * 64 % next_bytes;
      }
      const int shape = kLayout == ALayout::kRows ? rows : kRowTile;
      (wide ? kTable.wide[shape] : kTable.one[shape][vecs])(tile);
      row = next;
    }
    col += width;
  }
}

template <class V, int kRowTile, int kPanelVecs>
void Block(const BlockArgs& args) {
  if (args.a_layout == ALayout::kRows) {
    BlockOf<V, kRowTile, kPanelVecs, ALayout::kRows>(args);
  } else {
    BlockOf<V, kRowTile, kPanelVecs, ALayout::kTiles>(args);
  }
}

// Vector code by the compiler.
inline void Interleave(const uint16_t* __restrict low, const uint16_t* __restrict high, int64_t count,
                       uint32_t* __restrict out) {
  if (high == nullptr) {
    for (int64_t i = 0; i < count; ++i) out[i] = low[i];
    return;
  }
  for (int64_t i = 0; i < count; ++i) out[i] = uint32_t{low[i]} | uint32_t{high[i]} << 16;
}

inline void InterleaveRounded(const float* __restrict low, const float* __restrict high, int64_t count,
                              uint32_t* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = RoundedBits(low[i]) | RoundedBits(high[i]) << 16;
}

// Two E4M3 codes as two bf16 values, for any scale that is a power of two or NaN.
template <int kPanelCols>
void DecodeE4M3(const uint16_t* __restrict codes, int64_t words, const float* __restrict scales,
                uint32_t* __restrict out) {
  const auto value = [](uint32_t code, float scale) {
    const uint32_t magnitude = code & 0x7f;
    const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f;
    const uint32_t normal = (magnitude << 20) + (uint32_t{120} << 23);
    uint32_t bits = magnitude < 8 ? std::bit_cast<uint32_t>(subnormal) : normal;
    bits = magnitude == 0x7f ? 0x7fc00000u : bits;
    const float x = std::bit_cast<float>(bits | (code & 0x80) << 24) * scale;
    return std::bit_cast<uint32_t>(x);
  };
  for (int64_t w = 0; w < words; ++w) {
    for (int c = 0; c < kPanelCols; ++c) {
      const uint32_t word = codes[w * kPanelCols + c];
      out[w * kPanelCols + c] = value(word & 0xff, scales[c]) >> 16 | (value(word >> 8, scales[c]) & 0xffff0000u);
    }
  }
}

template <class V, int kRowTile, int kPanelVecs>
FormatKernels TileKernels() {
  FormatKernels kernels;
  kernels.panel_cols = kPanelVecs * V::kLanes;
  kernels.row_tile = kRowTile;
  kernels.widen_a = V::kHalves == 2;
  kernels.block = &Block<V, kRowTile, kPanelVecs>;
  kernels.interleave = &Interleave;
  kernels.interleave_rounded = &InterleaveRounded;
  kernels.decode = kernels.decode_plain = &DecodeE4M3<kPanelVecs * V::kLanes>;
  return kernels;
}

}  // namespace
}  // namespace quern::cpu
