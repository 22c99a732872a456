#include "compute/cpu/gemm.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "compute/cpu/gemm_amx_tile.h"
#include "compute/cpu/packed.h"
#include "compute/cpu/vector_portable.h"

namespace quern::cpu {
namespace {

// AMX tiles in software, after the pseudocode of the Intel SDM: TDPBF16PS sums the even and the odd products of a row
// apart and adds both to the destination; words beyond the configured shape are zero.
struct SoftwareTiles {
  struct State {
    TileConfig config;
    bool configured = false;
    uint32_t tile[8][16][16];
  };
  static State& Get() {
    thread_local State state;
    return state;
  }
  static void Configure(const TileConfig& config) {
    State& s = Get();
    s.config = config;
    s.configured = true;
    std::memset(s.tile, 0, sizeof(s.tile));
  }
  static void Release() { Get().configured = false; }
  template <int t>
  static void Zero() {
    std::memset(Get().tile[t], 0, sizeof(Get().tile[t]));
  }
  template <int t>
  static void Load(const void* from, int64_t row_bytes) {
    State& s = Get();
    ASSERT_TRUE(s.configured);
    Zero<t>();
    for (int r = 0; r < s.config.rows[t]; ++r) {
      std::memcpy(s.tile[t][r], static_cast<const uint8_t*>(from) + r * row_bytes, s.config.row_bytes[t]);
    }
  }
  template <int t>
  static void Store(void* to, int64_t row_bytes) {
    State& s = Get();
    ASSERT_TRUE(s.configured);
    for (int r = 0; r < s.config.rows[t]; ++r) {
      std::memcpy(static_cast<uint8_t*>(to) + r * row_bytes, s.tile[t][r], s.config.row_bytes[t]);
    }
  }
  template <int c, int a, int b>
  static void Dot() {
    State& s = Get();
    ASSERT_EQ(s.config.rows[c], s.config.rows[a]);
    ASSERT_EQ(s.config.row_bytes[a] / 4, s.config.rows[b]);
    for (int m = 0; m < s.config.rows[a]; ++m) {
      for (int n = 0; n < s.config.row_bytes[b] / 4; ++n) {
        float even = 0, odd = 0;
        for (int k = 0; k < s.config.row_bytes[a] / 4; ++k) {
          const uint32_t x = s.tile[a][m][k], y = s.tile[b][k][n];
          even += std::bit_cast<float>(x << 16) * std::bit_cast<float>(y << 16);
          odd += std::bit_cast<float>(x & 0xffff0000u) * std::bit_cast<float>(y & 0xffff0000u);
        }
        s.tile[c][m][n] = std::bit_cast<uint32_t>(std::bit_cast<float>(s.tile[c][m][n]) + (even + odd));
      }
    }
  }
};

struct Named {
  std::string name;
  GemmKernels kernels;
};

const std::vector<Named>& AllKernels() {
  static const std::vector<Named> all = [] {
    std::vector<Named> result;
    for (int i = 0; i <= static_cast<int>(BestIsa()); ++i) {
      const auto isa = static_cast<Isa>(i);
      result.push_back({IsaName(isa), KernelsFor(isa)});
    }
    GemmKernels software = KernelsFor(Isa::kScalar);
    software.bf16 = AmxKernels<SoftwareTiles, PortableFp32>();
    result.push_back({"amx in software", software});
    return result;
  }();
  return all;
}

struct Source {
  std::mt19937_64 engine{20240607};
  float Uniform() { return std::uniform_real_distribution<float>(-1, 1)(engine); }
  int64_t Int(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
};

void Set(const TensorView& x, int64_t r, int64_t c, float value) {
  switch (x.dtype) {
    case DType::kF32: x.Row<float>(r)[c] = value; break;
    case DType::kBf16: x.Row<Bf16>(r)[c] = Bf16(value); break;
    case DType::kF16: x.Row<uint16_t>(r)[c] = FloatToHalf(value); break;
    default: FAIL();
  }
}

double Get(const TensorView& x, int64_t r, int64_t c) {
  switch (x.dtype) {
    case DType::kF32: return x.Row<float>(r)[c];
    case DType::kBf16: return static_cast<float>(x.Row<Bf16>(r)[c]);
    case DType::kF16: return HalfToFloat(x.Row<uint16_t>(r)[c]);
    default: return NAN;
  }
}

void Randomise(const TensorView& x, Source& source) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) Set(x, r, c, source.Uniform());
  }
}

// What a value becomes in a packed matrix.
double Rounded(DType dtype, double value) {
  return dtype == DType::kBf16 ? static_cast<float>(Bf16(static_cast<float>(value))) : value;
}

// A chain of k fp32 additions of terms of absolute sum `sum` errs by less than this; bf16 output rounds once more.
double Bound(double sum, double result, int64_t k, DType out) {
  const double chain = (2 + std::sqrt(static_cast<double>(k)) * 2) * 0x1p-24 * sum + 1e-30;
  return chain + (out == DType::kBf16 ? 0x1p-8 * std::abs(result) : 0);
}

struct Case {
  int64_t m, k, n;
  DType dtype = DType::kBf16, weight = DType::kF32, out = DType::kF32;
  bool transposed = false, bias = false, accumulate = false;
  int64_t padding = 0;  // columns of a and c beyond the view
};

void CheckCase(const GemmKernels& kernels, const Case& c, Source& source, ThreadPool& pool) {
  SCOPED_TRACE("m " + std::to_string(c.m) + " k " + std::to_string(c.k) + " n " + std::to_string(c.n) + " " +
               DTypeName(c.dtype) + " from " + DTypeName(c.weight) + " to " + DTypeName(c.out) +
               (c.transposed ? " transposed" : "") + (c.bias ? " bias" : "") + (c.accumulate ? " accumulate" : ""));
  Tensor a(c.dtype, c.m, c.k + c.padding), w(c.weight, c.transposed ? c.k : c.n, c.transposed ? c.n : c.k);
  Tensor out(c.out, c.m, c.n + c.padding), bias(DType::kF32, 1, c.n);
  Randomise(a, source);
  Randomise(w, source);
  Randomise(out, source);
  Randomise(bias, source);
  Tensor before(c.out, c.m, c.n + c.padding);
  if (before.bytes() > 0) std::memcpy(before.view().data, out.view().data, static_cast<size_t>(before.bytes()));
  const auto packed = NewPacked(c.dtype, c.k, c.n, kernels);
  Pack({.weight = w, .transposed = c.transposed, .out = packed.get()}, pool);
  Arena scratch;
  MatMul({.a = a.view().Cols(0, c.k),
          .b = packed.get(),
          .c = out.view().Cols(0, c.n),
          .bias = c.bias ? bias.view() : TensorView{},
          .accumulate = c.accumulate},
         pool, scratch);
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.n; ++j) {
      double sum = 0, absolute = 0;
      for (int64_t k = 0; k < c.k; ++k) {
        const double product = Get(a, i, k) * Rounded(c.dtype, c.transposed ? Get(w, k, j) : Get(w, j, k));
        sum += product;
        absolute += std::abs(product);
      }
      if (c.bias) sum += Get(bias, 0, j);
      if (c.accumulate) sum += Get(before, i, j);
      const double bound = Bound(absolute + 2, sum, c.k, c.out);
      ASSERT_NEAR(Get(out, i, j), sum, bound) << i << ", " << j;
    }
    for (int64_t j = c.n; j < c.n + c.padding; ++j) ASSERT_EQ(Get(out, i, j), Get(before, i, j)) << "written beyond c";
  }
}

TEST(Gemm, AgreesWithDoubleProductOnRandomShapes) {
  ThreadPool pool(2);
  for (const Named& named : AllKernels()) {
    SCOPED_TRACE(named.name);
    Source source;
    for (int i = 0; i < 60; ++i) {
      Case c;
      c.m = source.Int(0, 3) == 0 ? source.Int(10, 80) : source.Int(0, 9);
      c.k = source.Int(1, 150);
      c.n = source.Int(1, 230);
      c.dtype = source.Int(0, 2) != 0 ? DType::kBf16 : DType::kF32;
      c.weight = std::vector{DType::kF32, DType::kBf16, DType::kF16}[static_cast<size_t>(source.Int(0, 2))];
      c.out = source.Int(0, 1) == 0 ? DType::kF32 : DType::kBf16;
      c.transposed = source.Int(0, 1) == 0;
      c.bias = source.Int(0, 1) == 0;
      c.accumulate = c.out == DType::kF32 && source.Int(0, 1) == 0;
      c.padding = source.Int(0, 1) * source.Int(1, 9);
      CheckCase(named.kernels, c, source, pool);
      if (HasFatalFailure()) return;
    }
    // Shapes of many chunks and of one row, column or inner index.
    for (const Case& c : {Case{1, 1, 1}, Case{300, 33, 97}, Case{1, 700, 500}, Case{5, 257, 1},
                          Case{.m = 130, .k = 64, .n = 96, .dtype = DType::kF32}}) {
      CheckCase(named.kernels, c, source, pool);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Gemm, ARowIsBitEqualInEveryBatch) {
  ThreadPool two(2), one(1);
  Arena scratch;
  for (const Named& named : AllKernels()) {
    SCOPED_TRACE(named.name);
    for (const DType dtype : {DType::kBf16, DType::kF32}) {
      SCOPED_TRACE(DTypeName(dtype));
      Source source;
      const int64_t k = 289, n = 215;
      Tensor a(dtype, 257, k), w(DType::kF32, n, k), all(DType::kF32, 257, n);
      Randomise(a, source);
      Randomise(w, source);
      const auto packed = NewPacked(dtype, k, n, named.kernels);
      Pack({.weight = w, .transposed = false, .out = packed.get()}, two);
      MatMul({.a = a, .b = packed.get(), .c = all, .bias = {}}, two, scratch);
      for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 64, 257}) {
        for (const int64_t first : {int64_t{0}, int64_t{100}, 257 - m}) {
          if (first + m > 257) continue;
          Tensor some(DType::kF32, m, n);
          MatMul({.a = a.view().Rows(first, m), .b = packed.get(), .c = some, .bias = {}}, m % 2 == 0 ? two : one,
                 scratch);
          ASSERT_EQ(std::memcmp(some.view().data, all.Row<float>(first), static_cast<size_t>(some.bytes())), 0)
              << m << " rows from " << first;
        }
      }
      // A column does not depend on the columns beside it either.
      const auto narrow = NewPacked(dtype, k, 1, named.kernels);
      Pack({.weight = w.view().Rows(201, 1), .transposed = false, .out = narrow.get()}, one);
      Tensor column(DType::kF32, 257, 1);
      MatMul({.a = a, .b = narrow.get(), .c = column, .bias = {}}, one, scratch);
      for (int64_t i = 0; i < 257; ++i) ASSERT_EQ(column.Row<float>(i)[0], all.Row<float>(i)[201]);
    }
  }
}

TEST(Gemm, GradWeightAgreesWithDoubleProduct) {
  ThreadPool pool(2);
  for (const Named& named : AllKernels()) {
    SCOPED_TRACE(named.name);
    Source source;
    for (const auto& [tokens, n, k] : std::vector<std::array<int64_t, 3>>{
             {0, 5, 7}, {1, 5, 7}, {7, 48, 49}, {64, 70, 33}, {33, 130, 100}, {1030, 20, 50}, {2100, 9, 17}}) {
      for (const DType dtype : {DType::kBf16, DType::kF32}) {
        SCOPED_TRACE(std::to_string(tokens) + " tokens, " + std::to_string(n) + " x " + std::to_string(k) + " " +
                     DTypeName(dtype));
        Tensor dy(dtype, tokens, n + 3), x(dtype, tokens, k + 5), dw(DType::kF32, n, k + 1),
            before(DType::kF32, n, k + 1);
        Randomise(dy, source);
        Randomise(x, source);
        Randomise(dw, source);
        std::memcpy(before.view().data, dw.view().data, static_cast<size_t>(dw.bytes()));
        Arena scratch;
        MatMulGradWeight({dy.view().Cols(1, n), x.view().Cols(2, k), dw.view().Cols(0, k)}, pool, scratch,
                         named.kernels);
        Tensor again(DType::kF32, n, k + 1);
        std::memcpy(again.view().data, before.view().data, static_cast<size_t>(dw.bytes()));
        ThreadPool one(1);
        MatMulGradWeight({dy.view().Cols(1, n), x.view().Cols(2, k), again.view().Cols(0, k)}, one, scratch,
                         named.kernels);
        ASSERT_EQ(std::memcmp(again.view().data, dw.view().data, static_cast<size_t>(dw.bytes())), 0) << "threads";
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j < k; ++j) {
            double sum = 0, absolute = 0;
            for (int64_t t = 0; t < tokens; ++t) {
              const double product = Get(dy, t, 1 + i) * Get(x, t, 2 + j);
              sum += product;
              absolute += std::abs(product);
            }
            sum += Get(before, i, j);
            ASSERT_NEAR(Get(dw, i, j), sum, Bound(absolute + 2, sum, tokens, DType::kF32)) << i << ", " << j;
          }
          ASSERT_EQ(Get(dw, i, k), Get(before, i, k)) << "written beyond dw";
        }
      }
    }
  }
}

TEST(Gemm, PackingRoundsLikeBf16) {
  ThreadPool pool(1);
  Arena scratch;
  const std::vector<float> values = {1.00390625f, 1.01171875f, -1.00390625f, 3.4e38f, 1e-40f, 0.0f, -0.0f, 65504.0f};
  const auto k = static_cast<int64_t>(values.size());
  for (const Named& named : AllKernels()) {
    SCOPED_TRACE(named.name);
    for (const bool transposed : {false, true}) {
      Tensor w(DType::kF32, transposed ? k : 1, transposed ? 1 : k);
      for (int64_t i = 0; i < k; ++i) Set(w, transposed ? i : 0, transposed ? 0 : i, values[static_cast<size_t>(i)]);
      CpuPackedMatrix packed(named.kernels, DType::kBf16, k, 1);
      Pack({.weight = w, .transposed = transposed, .out = &packed}, pool);
      for (int64_t i = 0; i < k; ++i) {
        const uint32_t word = packed.Panel(0)[i / 2 * packed.panel_cols()];
        const auto bits = static_cast<uint16_t>(i % 2 == 0 ? word : word >> 16);
        EXPECT_EQ(bits, Bf16(values[static_cast<size_t>(i)]).bits) << values[static_cast<size_t>(i)];
      }
    }
  }
}

// bf16 outputs are rounded as Bf16(float) does, NaN and infinity included.
TEST(Gemm, OutputRoundsLikeBf16) {
  ThreadPool pool(1);
  Arena scratch;
  const std::vector<float> values = {1.00390625f, 1.01171875f, -1.00390625f, 3.4e38f, 0.0f, INFINITY, NAN, 1e-39f};
  const int64_t n = 64;
  for (const Named& named : AllKernels()) {
    SCOPED_TRACE(named.name);
    Tensor a(DType::kF32, 1, 2), w(DType::kF32, n, 2), bias(DType::kF32, 1, n), c(DType::kBf16, 1, n);
    for (int64_t i = 0; i < n; ++i) bias.Row<float>(0)[i] = values[static_cast<size_t>(i) % values.size()];
    const auto packed = NewPacked(DType::kF32, 2, n, named.kernels);
    Pack({.weight = w, .transposed = false, .out = packed.get()}, pool);
    MatMul({.a = a, .b = packed.get(), .c = c, .bias = bias}, pool, scratch);
    for (int64_t i = 0; i < n; ++i) {
      const float expected = bias.Row<float>(0)[i] + 0.0f;
      EXPECT_EQ(c.Row<uint16_t>(0)[i], Bf16(expected).bits) << expected;
    }
  }
}

TEST(CpuFeatures, IsasAreOrdered) {
  EXPECT_TRUE(IsaAvailable(Isa::kScalar));
  EXPECT_TRUE(IsaAvailable(ActiveIsa()));
  for (int i = 0; i < static_cast<int>(BestIsa()); ++i) EXPECT_TRUE(IsaAvailable(static_cast<Isa>(i)));
}

}  // namespace
}  // namespace quern::cpu
