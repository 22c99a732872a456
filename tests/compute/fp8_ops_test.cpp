// The FP8 operations of the CPU backend against the reference, bit for bit, on every instruction set of this machine.

#include <cmath>

#include "compute/cpu/cpu_ops.h"
#include "tests/compute/fused_cases.h"

namespace quern {
namespace {

constexpr DType kF32 = DType::kF32, kBf16 = DType::kBf16;
using Scale = QuantizeArgs::Scale;

std::vector<cpu::Isa> Isas() {
  std::vector<cpu::Isa> out;
  for (const cpu::Isa isa :
       {cpu::Isa::kScalar, cpu::Isa::kAvx2, cpu::Isa::kAvx512, cpu::Isa::kAvx512Bf16, cpu::Isa::kAmx})
    if (cpu::IsaAvailable(isa)) out.push_back(isa);
  return out;
}

class Fp8OpsTest : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  ThreadPool pool_{2};
  CpuOps cpu_{&pool_, GetParam()};
  std::unique_ptr<Ops> reference_ = NewReferenceOps();
};
INSTANTIATE_TEST_SUITE_P(Isas, Fp8OpsTest, ::testing::ValuesIn(Isas()), [](const auto& isa) {
  std::string name = cpu::IsaName(isa.param);
  std::erase_if(name, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); });
  return name;
});

// Rows of very different magnitudes; one is zero.
Tensor Uneven(DType dtype, int64_t rows, int64_t cols, uint64_t seed) {
  Tensor x = RandomTensor(dtype, rows, cols, seed);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      SetElement(x, r, c, r == 2 ? 0 : GetElement(x, r, c) * std::exp2(7 * (r % 5) - 14));
  return x;
}

TEST_P(Fp8OpsTest, QuantizesAsTheReferenceBitForBit) {
  for (const DType act : {kF32, kBf16}) {
    for (const Fp8Format& format : {kE4M3, kE4M3Gaudi, kE5M2}) {
      for (const Scale rule : {Scale::kRow, Scale::kTensor, Scale::kGiven}) {
        for (const bool stochastic : {false, true}) {
          constexpr int64_t kRows = 37, kCols = 149;
          const PaddedTensor x(Uneven(act, kRows, kCols, 1), 3);
          Tensor column(kF32, 1, kCols);
          for (int64_t c = 0; c < kCols; ++c) SetElement(column, 0, c, std::exp2(c % 7 - 3));
          for (const bool columns : {false, true}) {
            struct Out {
              Tensor codes, scale, amax{kF32, 1, 1}, counts{DType::kI32, 1, 2};
            };
            Out out[2];
            for (Out& o : out) {
              o.codes = Tensor(format.dtype, kRows, kCols);
              o.scale = Tensor(kF32, 1, rule == Scale::kRow ? kRows : 1);
              if (rule == Scale::kGiven) SetElement(o.scale, 0, 0, 0x1p-6);
              Ops& ops = &o == &out[0] ? static_cast<Ops&>(cpu_) : *reference_;
              ops.Quantize({.x = x,
                            .column_scale = columns ? column.view() : TensorView{},
                            .format = format,
                            .rule = rule,
                            .stochastic = stochastic,
                            .seed = 0x123456789abcdef,
                            .codes = o.codes,
                            .scale = o.scale,
                            .amax = o.amax,
                            .counts = o.counts});
            }
            ASSERT_TRUE(BitEqual(out[0].codes, out[1].codes)) << static_cast<int>(rule) << stochastic << columns;
            ASSERT_TRUE(BitEqual(out[0].scale, out[1].scale));
            ASSERT_TRUE(BitEqual(out[0].amax, out[1].amax));
            ASSERT_TRUE(BitEqual(out[0].counts, out[1].counts));
            // Only a scale that was given can be exceeded.
            EXPECT_EQ(out[0].counts.Row<int32_t>(0)[0] > 0, rule == Scale::kGiven);
            Tensor y(act, kRows, kCols), expected(kF32, kRows, kCols);
            const TensorView used = columns ? column.view() : TensorView{};
            cpu_.Dequantize({.codes = out[0].codes, .scale = out[0].scale, .column_scale = used, .y = y});
            reference_->Dequantize({.codes = out[0].codes, .scale = out[0].scale, .column_scale = used, .y = expected});
            ASSERT_TRUE(BitEqual(As(kF32, y), expected)) << "a code times its scale fits in bf16";
          }
        }
      }
    }
  }
}

TEST_P(Fp8OpsTest, EveryBf16ValueAndEveryCode) {
  constexpr int64_t kSide = 256;
  Tensor x(kBf16, kSide, kSide), codes(DType::kE4M3, kSide, kSide), scale(kF32, 1, 1);
  for (int64_t i = 0; i < kSide * kSide; ++i) x.Row<uint16_t>(0)[i] = static_cast<uint16_t>(i);
  Tensor all(DType::kE4M3, 1, kSide), y(kBf16, 1, kSide);
  for (int64_t i = 0; i < kSide; ++i) all.Row<uint8_t>(0)[i] = static_cast<uint8_t>(i);
  for (const Fp8Format& format : {kE4M3, kE4M3Gaudi}) {
    for (int exponent = -104; exponent <= 104; exponent += 4) {
      const float factor = std::ldexp(1.0f, exponent);
      *scale.Row<float>(0) = factor;
      cpu_.Quantize({.x = x, .format = format, .rule = Scale::kGiven, .codes = codes, .scale = scale});
      for (int64_t i = 0; i < kSide * kSide; ++i) {
        const float value = static_cast<float>(x.Row<Bf16>(0)[i]) * (1.0f / factor);
        ASSERT_EQ(codes.Row<uint8_t>(0)[i], FloatToFp8(value, format)) << i << " by 2^" << exponent;
      }
      cpu_.Dequantize({.codes = all, .scale = scale, .y = y});
      for (int64_t i = 0; i < kSide; ++i) {
        const float want = Fp8ToFloat(static_cast<uint8_t>(i), DType::kE4M3) * factor;
        const auto got = static_cast<float>(y.Row<Bf16>(0)[i]);
        ASSERT_TRUE(std::isnan(want) ? std::isnan(got) : got == want) << i << " times 2^" << exponent;
      }
    }
  }
}

TEST_P(Fp8OpsTest, SecondPartsOfOperationsAreThoseOfTheirOwn) {
  ExpectNormAndSwiGluCast(cpu_);
  ExpectRotaryWritesPages(cpu_);
}

TEST_P(Fp8OpsTest, ARowsCodesDependOnThatRowAlone) {
  const Tensor x = Uneven(kBf16, 40, 65, 3);
  Tensor codes(DType::kE4M3, 40, 65), scale(kF32, 1, 40), one(DType::kE4M3, 1, 65), one_scale(kF32, 1, 1);
  cpu_.Quantize({.x = x, .format = kE4M3, .codes = codes, .scale = scale});
  for (int64_t r = 0; r < 40; ++r) {
    cpu_.Quantize({.x = x.view().Rows(r, 1), .format = kE4M3, .codes = one, .scale = one_scale});
    ASSERT_TRUE(BitEqual(one, codes.view().Rows(r, 1)));
    ASSERT_EQ(GetElement(one_scale, 0, 0), GetElement(scale, 0, r));
  }
}

TEST_P(Fp8OpsTest, WhatIsNotFiniteStaysSo) {
  Tensor x = RandomTensor(kF32, 3, 20, 1);
  SetElement(x, 1, 7, std::numeric_limits<double>::infinity());
  SetElement(x, 2, 7, std::nan(""));
  Tensor codes(DType::kE4M3, 3, 20), scale(kF32, 1, 3), y(kF32, 3, 20);
  cpu_.Quantize({.x = x, .format = kE4M3, .codes = codes, .scale = scale});
  cpu_.Dequantize({.codes = codes, .scale = scale, .y = y});
  EXPECT_TRUE(std::isfinite(GetElement(y, 0, 0)));
  EXPECT_TRUE(std::isnan(GetElement(y, 1, 0)));
  EXPECT_TRUE(std::isnan(GetElement(y, 2, 0)));
}

TEST_P(Fp8OpsTest, ColumnAmax) {
  const Tensor x = Uneven(kBf16, 50, 131, 4);
  Tensor amax = RandomTensor(kF32, 1, 131, 5), expected(kF32, 1, 131);
  for (int64_t c = 0; c < 131; ++c) {
    SetElement(amax, 0, c, std::abs(GetElement(amax, 0, c)));
    SetElement(expected, 0, c, GetElement(amax, 0, c));
  }
  cpu_.ColumnAmax({.x = x, .amax = amax});
  reference_->ColumnAmax({.x = x, .amax = expected});
  EXPECT_TRUE(BitEqual(amax, expected));
}

// FP8 times FP8: the weights are exactly the reference's (a unit matrix reads them), the products as close as bf16's.
TEST_P(Fp8OpsTest, Products) {
  struct Shape {
    int64_t t, k, n;
  };
  for (const Shape s : {Shape{1, 1, 1}, {3, 33, 49}, {40, 150, 70}}) {
    for (const DType stored : {kF32, kBf16, DType::kF16}) {
      for (const int variant : {0, 1, 2, 3}) {  // plain, scaled along k, transposed, one given scale
        const bool transposed = variant == 2;
        const Tensor weight = RandomTensor(stored, transposed ? s.k : s.n, transposed ? s.n : s.k, 1, 0.3);
        Tensor input_scale(kF32, 1, s.k), given(kF32, 1, 1);
        for (int64_t i = 0; i < s.k; ++i) SetElement(input_scale, 0, i, std::exp2(i % 5 - 2));
        SetElement(given, 0, 0, 0x1p-8);
        const auto packed = cpu_.NewPacked(DType::kE4M3, s.k, s.n),
                   expected = reference_->NewPacked(DType::kE4M3, s.k, s.n);
        for (Ops* ops : {static_cast<Ops*>(&cpu_), reference_.get()}) {
          ops->Pack({.weight = weight,
                     .transposed = transposed,
                     .input_scale = variant == 1 ? input_scale.view() : TensorView{},
                     .scale = variant == 3 ? given.view() : TensorView{},
                     .out = ops == &cpu_ ? packed.get() : expected.get()});
        }
        const auto multiply = [&](const Tensor& x, bool exact) {
          Tensor codes(DType::kE4M3, x.rows(), s.k), scale(kF32, 1, x.rows());
          cpu_.Quantize({.x = x, .format = kE4M3, .codes = codes, .scale = scale});
          Tensor y(kF32, x.rows(), s.n), want(kF32, x.rows(), s.n);
          cpu_.MatMul({.a = codes, .a_scale = scale, .b = packed.get(), .c = y, .bias = {}});
          reference_->MatMul({.a = codes, .a_scale = scale, .b = expected.get(), .c = want, .bias = {}});
          EXPECT_LE(WorstError(y, want, exact ? 1e-30 : 1e-5, exact ? 0 : 1e-5), 1);
        };
        Tensor unit(kBf16, s.k, s.k);
        for (int64_t i = 0; i < s.k; ++i) SetElement(unit, i, i, 1);
        multiply(unit, true);
        multiply(RandomTensor(kBf16, s.t, s.k, 2), false);
      }
    }
  }
}

// Weights keep their codes and are decoded as they are multiplied, in one way for few rows and in another for many.
TEST_P(Fp8OpsTest, EveryCodeOfAWeightIsMultipliedExactly) {
  constexpr int64_t kCodes = 256, kOutputs = 50;
  Tensor weight(kF32, kOutputs, kCodes), given(kF32, 1, 1), unit(kBf16, kCodes, kCodes);
  for (const double scale : {0x1p-12, 0x1p-113, 0x1p5}) {  // the second one's smallest values are no normal numbers
    for (const bool nan : {false, true}) {
      SetElement(given, 0, 0, scale);
      for (int64_t c = 0; c < kCodes; ++c) {
        const float value = Fp8ToFloat(static_cast<uint8_t>(c), DType::kE4M3);
        SetElement(unit, c, c, 1);
        for (int64_t n = 0; n < kOutputs; ++n)
          SetElement(weight, n, c, std::isnan(value) ? 0 : static_cast<double>(value) * scale);
      }
      if (nan) SetElement(weight, 7, 3, std::nan(""));
      const auto packed = cpu_.NewPacked(DType::kE4M3, kCodes, kOutputs);
      cpu_.Pack({.weight = weight, .format = kE4M3, .scale = given, .out = packed.get()});
      EXPECT_LT(packed->bytes(), 2 * kCodes * kOutputs) << "a byte a weight";
      Tensor codes(DType::kE4M3, kCodes, kCodes), scales(kF32, 1, kCodes), y(kF32, kCodes, kOutputs);
      cpu_.Quantize({.x = unit, .format = kE4M3, .codes = codes, .scale = scales});
      for (const int64_t rows : {kCodes, int64_t{5}, int64_t{1}}) {
        for (int64_t row = 0; row + rows <= kCodes; row += rows)
          cpu_.MatMul({.a = codes.view().Rows(row, rows),
                       .a_scale = scales.view().Cols(row, rows),
                       .b = packed.get(),
                       .c = y.view().Rows(row, rows),
                       .bias = {}});
        for (int64_t c = 0; c < kCodes - rows % 5; ++c) {
          for (int64_t n = 0; n < kOutputs; ++n) {
            if (nan && n == 7) {
              ASSERT_TRUE(std::isnan(GetElement(y, c, n)));
            } else if (std::abs(GetElement(weight, n, c)) >= 0x1p-120) {
              ASSERT_EQ(GetElement(y, c, n), GetElement(weight, n, c)) << c << " " << n << " " << rows << " " << scale;
            } else {
              ASSERT_LT(std::abs(GetElement(y, c, n)), 0x1p-119);  // products may flush
            }
          }
        }
      }
    }
  }
}

// Both take the same random words, so codes differ only where fp32 and double round differently.
TEST_P(Fp8OpsTest, AdamWWithFp8MomentsFollowsTheReference) {
  for (const int64_t block : {int64_t{0}, int64_t{2048}, int64_t{100}}) {
    for (const DType param_dtype : {kF32, kBf16}) {
      constexpr int64_t kCount = 9003;
      const int64_t blocks = block > 0 ? (kCount + block - 1) / block : 1;
      const Tensor start = RandomTensor(param_dtype, 1, kCount, 1, 0.1);
      struct State {
        Tensor param, m{DType::kE4M3, 1, kCount}, v{DType::kE5M2, 1, kCount}, m_scale, v_scale;
      };
      State states[2];
      for (State& s : states) {
        s.param = As(&s == &states[0] ? param_dtype : DType::kF64, start);
        s.m_scale = Tensor(kF32, 1, blocks);
        s.v_scale = Tensor(kF32, 1, blocks);
      }
      for (int64_t step = 1; step <= 3; ++step) {
        const Tensor grad = RandomTensor(kF32, 1, kCount, 10 + static_cast<uint64_t>(step), 1e-3);
        for (State& s : states) {
          Ops& ops = &s == &states[0] ? static_cast<Ops&>(cpu_) : *reference_;
          ops.AdamW({.param = s.param,
                     .grad = grad,
                     .m = s.m,
                     .v = s.v,
                     .m_scale = s.m_scale,
                     .v_scale = s.v_scale,
                     .block = block,
                     .seed = static_cast<uint64_t>(step),
                     .first_element = 77,
                     .learning_rate = 1e-3f,
                     .weight_decay = 0.1f,
                     .step = step});
        }
        if (param_dtype == kF32) {
          EXPECT_LE(WorstError(states[0].param, states[1].param, 2e-5, 1e-6), 1);
        }
        EXPECT_LE(WorstError(states[0].m_scale, states[1].m_scale, 0, 1e-2), 1);
        int64_t different = 0;
        for (int64_t i = 0; i < kCount; ++i) {
          different += states[0].m.Row<uint8_t>(0)[i] != states[1].m.Row<uint8_t>(0)[i];
          different += states[0].v.Row<uint8_t>(0)[i] != states[1].v.Row<uint8_t>(0)[i];
        }
        EXPECT_LT(different, kCount / 100);
      }
    }
  }
}

// Every instruction set and every division of the work gives the same bits.
TEST_P(Fp8OpsTest, AdamWWithFp8MomentsIsTheSameEverywhere) {
  ThreadPool one(1);
  CpuOps scalar(&one, cpu::Isa::kScalar);
  for (const int64_t block : {int64_t{0}, int64_t{2048}}) {
    constexpr int64_t kCount = 40000;
    const int64_t blocks = block > 0 ? (kCount + block - 1) / block : 1;
    const Tensor grad = RandomTensor(kF32, 1, kCount, 4, 1e-2), start = RandomTensor(kBf16, 1, kCount, 5);
    std::vector<Tensor> params, firsts, seconds;
    for (CpuOps* ops : {&cpu_, &scalar}) {
      Tensor param = As(kBf16, start), m(DType::kE4M3, 1, kCount), v(DType::kE5M2, 1, kCount);
      Tensor m_scale(kF32, 1, blocks), v_scale(kF32, 1, blocks);
      for (int64_t step = 1; step <= 4; ++step)
        ops->AdamW({.param = param,
                    .grad = grad,
                    .m = m,
                    .v = v,
                    .m_scale = m_scale,
                    .v_scale = v_scale,
                    .block = block,
                    .seed = 9 + static_cast<uint64_t>(step),
                    .learning_rate = 1e-2f,
                    .grad_scale = 0.7f,
                    .step = step});
      params.push_back(std::move(param));
      firsts.push_back(std::move(m));
      seconds.push_back(std::move(v));
    }
    EXPECT_TRUE(BitEqual(params[0], params[1]));
    EXPECT_TRUE(BitEqual(firsts[0], firsts[1]));
    EXPECT_TRUE(BitEqual(seconds[0], seconds[1]));
  }
}

// Steps smaller than half a bf16 unit are lost by rounding to nearest, and kept on average by stochastic rounding.
TEST_P(Fp8OpsTest, Bf16MastersMoveBySmallSteps) {
  constexpr int64_t kCount = 4096;
  Tensor param(kBf16, 1, kCount), grad(kF32, 1, kCount), m(kF32, 1, kCount), v(kF32, 1, kCount);
  cpu_.Fill(param, 1);
  cpu_.Fill(grad, 1);
  for (int64_t step = 1; step <= 50; ++step)
    cpu_.AdamW({.param = param,
                .grad = grad,
                .m = m,
                .v = v,
                .seed = static_cast<uint64_t>(step),
                .learning_rate = 1e-4f,
                .step = step});
  double mean = 0;
  for (int64_t i = 0; i < kCount; ++i) mean += GetElement(param, 0, i) / kCount;
  EXPECT_NEAR(mean, 1 - 50 * 1e-4, 3e-4);
}

// methods: update of v = (1e-4, 1e-8, 1e-11, 1e-13), m = (1e-2, 1e-4, 3e-6, 3e-7) with v in E5M2 and E4M3.
TEST(Fp8Moments, SecondMomentNeedsTheRangeOfE5M2) {
  const double v[4] = {1e-4, 1e-8, 1e-11, 1e-13}, m[4] = {1e-2, 1e-4, 3e-6, 3e-7}, eps = 1e-8;
  const auto update = [&](int i, const Fp8Format& format) {
    const double scale = v[0] / static_cast<double>(format.max);
    const double held =
        static_cast<double>(Fp8ToFloat(FloatToFp8(static_cast<float>(v[i] / scale), format), format.dtype)) * scale;
    return m[i] / (std::sqrt(held) + eps);
  };
  const double e5m2[4] = {1.0, 0.9775, 0.9356, 0.8922}, e4m3[4] = {1.0, 1.021, 300, 30};
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(update(i, kE5M2), e5m2[i], 2e-4 * e5m2[i]) << i;
    EXPECT_NEAR(update(i, kE4M3), e4m3[i], 1e-3 * e4m3[i]) << i;
  }
}

// v = 1 under a fixed scale of 64 and zero gradients.
TEST(Fp8Moments, NearestFreezesADecayingSecondMomentAndStochasticDoesNot) {
  const auto nearest = [](const Fp8Format& format, float beta2) {
    float value = 64;
    for (int step = 0; step < 200; ++step) value = Fp8ToFloat(FloatToFp8(value * beta2, format), format.dtype);
    return value / 64;
  };
  for (const float beta2 : {0.95f, 0.99f, 0.999f}) EXPECT_EQ(nearest(kE5M2, beta2), 1.0f);
  EXPECT_EQ(nearest(kE4M3, 0.95f), 0.625f);
  EXPECT_LT(nearest(kE5M2, 0.9f), 0.1f);
  EXPECT_LT(nearest(kE4M3, 0.9f), 0.1f);
  Random random(3);
  double mean = 0;
  constexpr int kRuns = 4000;
  for (int run = 0; run < kRuns; ++run) {
    float value = 64;
    for (int step = 0; step < 20; ++step)
      value = Fp8ToFloat(FloatToFp8Stochastic(value * 0.95f, kE5M2, random.NextU32()), DType::kE5M2);
    mean += static_cast<double>(value) / 64 / kRuns;
  }
  EXPECT_NEAR(mean, 0.3585, 0.01);
}

}  // namespace
}  // namespace quern
