#pragma once

#include <bit>
#include <cstdint>

#include "compute/cpu/cpu_features.h"
#include "compute/dtype.h"

// What the sources of one instruction set give to the product driver (gemm.cpp). Words are 32 bits: one fp32 value, or
// a pair of bf16 values that are neighbours in k, the first in the low half.

namespace quern::cpu {

// Bf16(float).bits without its branch, so that loops over it become vector code. Always inlined: a copy compiled for
// one instruction set must not serve another.
[[gnu::always_inline]] inline uint32_t RoundedBits(float x) {
  const auto word = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  return (word & 0x7fffffffu) > 0x7f800000u ? (word >> 16) | 0x40u : rounded;
}

// How the left operand lies in memory.
enum class ALayout : uint8_t {
  kRows,   // rows of words, a_row_bytes apart
  kTiles,  // [row tile][k word][row in tile]: what MatMulGradWeight builds
};

// c[rows, cols] = or += a[rows, k] * b[k, cols] for a range of neighbouring panels, and the epilogue.
struct BlockArgs {
  const uint8_t* a = nullptr;
  ALayout a_layout = ALayout::kRows;
  int64_t a_row_bytes = 0;  // kRows only
  int64_t rows = 0;
  const uint32_t* b = nullptr;      // first panel
  const uint16_t* codes = nullptr;  // instead, of FP8 matrices, and the scales of its columns (code_block)
  const float* scales = nullptr;
  uint32_t* decoded = nullptr;  // where code_block leaves the words of one panel as it multiplies them, or null
  int64_t panel_words = 0;      // words from one panel to the next
  // What several row tiles ask for while they use the last panel; null: the panel after it, as for the others.
  const void* next = nullptr;
  int64_t next_bytes = 0;
  int64_t k_words = 0;
  bool half_word =
      false;         // the last word of a row of a is one bf16 only; reading its other half could leave the buffer
  int64_t cols = 0;  // to compute, from the first column of the first panel
  uint8_t* c = nullptr;
  int64_t c_row_bytes = 0;
  bool c_bf16 = false;
  const float* bias = nullptr;  // of the first column, or null
  bool accumulate = false;
};

// Kernels for one packed dtype.
struct FormatKernels {
  int panel_cols = 0;
  int row_tile = 0;
  // True: bf16 panels are multiplied in fp32 and a is given as fp32, two words for each word of b: rows of 2 k_words
  // words, or tiles [row tile][k word][2][row in tile].
  bool widen_a = false;
  int k_word_multiple = 1;                // k_words of a and b are padded with zeros to this
  ALayout grad_layout = ALayout::kTiles;  // what MatMulGradWeight builds of dy
  void (*block)(const BlockArgs&) = nullptr;
  // FP8 weights: words of two E4M3 codes, the first in the low byte, that stand for code * scales[column], a power of
  // two. `decode` writes `words` lines of bf16 words; `decode_plain` and code_block (which may be null: of at most
  // row_tile rows, straight from the codes) do so where no code is NaN and every value is a normal bf16 number.
  void (*decode)(const uint16_t* codes, int64_t words, const float* scales, uint32_t* out) = nullptr;
  void (*decode_plain)(const uint16_t* codes, int64_t words, const float* scales, uint32_t* out) = nullptr;
  void (*code_block)(const BlockArgs&) = nullptr;
  // out[i] = low[i] | high[i] << 16: the words over two tokens. No high: zeros.
  void (*interleave)(const uint16_t* low, const uint16_t* high, int64_t count, uint32_t* out) = nullptr;
  // The same of fp32 values, rounded to bf16.
  void (*interleave_rounded)(const float* low, const float* high, int64_t count, uint32_t* out) = nullptr;
};

struct GemmKernels {
  Isa isa = Isa::kScalar;
  FormatKernels bf16;
  FormatKernels fp32;
  const FormatKernels& For(DType dtype) const { return dtype == DType::kBf16 ? bf16 : fp32; }
};

FormatKernels ScalarBf16Kernels();
FormatKernels ScalarFp32Kernels();
FormatKernels Avx2Bf16Kernels();
FormatKernels Avx2Fp32Kernels();
FormatKernels Avx512Bf16Kernels();  // plain AVX-512, widening
FormatKernels Avx512Fp32Kernels();
FormatKernels Avx512DotBf16Kernels();  // VDPBF16PS
FormatKernels AmxBf16Kernels();

}  // namespace quern::cpu
