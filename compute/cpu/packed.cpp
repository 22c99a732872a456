#include "compute/cpu/packed.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "compute/cpu/gemm.h"
#include "compute/cpu/gemm_kernels.h"

namespace quern::cpu {

namespace {

constexpr int64_t kRun = 16;  // words handled at a time
constexpr int64_t kChunkWords = 16 << 10;

int64_t RoundUp(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

float ToFloat(float x) { return x; }
float ToFloat(Bf16 x) { return static_cast<float>(x); }
struct Half {
  uint16_t bits;
};
float ToFloat(Half x) { return HalfToFloat(x.bits); }

// bits of a packed value
template <typename To, typename From>
uint32_t Bits(From x) {
  if constexpr (sizeof(To) == 4) {
    return std::bit_cast<uint32_t>(ToFloat(x));
  } else if constexpr (std::is_same_v<From, Bf16>) {
    return x.bits;
  } else {
    return RoundedBits(ToFloat(x));
  }
}

// words[i] of `count` values of one row along k: pairs for bf16 (the last may be half), single values for fp32.
template <typename To, typename From>
void RowWords(const From* __restrict row, int64_t values, int64_t words, uint32_t* __restrict out) {
  if constexpr (sizeof(To) == 4) {
    for (int64_t i = 0; i < words; ++i) out[i] = i < values ? Bits<To>(row[i]) : 0;
  } else {
    const int64_t whole = values / 2;
    for (int64_t i = 0; i < whole; ++i) out[i] = Bits<To>(row[2 * i]) | Bits<To>(row[2 * i + 1]) << 16;
    for (int64_t i = whole; i < words; ++i) out[i] = 2 * i < values ? Bits<To>(row[2 * i]) : 0;
  }
}

// One panel, words [begin, end) of k, from a weight stored [n, k].
template <typename To, typename From>
void PackOutputsFirst(const TensorView& w, CpuPackedMatrix& out, int64_t panel, int64_t begin, int64_t end) {
  const int64_t width = out.panel_cols();
  const int64_t per_word = sizeof(To) == 4 ? 1 : 2;
  const int64_t first = panel * width;
  const int64_t cols = std::min(width, out.n() - first);
  uint32_t* to = out.Panel(panel);
  for (int64_t k = begin; k < end; k += kRun) {
    const int64_t words = std::min(kRun, end - k);
    for (int64_t c0 = 0; c0 < width; c0 += kRun) {
      const int64_t group = std::min(kRun, width - c0);
      uint32_t square[kRun][kRun];
      for (int64_t c = 0; c < group; ++c) {
        const int64_t left = c0 + c < cols ? std::clamp<int64_t>(out.k() - k * per_word, 0, words * per_word) : 0;
        if (left == kRun * per_word) {
          RowWords<To>(w.Row<From>(first + c0 + c) + k * per_word, kRun * per_word, kRun, square[c]);
        } else if (left > 0) {
          RowWords<To>(w.Row<From>(first + c0 + c) + k * per_word, left, words, square[c]);
        } else {
          std::memset(square[c], 0, sizeof(square[c]));
        }
      }
      for (int64_t i = 0; i < words; ++i) {
        uint32_t* line = to + (k + i) * width + c0;
        for (int64_t c = 0; c < group; ++c) line[c] = square[c][i];
      }
    }
  }
}

// The same from a weight stored [k, n]: rows are interleaved.
template <typename To, typename From>
void PackInputsFirst(const TensorView& w, CpuPackedMatrix& out, int64_t panel, int64_t begin, int64_t end) {
  const int64_t width = out.panel_cols();
  const int64_t first = panel * width;
  const int64_t cols = std::min(width, out.n() - first);
  [[maybe_unused]] const FormatKernels& format = out.kernels().For(out.value_dtype());
  for (int64_t k = begin; k < end; ++k) {
    uint32_t* __restrict line = out.Panel(panel) + k * width;
    int64_t done = 0;
    if constexpr (sizeof(To) == 4) {
      if (k < out.k()) {
        const From* __restrict row = w.Row<From>(k) + first;
        for (int64_t c = 0; c < cols; ++c) line[c] = Bits<To>(row[c]);
        done = cols;
      }
    } else if (2 * k + 1 < out.k()) {
      const From* __restrict low = w.Row<From>(2 * k) + first;
      const From* __restrict high = w.Row<From>(2 * k + 1) + first;
      if constexpr (std::is_same_v<From, float>) {
        format.interleave_rounded(low, high, cols, line);
      } else {
        for (int64_t c = 0; c < cols; ++c) line[c] = Bits<To>(low[c]) | Bits<To>(high[c]) << 16;
      }
      done = cols;
    } else if (2 * k < out.k()) {
      const From* __restrict low = w.Row<From>(2 * k) + first;
      for (int64_t c = 0; c < cols; ++c) line[c] = Bits<To>(low[c]);
      done = cols;
    }
    std::fill(line + done, line + width, 0u);
  }
}

template <typename To, typename From>
void PackAll(const PackArgs& args, CpuPackedMatrix& out, ThreadPool& pool) {
  const int64_t slice = std::max(kRun, RoundUp(kChunkWords / out.panel_cols(), kRun));
  const int64_t slices = (out.k_words() + slice - 1) / slice;
  pool.ParallelFor(out.panels() * slices, [&](int64_t i) {
    // In the order in which the weight lies in memory.
    const int64_t begin = (args.transposed ? i / out.panels() : i % slices) * slice;
    const int64_t end = std::min(begin + slice, out.k_words());
    if (args.transposed) {
      PackInputsFirst<To, From>(args.weight, out, i % out.panels(), begin, end);
    } else {
      PackOutputsFirst<To, From>(args.weight, out, i / slices, begin, end);
    }
  });
}

template <typename To>
void PackFrom(const PackArgs& args, CpuPackedMatrix& out, ThreadPool& pool) {
  switch (args.weight.dtype) {
    case DType::kF32: return PackAll<To, float>(args, out, pool);
    case DType::kBf16: return PackAll<To, Bf16>(args, out, pool);
    case DType::kF16: return PackAll<To, Half>(args, out, pool);
    default:
      QUERN_CHECK(false, std::string("a weight to pack is fp32, bf16 or fp16, not ") + DTypeName(args.weight.dtype));
  }
}

}  // namespace

CpuPackedMatrix::CpuPackedMatrix(const GemmKernels& kernels, DType dtype, int64_t k, int64_t n)
    : PackedMatrix(dtype, k, n), kernels_(&kernels) {
  QUERN_CHECK(dtype == DType::kF32 || dtype == DType::kBf16 || IsFp8(dtype), DTypeName(dtype));
  QUERN_CHECK(k >= 0 && n >= 0);
  const FormatKernels& format = kernels.For(value_dtype());
  panel_cols_ = format.panel_cols;
  panels_ = (n + panel_cols_ - 1) / panel_cols_;
  k_words_ = RoundUp(value_dtype() == DType::kBf16 ? (k + 1) / 2 : k, format.k_word_multiple);
  // A panel is a whole number of cache lines.
  if (has_codes()) {
    storage_ = Tensor(DType::kBf16, panels_, RoundUp(k_words_ * panel_cols_, 32));
    scales_ = Tensor(DType::kF32, 1, panels_ * panel_cols_);
    std::fill_n(scales(), panels_ * panel_cols_, 1.0f);
    plain_ = true;
    return;
  }
  storage_ = Tensor(DType::kI32, panels_, RoundUp(k_words_ * panel_cols_, 16));
}

void PackCodes(const TensorView& codes, const float* scales, bool transposed, CpuPackedMatrix& out, ThreadPool& pool) {
  QUERN_CHECK(out.has_codes() && codes.dtype == out.dtype());
  QUERN_CHECK(codes.rows == (transposed ? out.k() : out.n()) && codes.cols == (transposed ? out.n() : out.k()));
  const int64_t width = out.panel_cols();
  std::copy_n(scales, out.n(), out.scales());
  std::atomic<bool> plain = true;
  // Values of codes lie between 2^-9 and 2^9.
  for (int64_t i = 0; i < out.n(); ++i)
    if (!(scales[i] >= 0x1p-110f && scales[i] <= 0x1p115f)) plain = false;
  pool.ParallelFor(out.panels(), [&](int64_t panel) {
    const int64_t first = panel * width;
    const int64_t cols = std::min(width, out.n() - first);
    uint16_t* to = out.Codes(panel);
    uint8_t most = 0;
    const auto line = [&](int64_t k, int64_t c) -> uint8_t {
      if (c >= cols || k >= out.k()) return 0;
      const uint8_t code = transposed ? codes.Row<uint8_t>(k)[first + c] : codes.Row<uint8_t>(first + c)[k];
      most = std::max<uint8_t>(most, code & 0x7f);
      return code;
    };
    // Squares of codes, so that neither side is walked a cache line an element.
    for (int64_t k = 0; k < out.k_words(); k += kRun) {
      for (int64_t c0 = 0; c0 < width; c0 += kRun) {
        for (int64_t c = c0; c < std::min(width, c0 + kRun); ++c) {
          for (int64_t i = k; i < std::min(out.k_words(), k + kRun); ++i)
            to[i * width + c] = static_cast<uint16_t>(line(2 * i, c) | line(2 * i + 1, c) << 8);
        }
      }
    }
    if (most == 0x7f) plain = false;
  });
  out.set_plain(plain);
}

std::unique_ptr<PackedMatrix> NewPacked(DType dtype, int64_t k, int64_t n, const GemmKernels& kernels) {
  return std::make_unique<CpuPackedMatrix>(kernels, dtype, k, n);
}

void Pack(const PackArgs& args, ThreadPool& pool) {
  QUERN_CHECK(args.out != nullptr);
  auto& out = static_cast<CpuPackedMatrix&>(*args.out);
  QUERN_CHECK(args.weight.rows == (args.transposed ? out.k() : out.n()) &&
              args.weight.cols == (args.transposed ? out.n() : out.k()));
  if (out.value_dtype() == DType::kBf16) {
    PackFrom<Bf16>(args, out, pool);
  } else {
    PackFrom<float>(args, out, pool);
  }
}

}  // namespace quern::cpu
