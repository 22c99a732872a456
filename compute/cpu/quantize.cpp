#include <bit>
#include <type_traits>

#include "compute/cpu/kernels.h"
#include "compute/cpu/philox.h"
#include "compute/cpu/simd.h"
#include "compute/cpu/views.h"
#if defined(__AVX512BW__)
#include "compute/cpu/vector_avx512.h"
#endif

// Plain loops: the casts are whole-number arithmetic, and the compiler makes vector code of them. What every token of a
// model in FP8 goes through, bf16 to E4M3 and back by powers of two, also in sixteen bits where the CPU has them.

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

#if defined(__AVX512BW__)

// Whether `factor` is a power of two of at most 100.
inline bool IsShift(float factor) {
  const auto bits = std::bit_cast<uint32_t>(factor);
  return (bits & 0x807fffffu) == 0 && factor >= 0x1p-100f && factor <= 0x1p100f;
}

__m512i Words(int x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }

// As E4M3Codec::Nearest of x times 2^shift.
void CastWords(const uint16_t* x, int64_t count, int shift, uint32_t max_bits, uint8_t* codes) {
  const __m512i one = Words(1), rebias = Words((120 - shift) * 8), least = Words(121 - shift),
                largest = Words(static_cast<int>(max_bits >> 20) - 120 * 8), spacing = Words(125 - shift);
  for (int64_t i = 0; i < count; i += 32) {
    const __mmask32 lanes = count - i < 32 ? (1u << (count - i)) - 1 : ~0u;
    const __m512i word = _mm512_maskz_loadu_epi16(lanes, x + i);
    const __m512i magnitude = _mm512_and_si512(word, Words(0x7fff));
    const auto half_even = [&](__m512i to_last_bit, __m512i half_less_one) {
      return _mm512_add_epi16(_mm512_add_epi16(_mm512_and_si512(to_last_bit, one), half_less_one), magnitude);
    };
    const __m512i rounded = _mm512_srli_epi16(half_even(_mm512_srli_epi16(magnitude, 4), Words(7)), 4);
    const __m512i normal = _mm512_min_epi16(_mm512_sub_epi16(rounded, rebias), largest);
    // Subnormals: the mantissa with its leading bit, in their spacing.
    const __m512i exponent = _mm512_srli_epi16(magnitude, 7), by = _mm512_sub_epi16(spacing, exponent);
    const __m512i mantissa = _mm512_or_si512(_mm512_and_si512(magnitude, Words(0x7f)), Words(0x80));
    const __m512i half = _mm512_srli_epi16(_mm512_sllv_epi16(one, by), 1);
    const __m512i last = _mm512_and_si512(_mm512_srlv_epi16(mantissa, by), one);
    const __m512i up = _mm512_sub_epi16(_mm512_add_epi16(half, last), one);
    const __m512i subnormal = _mm512_srlv_epi16(_mm512_add_epi16(mantissa, up), by);
    __m512i code = _mm512_mask_mov_epi16(normal, _mm512_cmplt_epi16_mask(exponent, least), subnormal);
    code = _mm512_or_si512(code, _mm512_and_si512(_mm512_srli_epi16(word, 8), Words(0x80)));
    code = _mm512_mask_mov_epi16(code, _mm512_cmpgt_epi16_mask(magnitude, Words(0x7f80)), Words(0x7f));
    _mm256_mask_storeu_epi8(codes + i, lanes, _mm512_cvtepi16_epi8(code));
  }
}

// Codes times 2^n, a normal number of bf16; false where one is NaN, whose row is then to be decoded otherwise.
bool DecodeWords(const uint8_t* codes, int64_t count, float scale, uint16_t* y) {
  float scales[16];
  for (float& s : scales) s = scale;
  const Avx512Codes decoder(scales);
  __mmask32 nan = 0;
  for (int64_t i = 0; i < count; i += 32) {
    const __mmask32 lanes = count - i < 32 ? (1u << (count - i)) - 1 : ~0u;
    const __m256i bytes = _mm256_maskz_loadu_epi8(lanes, codes + i);
    nan |= _mm256_cmpeq_epi8_mask(_mm256_and_si256(bytes, _mm256_set1_epi8(0x7f)), _mm256_set1_epi8(0x7f));
    _mm512_mask_storeu_epi16(y + i, lanes, decoder.Decode(bytes));
  }
  return nan == 0;
}

#endif

template <typename Codec, typename T>
inline void CastRow(const QuantizeArgs& args, int64_t row, float factor) {
  const T* x = Row<T>(args.x, row);
  auto* codes = Row<uint8_t>(args.codes, row);
  const auto max_bits = std::bit_cast<uint32_t>(args.format.max);
  const int64_t count = args.x.cols;
#if defined(__AVX512BW__)
  if constexpr (std::is_same_v<Codec, E4M3Codec> && std::is_same_v<T, uint16_t>) {
    if (!args.stochastic && args.column_scale.data == nullptr && IsShift(factor)) {
      const int shift = static_cast<int>(std::bit_cast<uint32_t>(factor) >> 23) - 127;
      return CastWords(x, count, shift, max_bits, codes);
    }
  }
#endif
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
  if (x.dtype == DType::kBf16 && column_scale.data == nullptr) {
    const auto* from = Row<uint16_t>(x, row);
    uint16_t largest = 0;
    for (int64_t i = 0; i < x.cols; ++i) {
      const auto magnitude = static_cast<uint16_t>(from[i] & 0x7fff);
      largest = magnitude > largest ? magnitude : largest;
    }
    return uint32_t{largest} << 16;
  }
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
#if defined(__AVX512BW__)
      if constexpr (std::is_same_v<decltype(out), uint16_t>) {
        if (args.codes.dtype == DType::kE4M3 && args.column_scale.data == nullptr && IsShift(scale) &&
            DecodeWords(codes, args.codes.cols, scale, y))
          continue;
      }
#endif
      if (args.codes.dtype == DType::kE4M3) {
        DecodeRow<false>(codes, args.codes.cols, scale, ScaleOf(args.column_scale), y);
      } else {
        DecodeRow<true>(codes, args.codes.cols, scale, ScaleOf(args.column_scale), y);
      }
    }
  });
}

}  // namespace quern::cpu::QUERN_ISA
