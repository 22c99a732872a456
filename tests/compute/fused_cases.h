#pragma once

// Operations with a second part (a cast to FP8, a write to pages) give the bits of the two operations, on every
// backend.

#include <string>

#include "tests/compute/test_tensors.h"

namespace quern {

struct CastOut {
  Tensor codes, scale, amax{DType::kF32, 1, 1}, counts{DType::kI32, 1, 2};
  bool operator==(const CastOut& o) const {
    return BitEqual(codes, o.codes) && BitEqual(scale, o.scale) && BitEqual(amax, o.amax) && BitEqual(counts, o.counts);
  }
};

// together(y, cast) against apart(y), which has no cast, and the cast of y.
template <typename Together, typename Apart>
void ExpectCastIsThatOfTheOutput(Ops& ops, DType act, int64_t rows, int64_t cols, int64_t padding, Together together,
                                 Apart apart) {
  using Scale = QuantizeArgs::Scale;
  Tensor column(DType::kF32, 1, cols);
  for (int64_t c = 0; c < cols; ++c) SetElement(column, 0, c, std::exp2(c % 7 - 3));
  for (const Fp8Format& format : {kE4M3, kE4M3Gaudi, kE5M2}) {
    for (const Scale rule : {Scale::kRow, Scale::kTensor, Scale::kGiven}) {
      for (const bool columns : {false, true}) {
        const PaddedTensor y(Tensor(act, rows, cols), padding), expected(Tensor(act, rows, cols), padding);
        CastOut out[2];
        OutputCast casts[2];
        for (const int i : {0, 1}) {
          out[i].codes = Tensor(format.dtype, rows, cols);
          out[i].scale = Tensor(DType::kF32, 1, rule == Scale::kRow ? rows : 1);
          if (rule == Scale::kGiven) SetElement(out[i].scale, 0, 0, 0x1p-8);
          SetElement(out[i].amax, 0, 0, 0.5);
          casts[i] = {.x = {},
                      .column_scale = columns ? column.view() : TensorView{},
                      .format = format,
                      .rule = rule,
                      .codes = out[i].codes,
                      .scale = out[i].scale,
                      .amax = out[i].amax,
                      .counts = out[i].counts};
        }
        together(y, casts[0]);
        apart(expected);
        casts[1].x = expected;
        ops.Quantize(casts[1]);
        const std::string what = std::to_string(cols) + " columns, rule " + std::to_string(static_cast<int>(rule));
        EXPECT_TRUE(BitEqual(y.view(), expected.view())) << what;
        EXPECT_TRUE(y.Intact());
        EXPECT_TRUE(out[0] == out[1]) << what << (columns ? ", scaled " : " ") << DTypeName(format.dtype);
      }
    }
  }
}

// 24,832 columns are more than a block of the GPU's holds.
inline void ExpectNormAndSwiGluCast(Ops& ops) {
  for (const auto& [act, rows, cols, padding] : {std::tuple{DType::kBf16, 9, 149, 3},
                                                 {DType::kBf16, 9, 264, 8},
                                                 {DType::kF32, 5, 264, 8},
                                                 {DType::kBf16, 2, 24832, 8}}) {
    Tensor x = RandomTensor(DType::kF32, rows, cols, 1), gates = RandomTensor(act, rows, 2 * cols, 2);
    const Tensor weight = RandomTensor(DType::kF32, 1, cols, 3);
    for (int64_t c = 0; c < cols; ++c) {
      SetElement(x, 1, c, 0);
      SetElement(gates, 0, c, 1e-3 * GetElement(gates, 0, c));
      SetElement(gates, rows - 1, c, 1e3 * GetElement(gates, rows - 1, c));
    }
    if (rows > 4) SetElement(x, 3, 7, std::numeric_limits<double>::infinity());
    Tensor inv[2] = {Tensor(DType::kF32, 1, rows), Tensor(DType::kF32, 1, rows)};
    ExpectCastIsThatOfTheOutput(
        ops, act, rows, cols, padding,
        [&](const TensorView& y, const OutputCast& cast) {
          ops.RmsNorm({.x = x, .weight = weight, .y = y, .inv_rms = inv[0], .cast = cast});
        },
        [&](const TensorView& y) { ops.RmsNorm({.x = x, .weight = weight, .y = y, .inv_rms = inv[1]}); });
    EXPECT_TRUE(BitEqual(inv[0], inv[1]));
    ExpectCastIsThatOfTheOutput(
        ops, act, rows, cols, padding,
        [&](const TensorView& h, const OutputCast& cast) { ops.SwiGlu({.gate_up = gates, .h = h, .cast = cast}); },
        [&](const TensorView& h) { ops.SwiGlu({.gate_up = gates, .h = h}); });
  }
}

inline void ExpectRotaryWritesPages(Ops& ops) {
  constexpr int64_t kPositions = 150;
  for (const auto& [act, pages_dtype, heads, kv_heads, dim] : {std::tuple{DType::kBf16, DType::kBf16, 3, 1, 64},
                                                               {DType::kBf16, DType::kBf16, 4, 2, 128},
                                                               {DType::kF32, DType::kF32, 2, 2, 64},
                                                               {DType::kF32, DType::kBf16, 2, 1, 64},
                                                               {DType::kBf16, DType::kBf16, 2, 1, 24}}) {
    for (const bool norm : {false, true}) {
      const int64_t width = (heads + 2 * kv_heads) * dim;
      Tensor cos(DType::kF32, kPositions, dim / 2), sin(DType::kF32, kPositions, dim / 2);
      for (int64_t p = 0; p < kPositions; ++p) {
        for (int64_t j = 0; j < dim / 2; ++j) {
          SetElement(cos, p, j, std::cos(static_cast<double>(p * (j + 1))));
          SetElement(sin, p, j, std::sin(static_cast<double>(p * (j + 1))));
        }
      }
      const Tensor q_norm = RandomTensor(DType::kF32, 1, dim, 3), k_norm = RandomTensor(DType::kF32, 1, dim, 4);
      const KvLayout layout{.dtype = pages_dtype, .layers = 2, .kv_heads = kv_heads, .head_dim = dim};
      // A prompt, a step, a piece over the end of a page and of blocks, and one of whole blocks.
      const std::vector<int64_t> contexts = {0, 70, 60, 16}, counts = {37, 1, 20, 32};
      std::vector<int64_t> lengths;
      std::vector<int32_t> positions;
      for (size_t s = 0; s < counts.size(); ++s) {
        lengths.push_back(contexts[s] + counts[s]);
        for (int64_t i = 0; i < counts[s]; ++i) positions.push_back(static_cast<int32_t>(contexts[s] + i));
      }
      const auto rows = static_cast<int64_t>(positions.size());
      const PaddedTensor qkv(RandomTensor(act, rows, width, 2), 8);
      const TestPages pages[2] = {TestPages(layout, lengths), TestPages(layout, lengths)};
      Tensor out[2] = {Tensor(act, rows, width), Tensor(act, rows, width)};
      for (const int i : {0, 1}) {
        std::vector<SequenceRows> sequences;
        int64_t row = 0;
        for (size_t s = 0; s < counts.size(); row += counts[s++])
          sequences.push_back({.row = row, .count = counts[s], .context = contexts[s], .pages = pages[i].Table(s)});
        const KvWriteArgs write{.qkv = out[i], .sequences = sequences, .layout = layout, .layer = 1, .heads = heads};
        ops.Rotary({.qkv = qkv,
                    .out = out[i],
                    .positions = positions,
                    .cos = cos,
                    .sin = sin,
                    .q_norm = norm ? q_norm.view() : TensorView{},
                    .k_norm = norm ? k_norm.view() : TensorView{},
                    .heads = heads,
                    .kv_heads = kv_heads,
                    .head_dim = dim,
                    .pages = i == 0 ? &write : nullptr});
        if (i == 1) ops.KvWrite(write);
      }
      EXPECT_TRUE(BitEqual(out[0], out[1])) << dim << norm;
      for (size_t s = 0; s < lengths.size(); ++s) {
        for (int64_t p = 0; p * KvLayout::kPageTokens < lengths[s]; ++p) {
          const auto size = static_cast<size_t>(layout.page_bytes());
          EXPECT_EQ(std::memcmp(pages[0].Table(s)[p], pages[1].Table(s)[p], size), 0) << dim << norm << " page " << p;
        }
      }
    }
  }
}

}  // namespace quern
