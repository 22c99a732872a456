#pragma once

#include <cstring>

#include "compute/cpu/gemm_tile.h"

// The bf16 tile kernel (Intel SDM vol. 1 ch. 18): 2 x 2 accumulator tiles of 16 x 16 fp32, written once over a tile
// unit T and a vector type V for the epilogue, so that it can run on tiles in software. Internal linkage: see
// gemm_tile.h.
//
// T has: Configure(const TileConfig&), Release(), and for tile numbers known at compile time Zero<t>(),
//   Load<t>(const void*, row bytes), Store<t>(void*, row bytes), Dot<c, a, b>().

namespace quern::cpu {

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

namespace {

constexpr int kAmxTileRows = 16;
constexpr int kAmxTileWords = 16;  // 64 bytes a row: 32 bf16 of k for a, 16 columns for b and c
constexpr int kAmxPanelCols = 32;
constexpr int kAmxRowTile = 32;

// Tiles 0-3 are c (row half, column half), 4-5 a, 6-7 b.
inline TileConfig AmxConfig(int rows) {
  TileConfig config;
  const auto upper = static_cast<uint8_t>(rows < kAmxTileRows ? rows : kAmxTileRows);
  const auto lower = static_cast<uint8_t>(rows > kAmxTileRows ? rows - kAmxTileRows : 1);
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = kAmxTileRows;
  }
  config.rows[0] = config.rows[1] = config.rows[4] = upper;
  config.rows[2] = config.rows[3] = config.rows[5] = lower;
  return config;
}

// One row tile (of at most 32 rows) times one panel. kTwo: more than 16 rows.
template <class T, class V, bool kTwo>
void AmxTile(const BlockArgs& args, const uint8_t* a, int rows, const uint32_t* b, const Epilogue& out) {
  T::template Zero<0>();
  T::template Zero<1>();
  if constexpr (kTwo) {
    T::template Zero<2>();
    T::template Zero<3>();
  }
  const uint8_t* a_lower = a + kAmxTileRows * args.a_row_bytes;
  for (int64_t k = 0; k < args.k_words; k += kAmxTileWords) {
    const uint32_t* from = b + k * kAmxPanelCols;
    T::template Load<6>(from, kAmxPanelCols * 4);
    T::template Load<7>(from + kAmxTileWords, kAmxPanelCols * 4);
    T::template Load<4>(a + k * 4, args.a_row_bytes);
    T::template Dot<0, 4, 6>();
    T::template Dot<1, 4, 7>();
    if constexpr (kTwo) {
      T::template Load<5>(a_lower + k * 4, args.a_row_bytes);
      T::template Dot<2, 5, 6>();
      T::template Dot<3, 5, 7>();
    }
  }
  alignas(64) float c[kAmxRowTile * kAmxPanelCols];
  constexpr int64_t kBytes = kAmxPanelCols * 4;
  T::template Store<0>(c, kBytes);
  T::template Store<1>(c + kAmxTileWords, kBytes);
  if constexpr (kTwo) {
    T::template Store<2>(c + kAmxTileRows * kAmxPanelCols, kBytes);
    T::template Store<3>(c + kAmxTileRows * kAmxPanelCols + kAmxTileWords, kBytes);
  }
  EmitTile<V>(out, rows, c, kAmxPanelCols);
}

template <class T, class V>
void AmxBlock(const BlockArgs& args) {
  if (args.rows <= 0) return;
  Epilogue out{};
  out.c_row_bytes = args.c_row_bytes;
  out.c_bf16 = args.c_bf16;
  out.accumulate = args.accumulate;
  const int64_t c_bytes = args.c_bf16 ? 2 : 4;
  int configured = 0;
  // Row tiles outside: the tile configuration changes at most once.
  for (int64_t row = 0; row < args.rows; row += kAmxRowTile) {
    const auto rows = static_cast<int>(args.rows - row < kAmxRowTile ? args.rows - row : kAmxRowTile);
    if (rows != configured) {
      T::Configure(AmxConfig(rows));
      configured = rows;
    }
    for (int64_t col = 0; col < args.cols; col += kAmxPanelCols) {
      out.c = args.c + row * args.c_row_bytes + col * c_bytes;
      out.bias = args.bias == nullptr ? nullptr : args.bias + col;
      out.cols = args.cols - col < kAmxPanelCols ? args.cols - col : kAmxPanelCols;
      const uint32_t* b = args.b + col / kAmxPanelCols * args.panel_words;
      const uint8_t* a = args.a + row * args.a_row_bytes;
      if (rows > kAmxTileRows) {
        AmxTile<T, V, true>(args, a, rows, b, out);
      } else {
        AmxTile<T, V, false>(args, a, rows, b, out);
      }
    }
  }
  T::Release();
}

template <class T, class V>
FormatKernels AmxKernels() {
  FormatKernels kernels;
  kernels.panel_cols = kAmxPanelCols;
  kernels.row_tile = kAmxRowTile;
  kernels.k_word_multiple = kAmxTileWords;
  kernels.grad_layout = ALayout::kRows;
  kernels.block = &AmxBlock<T, V>;
  kernels.interleave = &Interleave;
  kernels.interleave_rounded = &InterleaveRounded;
  kernels.decode = kernels.decode_plain = &DecodeE4M3<kAmxPanelCols>;
  return kernels;
}

}  // namespace
}  // namespace quern::cpu
