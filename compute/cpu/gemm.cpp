#include "compute/cpu/gemm.h"

#include <algorithm>
#include <cstring>

#include "compute/cpu/gemm_kernels.h"
#include "compute/cpu/packed.h"

namespace quern::cpu {

namespace {

// Tokens whose gradient is one chain; the boundaries decide the rounding of dw, so they never depend on the batch.
constexpr int64_t kTokenBlock = 1024;

// Words of k that are one chain where c is fp32 and k is longer than kLongWords (the gradient of the head's input: k is
// the vocabulary), so that a piece of a panel stays in L2. Decides the rounding, so it never depends on the batch.
constexpr int64_t kLongWords = 4096;
constexpr int64_t kChainWords = 1024;

constexpr int64_t kWordsAhead = 16;  // of the rows that are turned into columns

int64_t RoundUp(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
int64_t DivUp(int64_t x, int64_t by) { return (x + by - 1) / by; }

const uint8_t* Bytes(const TensorView& x, int64_t row, int64_t col) {
  return static_cast<const uint8_t*>(x.data) + (row * x.stride + col) * DTypeSize(x.dtype);
}
uint8_t* MutableBytes(const TensorView& x, int64_t row, int64_t col) {
  return static_cast<uint8_t*>(x.data) + (row * x.stride + col) * DTypeSize(x.dtype);
}

// How a product is cut into chunks. Has no influence on the result.
struct Plan {
  int64_t row_block = 1;
  int64_t panel_group = 1;
};

// Chunks of some microseconds to some tens of them: long against the 0.1 us of taking one, short against a time slice.
Plan MakePlan(int64_t rows, int64_t panels, int64_t panel_bytes, int64_t a_row_bytes, const FormatKernels& format,
              int threads) {
  constexpr double kNsPerByte = 1.0 / 40, kNsPerByteRow = 1.0 / 500;  // streaming a panel; multiplying it, one core
  constexpr int64_t kCacheBytes = 320 << 10;                          // of a, to stay in a core's L2 beside a panel
  const double ns_per_panel_row = kNsPerByteRow * static_cast<double>(panel_bytes);
  Plan plan;
  const int64_t tile = format.row_tile;
  plan.row_block = rows;
  if (rows > 4 * tile) {
    plan.row_block = std::clamp(kCacheBytes / std::max<int64_t>(a_row_bytes, 1) / tile * tile, 4 * tile, int64_t{256});
    plan.row_block = RoundUp(DivUp(rows, DivUp(rows, plan.row_block)), tile);  // even blocks
  }
  const auto cost = [&](int64_t n) {
    return std::max(kNsPerByte * static_cast<double>(panel_bytes), ns_per_panel_row * static_cast<double>(n));
  };
  const double total = cost(plan.row_block) * static_cast<double>(panels * DivUp(rows, plan.row_block));
  const double target = std::clamp(total / (8 * threads), 4e3, 1e5);
  plan.panel_group = std::clamp(static_cast<int64_t>(target / cost(plan.row_block)), int64_t{1}, panels);
  if (rows * 4 <= tile) plan.panel_group = RoundUp(plan.panel_group, 4);
  plan.panel_group = DivUp(panels, DivUp(panels, plan.panel_group));
  return plan;
}

// Rows of bf16 as rows of fp32, zero beyond `cols`.
void WidenRows(const TensorView& from, const TensorView& to, ThreadPool& pool) {
  constexpr int64_t kRows = 16;
  pool.ParallelFor(DivUp(from.rows, kRows), [&](int64_t chunk) {
    for (int64_t r = chunk * kRows; r < std::min(from.rows, (chunk + 1) * kRows); ++r) {
      const uint16_t* __restrict x = from.Row<uint16_t>(r);
      uint32_t* __restrict y = to.Row<uint32_t>(r);
      for (int64_t i = 0; i < from.cols; ++i) y[i] = uint32_t{x[i]} << 16;
      std::fill(y + from.cols, y + to.cols, 0u);
    }
  });
}

// A buffer of each thread that lives as long as the thread: chunks need room and may not touch the caller's arena.
uint32_t* ThreadBuffer(int64_t words) {
  thread_local Tensor buffer;
  if (buffer.cols() < words) buffer = Tensor(DType::kI32, 1, words);
  return buffer.Row<uint32_t>(0);
}

// The words over tokens 2t, 2t + 1 (bf16) or t (fp32) of columns [col, col + cols): a line of `width` words,
// zero-padded. With `widen`, two lines of fp32 words.
struct TokenWords {
  const FormatKernels& format;
  const TensorView& x;
  bool widen;

  // Asks for a word's lines ahead of time: they are as far apart as x's rows, which no hardware prefetcher follows.
  void Prefetch(int64_t word, int64_t col, int64_t cols) const {
    const int64_t per_word = x.dtype == DType::kBf16 ? 2 : 1;
    const int64_t bytes = cols * DTypeSize(x.dtype);
    for (int64_t row = word * per_word; row < std::min((word + 1) * per_word, x.rows); ++row) {
      const uint8_t* from = Bytes(x, row, col);
      for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(from + byte);
    }
  }

  void Line(int64_t word, int64_t col, int64_t cols, int64_t width, uint32_t* __restrict out) const {
    if (x.dtype == DType::kF32) {
      std::copy_n(x.Row<uint32_t>(word) + col, cols, out);
      std::fill(out + cols, out + width, 0u);
      return;
    }
    const uint16_t* low = x.Row<uint16_t>(2 * word) + col;
    // An odd last token pairs with zeros.
    const uint16_t* high = 2 * word + 1 < x.rows ? x.Row<uint16_t>(2 * word + 1) + col : nullptr;
    if (widen) {
      for (int64_t c = 0; c < cols; ++c) out[c] = uint32_t{low[c]} << 16;
      std::fill(out + cols, out + width, 0u);
      for (int64_t c = 0; c < cols; ++c) out[width + c] = high == nullptr ? 0 : uint32_t{high[c]} << 16;
      std::fill(out + width + cols, out + 2 * width, 0u);
      return;
    }
    format.interleave(low, high, cols, out);
    std::fill(out + cols, out + width, 0u);
  }
};

// Tiles of a line, each to its place; the known size saves a call for each.
template <int kTile>
void CopyTiles(const uint32_t* line, int64_t tiles, uint32_t* to, int64_t step) {
  for (int64_t i = 0; i < tiles; ++i) std::memcpy(to + i * step, line + i * kTile, kTile * sizeof(uint32_t));
}

GemmKernels MakeKernels(Isa isa) {
  GemmKernels kernels;
  kernels.isa = isa;
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kScalar: break;
    case Isa::kAvx2:
      kernels.bf16 = Avx2Bf16Kernels();
      kernels.fp32 = Avx2Fp32Kernels();
      return kernels;
    case Isa::kAvx512:
      kernels.bf16 = Avx512Bf16Kernels();
      kernels.fp32 = Avx512Fp32Kernels();
      return kernels;
    case Isa::kAvx512Bf16:
      kernels.bf16 = Avx512DotBf16Kernels();
      kernels.fp32 = Avx512Fp32Kernels();
      return kernels;
    case Isa::kAmx:
      kernels.bf16 = AmxBf16Kernels();
      kernels.fp32 = Avx512Fp32Kernels();
      return kernels;
  }
#endif
  kernels.bf16 = ScalarBf16Kernels();
  kernels.fp32 = ScalarFp32Kernels();
  return kernels;
}

}  // namespace

const GemmKernels& KernelsFor(Isa isa) {
  QUERN_CHECK(IsaAvailable(isa), IsaName(isa));
  static const GemmKernels kernels[] = {MakeKernels(Isa::kScalar), MakeKernels(Isa::kAvx2), MakeKernels(Isa::kAvx512),
                                        MakeKernels(Isa::kAvx512Bf16), MakeKernels(Isa::kAmx)};
  return kernels[static_cast<int>(isa)];
}

Product::Product(const MatMulArgs& args, ThreadPool& pool, Arena& scratch)
    : args_(args),
      a_(args.a),
      b_(static_cast<const CpuPackedMatrix&>(*args.b)),
      format_(b_.kernels().For(b_.value_dtype())),
      panel_cols_(b_.panel_cols()),
      panels_(b_.panels()) {
  QUERN_CHECK(args.a.cols == b_.k());
  QUERN_CHECK(args.a.dtype == b_.value_dtype(),
              std::string(DTypeName(args.a.dtype)) + " times " + DTypeName(b_.dtype()));
  QUERN_CHECK(args.c.dtype == DType::kF32 || (args.c.dtype == DType::kBf16 && !args.accumulate));
  QUERN_CHECK(args.bias.empty() || (args.bias.dtype == DType::kF32 && args.bias.cols == b_.n()));
  const int64_t rows = a_.rows;
  const bool pairs = b_.value_dtype() == DType::kBf16;
  if (format_.widen_a) {
    a_ = scratch.New(DType::kF32, rows, 2 * b_.k_words());
    WidenRows(args.a, a_, pool);
  } else if (const int64_t padded = b_.k_words() * (pairs ? 2 : 1); format_.k_word_multiple > 1 && padded != b_.k()) {
    a_ = scratch.New(b_.value_dtype(), rows, padded);
    const int64_t size = DTypeSize(b_.value_dtype());
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(MutableBytes(a_, r, 0), Bytes(args.a, r, 0), static_cast<size_t>(b_.k() * size));
      std::memset(MutableBytes(a_, r, b_.k()), 0, static_cast<size_t>((padded - b_.k()) * size));
    }
  }
  half_word_ = pairs && a_.dtype == DType::kBf16 && a_.cols % 2 == 1;
  a_word_bytes_ = format_.widen_a ? 8 : 4;
  chain_ = args.c.dtype == DType::kF32 && b_.k_words() > kLongWords ? kChainWords : b_.k_words();
  // Few rows multiply codes as they are read.
  decodes_ = b_.has_codes() && !(format_.code_block != nullptr && b_.plain() && rows <= format_.row_tile);
}

void Product::Panels(int64_t row, int64_t rows, int64_t panel, int64_t end, int64_t after, const TensorView& c) const {
  BlockArgs part;
  part.rows = rows;
  part.a_row_bytes = a_.stride * DTypeSize(a_.dtype);
  part.panel_words = panels_ <= 1 ? 0 : b_.has_codes() ? b_.Codes(1) - b_.Codes(0) : b_.Panel(1) - b_.Panel(0);
  part.c_row_bytes = c.stride * DTypeSize(c.dtype);
  part.c_bf16 = c.dtype == DType::kBf16;
  after = std::min(after, panels_ - 1);
  const auto multiply = [&](int64_t at, int64_t stop) {
    part.cols = std::min(stop * panel_cols_, b_.n()) - at * panel_cols_;
    part.c = MutableBytes(c, 0, (at - panel) * panel_cols_);
    for (int64_t word = 0; word < b_.k_words(); word += chain_) {
      part.a = Bytes(a_, row, 0) + word * a_word_bytes_;
      part.k_words = std::min(chain_, b_.k_words() - word);
      part.half_word = half_word_ && word + part.k_words == b_.k_words();
      part.accumulate = args_.accumulate || word > 0;
      part.bias = word > 0 || args_.bias.empty() ? nullptr : args_.bias.Row<float>(0) + at * panel_cols_;
      if (!b_.has_codes()) {
        part.b = b_.Panel(at) + word * panel_cols_;
        part.next = b_.Panel(after) + word * panel_cols_;
        part.next_bytes = part.k_words * panel_cols_ * 4;
        format_.block(part);
        continue;
      }
      part.codes = b_.Codes(at) + word * panel_cols_;
      part.scales = b_.scales() + at * panel_cols_;
      if (!decodes_) {
        format_.code_block(part);
        continue;
      }
      BlockArgs rest = part;
      rest.b = ThreadBuffer(part.k_words * panel_cols_);
      rest.next = b_.Codes(at + 1 < end ? at + 1 : after);
      rest.next_bytes = b_.k_words() * panel_cols_ * 2;
      if (format_.code_block != nullptr && b_.plain()) {  // the first rows leave the words to the others
        BlockArgs first = part;
        first.rows = rows / DivUp(rows, format_.row_tile);
        first.decoded = ThreadBuffer(part.k_words * panel_cols_);
        format_.code_block(first);
        rest.rows -= first.rows;
        rest.a += first.rows * rest.a_row_bytes;
        rest.c += first.rows * rest.c_row_bytes;
      } else {
        const auto decode = b_.plain() ? format_.decode_plain : format_.decode;
        decode(part.codes, part.k_words, part.scales, ThreadBuffer(part.k_words * panel_cols_));
      }
      format_.block(rest);
    }
  };
  if (!decodes_) return multiply(panel, end);
  for (int64_t at = panel; at < end; ++at) multiply(at, at + 1);  // a decoded panel at a time
}

void MatMul(const MatMulArgs& args, ThreadPool& pool, Arena& scratch) {
  QUERN_CHECK(args.b != nullptr);
  const auto& b = static_cast<const CpuPackedMatrix&>(*args.b);
  const int64_t rows = args.a.rows;
  QUERN_CHECK(args.a.cols == b.k() && args.c.cols == b.n() && args.c.rows == rows);
  if (rows == 0 || b.n() == 0) return;
  const Arena::Scope scope(scratch);
  const Product product(args, pool, scratch);
  const Plan plan = MakePlan(rows, b.panels(), b.k_words() * b.panel_cols() * 4, product.chain_bytes(),
                             b.kernels().For(b.value_dtype()), pool.threads());
  const int64_t row_blocks = DivUp(rows, plan.row_block);
  const int64_t groups = DivUp(b.panels(), plan.panel_group);
  pool.ParallelFor(row_blocks * groups, [&](int64_t chunk) {
    // Row blocks follow each other on the same panels.
    const int64_t row = chunk % row_blocks * plan.row_block;
    const int64_t panel = chunk / row_blocks * plan.panel_group;
    const int64_t end = std::min(panel + plan.panel_group, b.panels());
    const int64_t count = std::min(plan.row_block, rows - row);
    // The panel that this thread will probably need first when it is done with these: the others take those between.
    const int64_t later = (chunk + pool.threads()) / row_blocks * plan.panel_group;
    const int64_t col = panel * b.panel_cols();
    product.Panels(row, count, panel, end, later > panel ? later : end,
                   args.c.Rows(row, count).Cols(col, std::min(end * b.panel_cols(), b.n()) - col));
  });
}

void MatMulGradWeight(const MatMulGradWeightArgs& args, ThreadPool& pool, Arena& scratch, const GemmKernels& kernels) {
  const int64_t tokens = args.x.rows;
  const int64_t n = args.dy.cols;
  const int64_t k = args.x.cols;
  QUERN_CHECK(args.dy.rows == tokens && args.dw.rows == n && args.dw.cols == k && args.dw.dtype == DType::kF32);
  QUERN_CHECK(args.dy.dtype == args.x.dtype && (args.x.dtype == DType::kF32 || args.x.dtype == DType::kBf16));
  if (tokens == 0 || n == 0 || k == 0) return;

  const FormatKernels& format = kernels.For(args.x.dtype);
  const int64_t per_word = args.x.dtype == DType::kBf16 ? 2 : 1;
  const int64_t width = format.panel_cols;
  const int64_t panels = DivUp(k, width);
  const int64_t most_words = RoundUp(DivUp(std::min(tokens, kTokenBlock), per_word), format.k_word_multiple);
  const int64_t panel_words = RoundUp(most_words * width, 16);
  const Arena::Scope scope(scratch);
  const TensorView packed = scratch.New(DType::kI32, panels, panel_words);

  // Rows of dw a chunk computes: enough to use a panel of x several times, few enough for both cores to finish
  // together.
  const int64_t tile = format.row_tile;
  const int64_t row_block = std::clamp(n / (8 * pool.threads()) / tile * tile,
                                       std::min<int64_t>(4, DivUp(32, tile)) * tile, RoundUp(64, tile));

  for (int64_t begin = 0; begin < tokens; begin += kTokenBlock) {
    const TensorView x = args.x.Rows(begin, std::min(kTokenBlock, tokens - begin));
    const TensorView dy = args.dy.Rows(begin, x.rows);
    const int64_t words = DivUp(x.rows, per_word);
    const int64_t padded_words = RoundUp(words, format.k_word_multiple);
    pool.ParallelFor(panels, [&](int64_t panel) {
      const TokenWords source{format, x, false};
      const int64_t col = panel * width;
      uint32_t* out = packed.Row<uint32_t>(panel);
      for (int64_t t = 0; t < words; ++t) {
        source.Prefetch(t + kWordsAhead, col, std::min(width, k - col));
        source.Line(t, col, std::min(width, k - col), width, out + t * width);
      }
      std::fill(out + words * width, out + padded_words * width, 0u);
    });
    pool.ParallelFor(DivUp(n, row_block), [&](int64_t chunk) {
      const int64_t row = chunk * row_block;
      const int64_t rows = std::min(row_block, n - row);
      const int64_t halves = format.widen_a ? 2 : 1;
      const int64_t tiles = DivUp(rows, tile);
      const TokenWords source{format, dy, format.widen_a};
      const int64_t block_words = tiles * tile * padded_words * halves;
      uint32_t* a = ThreadBuffer(block_words + tiles * tile * halves);
      uint32_t* line = a + block_words;
      for (int64_t t = 0; t < padded_words; ++t) {
        if (t < words) {
          source.Prefetch(t + kWordsAhead, row, rows);
          source.Line(t, row, rows, tiles * tile, line);
        } else {
          std::fill(line, line + tiles * tile * halves, 0u);
        }
        if (format.grad_layout == ALayout::kRows) {
          for (int64_t r = 0; r < rows; ++r) a[r * padded_words + t] = line[r];
          continue;
        }
        for (int64_t half = 0; half < halves; ++half) {
          uint32_t* to = a + (t * halves + half) * tile;
          const int64_t step = padded_words * halves * tile;
          if (tile == 8) {
            CopyTiles<8>(line + half * tiles * 8, tiles, to, step);
          } else {
            for (int64_t i = 0; i < tiles; ++i) std::copy_n(line + (half * tiles + i) * tile, tile, to + i * step);
          }
        }
      }
      BlockArgs block;
      block.a = reinterpret_cast<const uint8_t*>(a);
      block.a_layout = format.grad_layout;
      block.a_row_bytes = padded_words * 4;
      block.rows = rows;
      block.b = packed.Row<uint32_t>(0);
      block.panel_words = panel_words;
      block.k_words = padded_words;
      block.cols = k;
      block.c = MutableBytes(args.dw, row, 0);
      block.c_row_bytes = args.dw.stride * 4;
      block.accumulate = true;
      format.block(block);
    });
  }
}

}  // namespace quern::cpu
