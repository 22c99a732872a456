#include <bit>

#include "compute/cpu/kernels.h"
#include "compute/cpu/philox.h"
#include "compute/cpu/simd.h"
#include "compute/cpu/views.h"

// Plain loops: the casts are whole-number arithmetic, and the compiler makes vector code of them.

namespace quern::cpu::QUERN_ISA {

namespace {

inline float Widen(float x) { return x; }
inline float Widen(uint16_t x) { return std::bit_cast<float>(uint32_t{x} << 16); }

// f(in) with the row's element i times its column's scale.
template <typename T, typename F>
inline void ForScaled(const T* x, const float* column_scale, int64_t count, F f) {
  if (column_scale == nullptr) {
    for (int64_t i = 0; i < count; ++i) f(i, Widen(x[i]));
  } else {
    for (int64_t i = 0; i < count; ++i) f(i, Widen(x[i]) * column_scale[i]);
  }
}

inline const float* ScaleOf(const TensorView& column_scale) { return static_cast<const float*>(column_scale.data); }

template <typename Codec, typename T>
inline void CastRow(const QuantizeArgs& args, int64_t row, float factor) {
  const T* x = Row<T>(args.x, row);
  auto* codes = Row<uint8_t>(args.codes, row);
  const auto max_bits = std::bit_cast<uint32_t>(args.format.max);
  const int64_t count = args.x.cols;
  if (!args.stochastic) {
    ForScaled(x, ScaleOf(args.column_scale), count,
              [&](int64_t i, float v) { codes[i] = static_cast<uint8_t>(Codec::Nearest(v * factor, max_bits)); });
    return;
  }
  // Word k of the counter {column / 4, row} is for column 4 j + k.
  const float* scale = ScaleOf(args.column_scale);
  PhiloxWords words;
  for (int64_t begin = 0; begin < count; begin += 4 * kPhiloxLanes) {
    Philox(static_cast<uint64_t>(row) << 32 | static_cast<uint64_t>(begin / 4), 1, args.seed, words);
    const int64_t here = count - begin < 4 * kPhiloxLanes ? count - begin : 4 * kPhiloxLanes;
    for (int64_t i = 0; i < here; ++i) {
      const float v = Widen(x[begin + i]) * (scale == nullptr ? 1.0f : scale[begin + i]) * factor;
      codes[begin + i] = static_cast<uint8_t>(Codec::Stochastic(v, max_bits, words.word[i % 4][i / 4]));
    }
  }
}

template <typename T>
inline void CountRow(const QuantizeArgs& args, int64_t row, float factor, int32_t* counts) {
  const auto* codes = Row<uint8_t>(args.codes, row);
  const float max = args.format.max;
  int32_t saturated = 0, flushed = 0;
  ForScaled(Row<T>(args.x, row), ScaleOf(args.column_scale), args.x.cols, [&](int64_t i, float v) {
    const float magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(v * factor) & 0x7fffffffu);
    saturated += magnitude > max ? 1 : 0;
    flushed += magnitude > 0 && (codes[i] & 0x7f) == 0 ? 1 : 0;
  });
  counts[0] += saturated;
  counts[1] += flushed;
}

}  // namespace

uint32_t RowAmax(const TensorView& x, const TensorView& column_scale, int64_t row) {
  uint32_t most = 0;
  WithType(x, [&](auto in) {
    ForScaled(Row<decltype(in)>(x, row), ScaleOf(column_scale), x.cols, [&](int64_t, float v) {
      const uint32_t bits = std::bit_cast<uint32_t>(v) & 0x7fffffffu;
      most = bits > most ? bits : most;
    });
  });
  return most;
}

void ColumnAmax(const ColumnAmaxArgs& args, int64_t begin, int64_t end) {
  auto* amax = static_cast<float*>(args.amax.data);
  WithType(args.x, [&](auto in) {
    for (int64_t row = 0; row < args.x.rows; ++row) {
      const auto* x = Row<decltype(in)>(args.x, row);
      for (int64_t i = begin; i < end; ++i) {
        const uint32_t bits = std::bit_cast<uint32_t>(Widen(x[i])) & 0x7fffffffu;
        const auto old = std::bit_cast<uint32_t>(amax[i]);
        amax[i] = std::bit_cast<float>(bits > old ? bits : old);
      }
    }
  });
}

void QuantizeRow(const QuantizeArgs& args, int64_t row, float factor, int32_t* counts) {
  WithType(args.x, [&](auto in) {
    if (args.format.dtype == DType::kE4M3) {
      CastRow<E4M3Codec, decltype(in)>(args, row, factor);
    } else {
      CastRow<E5M2Codec, decltype(in)>(args, row, factor);
    }
    if (counts != nullptr) CountRow<decltype(in)>(args, row, factor, counts);
  });
}

namespace {

// A code's value, without a table so that loops over it become vector code.
template <bool kE5M2>
inline float Decoded(uint32_t code) {
  constexpr int kMantissa = kE5M2 ? 2 : 3, kBias = kE5M2 ? 15 : 7;
  const uint32_t magnitude = code & 0x7f;
  const auto least = std::bit_cast<float>(uint32_t{127 + 1 - kBias - kMantissa} << 23);  // of the subnormals
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * least;
  const uint32_t normal = (magnitude << (23 - kMantissa)) + (uint32_t{127 - kBias} << 23);
  // Masks: where one side is a conversion the compiler branches.
  const auto pick = [](bool first, uint32_t a, uint32_t b) { return b ^ ((a ^ b) & (0u - uint32_t{first})); };
  uint32_t bits = pick(magnitude < (1u << kMantissa), std::bit_cast<uint32_t>(subnormal), normal);
  if constexpr (kE5M2) {
    bits = pick(magnitude == 0x7c, 0x7f800000u, bits);
    bits = pick(magnitude > 0x7c, 0x7fc00000u, bits);
  } else {
    bits = pick(magnitude == 0x7f, 0x7fc00000u, bits);
  }
  return std::bit_cast<float>(bits | (code & 0x80) << 24);
}

template <bool kE5M2, typename Out>
inline void DecodeRow(const uint8_t* __restrict codes, int64_t count, float scale, const float* column_scale,
                      Out* __restrict y) {
  const auto put = [&](int64_t i, float v) {
    if constexpr (sizeof(Out) == 4) {
      y[i] = v;
    } else {
      y[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16);  // nothing is cut off
    }
  };
  if (column_scale == nullptr) {
    for (int64_t i = 0; i < count; ++i) put(i, Decoded<kE5M2>(codes[i]) * scale);
  } else {  // powers of two divide exactly
    for (int64_t i = 0; i < count; ++i) put(i, Decoded<kE5M2>(codes[i]) * scale / column_scale[i]);
  }
}

}  // namespace

void Dequantize(const DequantizeArgs& args, int64_t begin, int64_t end) {
  WithType(args.y, [&](auto out) {
    for (int64_t row = begin; row < end; ++row) {
      const auto* codes = Row<uint8_t>(args.codes, row);
      auto* y = Row<decltype(out)>(args.y, row);
      const float scale = At(args.scale, args.scale.cols == 1 ? 0 : row);
      if (args.codes.dtype == DType::kE4M3) {
        DecodeRow<false>(codes, args.codes.cols, scale, ScaleOf(args.column_scale), y);
      } else {
        DecodeRow<true>(codes, args.codes.cols, scale, ScaleOf(args.column_scale), y);
      }
    }
  });
}

}  // namespace quern::cpu::QUERN_ISA
