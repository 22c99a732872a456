// Layers, optimizer and copies of the CPU backend against the reference, for every instruction set this machine has.

#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "tests/compute/cpu_ops_fixture.h"

namespace quern {
namespace {

constexpr DType kF32 = DType::kF32, kBf16 = DType::kBf16, kReal = DType::kF64;

class OpsTest : public CpuOpsTest {};

TEST_P(OpsTest, Embedding) {
  for (const auto& [vocabulary, dim] : {std::pair{11, 5}, {300, 288}, {40, 131}}) {
    const auto ids = RandomIds(90, vocabulary, 1);
    const Tensor table = RandomTensor(act(), vocabulary, dim, 2);
    const PaddedTensor out(Tensor(kF32, 90, dim), 3);
    Tensor expected(kF32, 90, dim);
    cpu_.Embedding({.ids = ids, .table = table, .out = out});
    reference_->Embedding({.ids = ids, .table = table, .out = expected});
    EXPECT_EQ(WorstError(out, expected, 1e-9, 0), 0);
    EXPECT_TRUE(out.Intact());

    const Tensor dout = RandomTensor(kF32, 90, dim, 3), start = RandomTensor(kF32, vocabulary, dim, 4);
    const Tensor dtable = As(kF32, start), expected_dtable = As(kReal, start);
    cpu_.EmbeddingBackward({.ids = ids, .dout = dout, .dtable = dtable});
    reference_->EmbeddingBackward({.ids = ids, .dout = dout, .dtable = expected_dtable});
    EXPECT_LE(WorstError(dtable, expected_dtable, 1e-5, 1e-6), 1);
  }
}

TEST_P(OpsTest, BiasBackward) {
  const Tensor dy = RandomTensor(act(), 77, 150, 1), start = RandomTensor(kF32, 1, 150, 2);
  const Tensor dbias = As(kF32, start), expected = As(kReal, start);
  cpu_.BiasBackward({.dy = dy, .dbias = dbias});
  reference_->BiasBackward({.dy = dy, .dbias = expected});
  EXPECT_LE(WorstError(dbias, expected, 1e-5, 1e-6), 1);
}

TEST_P(OpsTest, RmsNorm) {
  for (const auto& [rows, dim] : {std::pair{1, 1}, {3, 15}, {70, 288}, {130, 77}}) {
    const Tensor weight = RandomTensor(kF32, 1, dim, 1);
    const PaddedTensor x(RandomTensor(kF32, rows, dim, 2, 3), 5);
    const PaddedTensor y(Tensor(act(), rows, dim), 7);
    Tensor inv_rms(kF32, 1, rows), expected(kReal, rows, dim), expected_inv(kReal, 1, rows);
    cpu_.RmsNorm({.x = x, .weight = weight, .eps = 1e-5f, .y = y, .inv_rms = inv_rms});
    reference_->RmsNorm({.x = x, .weight = weight, .eps = 1e-5f, .y = expected, .inv_rms = expected_inv});
    EXPECT_LE(WorstError(y, expected, 1e-6, relative()), 1);
    EXPECT_LE(WorstError(inv_rms, expected_inv, 1e-7, 1e-6), 1);
    EXPECT_TRUE(y.Intact());

    const PaddedTensor dy(RandomTensor(act(), rows, dim, 3), 1);
    const Tensor start = RandomTensor(kF32, rows, dim, 4), dweight_start = RandomTensor(kF32, 1, dim, 5);
    const PaddedTensor dx(start, 2);
    const Tensor expected_dx = As(kReal, start), dweight = As(kF32, dweight_start),
                 expected_dw = As(kReal, dweight_start);
    cpu_.RmsNormBackward({.dy = dy, .x = x, .weight = weight, .inv_rms = inv_rms, .dx = dx, .dweight = dweight});
    reference_->RmsNormBackward(
        {.dy = dy, .x = x, .weight = weight, .inv_rms = expected_inv, .dx = expected_dx, .dweight = expected_dw});
    EXPECT_LE(WorstError(dx, expected_dx, 1e-5, 1e-5), 1);
    EXPECT_LE(WorstError(dweight, expected_dw, 1e-4, 1e-5), 1);
    EXPECT_TRUE(dx.Intact());
  }
}

TEST_P(OpsTest, Rotary) {
  struct Shape {
    int64_t heads, kv_heads, dim;
  };
  for (const Shape shape : {Shape{6, 6, 48}, {4, 2, 8}, {3, 1, 70}, {2, 2, 128}}) {
    for (const bool norm : {false, true}) {
      constexpr int64_t kRows = 67, kPositions = 33;
      const int64_t width = (shape.heads + 2 * shape.kv_heads) * shape.dim;
      Tensor cos(kF32, kPositions, shape.dim / 2), sin(kF32, kPositions, shape.dim / 2);
      for (int64_t p = 0; p < kPositions; ++p) {
        for (int64_t j = 0; j < shape.dim / 2; ++j) {
          const double angle = static_cast<double>(p) *
                               std::pow(10000.0, -2.0 * static_cast<double>(j) / static_cast<double>(shape.dim));
          SetElement(cos, p, j, std::cos(angle));
          SetElement(sin, p, j, std::sin(angle));
        }
      }
      const auto positions = RandomIds(kRows, kPositions, 1);
      const PaddedTensor qkv(RandomTensor(act(), kRows, width, 2), 6);
      const Tensor q_norm = RandomTensor(kF32, 1, shape.dim, 3), k_norm = RandomTensor(kF32, 1, shape.dim, 4);
      const PaddedTensor out(Tensor(act(), kRows, width), 4);
      RotaryArgs args = {.qkv = qkv,
                         .out = out,
                         .positions = positions,
                         .cos = cos,
                         .sin = sin,
                         .q_norm = {},
                         .k_norm = {},
                         .norm_eps = 1e-6f,
                         .heads = shape.heads,
                         .kv_heads = shape.kv_heads,
                         .head_dim = shape.dim};
      if (norm) {
        args.q_norm = q_norm;
        args.k_norm = k_norm;
      }
      Tensor expected(kReal, kRows, width);
      RotaryArgs reference_args = args;
      reference_args.out = expected;
      cpu_.Rotary(args);
      reference_->Rotary(reference_args);
      EXPECT_LE(WorstError(out, expected, 2e-6, relative()), 1) << "head dim " << shape.dim << " norm " << norm;
      EXPECT_TRUE(out.Intact());
      if (!norm) {
        const PaddedTensor in_place(qkv, 6);
        args.qkv = args.out = in_place;
        cpu_.Rotary(args);
        EXPECT_TRUE(BitEqual(in_place.view(), out.view()));
        args.qkv = qkv;
      }

      const Tensor dout = RandomTensor(act(), kRows, width, 5);
      const PaddedTensor dqkv(dout, 3);
      const Tensor expected_dqkv = As(kReal, dout);
      Tensor dq_norm(kF32, 1, shape.dim), dk_norm(kF32, 1, shape.dim), expected_dq(kReal, 1, shape.dim),
          expected_dk(kReal, 1, shape.dim);
      RotaryBackwardArgs backward = {.forward = args, .dqkv = dqkv, .dq_norm = {}, .dk_norm = {}};
      RotaryBackwardArgs reference_backward = {.forward = args, .dqkv = expected_dqkv, .dq_norm = {}, .dk_norm = {}};
      if (norm) {
        backward.dq_norm = dq_norm;
        backward.dk_norm = dk_norm;
        reference_backward.dq_norm = expected_dq;
        reference_backward.dk_norm = expected_dk;
      }
      cpu_.RotaryBackward(backward);
      reference_->RotaryBackward(reference_backward);
      EXPECT_LE(WorstError(dqkv, expected_dqkv, 1e-5, relative()), 1) << "head dim " << shape.dim << " norm " << norm;
      EXPECT_TRUE(dqkv.Intact());
      if (norm) {
        EXPECT_LE(WorstError(dq_norm, expected_dq, 1e-4, 1e-5), 1);
        EXPECT_LE(WorstError(dk_norm, expected_dk, 1e-4, 1e-5), 1);
      }
    }
  }
}

TEST_P(OpsTest, SwiGlu) {
  for (const auto& [rows, width] : {std::pair{1, 1}, {19, 37}, {40, 768}}) {
    const PaddedTensor gate_up(RandomTensor(act(), rows, 2 * width, 1, 3), 5);
    const PaddedTensor h(Tensor(act(), rows, width), 2);
    Tensor expected(kReal, rows, width);
    cpu_.SwiGlu({.gate_up = gate_up, .h = h});
    reference_->SwiGlu({.gate_up = gate_up, .h = expected});
    EXPECT_LE(WorstError(h, expected, 1e-6, relative()), 1);
    EXPECT_TRUE(h.Intact());

    for (const DType grad : {kF32, act()}) {
      const Tensor dh = RandomTensor(grad, rows, width, 2);
      Tensor dgate_up(act(), rows, 2 * width), expected_grad(kReal, rows, 2 * width);
      cpu_.SwiGluBackward({.gate_up = gate_up, .dh = dh, .dgate_up = dgate_up});
      reference_->SwiGluBackward({.gate_up = gate_up, .dh = dh, .dgate_up = expected_grad});
      EXPECT_LE(WorstError(dgate_up, expected_grad, 1e-5, relative()), 1);
      const PaddedTensor in_place(gate_up, 5);
      cpu_.SwiGluBackward({.gate_up = in_place, .dh = dh, .dgate_up = in_place});
      EXPECT_TRUE(BitEqual(in_place.view(), dgate_up.view()));
    }
  }
}

// Gates far from zero: silu(-200) is 0, silu(200) is 200.
TEST_P(OpsTest, SwiGluSaturates) {
  Tensor gate_up(act(), 1, 8), h(act(), 1, 4);
  const double gates[] = {-200, 200, -1e30, 1e30};
  for (int64_t i = 0; i < 4; ++i) {
    SetElement(gate_up, 0, i, gates[i]);
    SetElement(gate_up, 0, i + 4, 1);
  }
  cpu_.SwiGlu({.gate_up = gate_up, .h = h});
  EXPECT_NEAR(GetElement(h, 0, 0), 0, 1e-30);
  EXPECT_NEAR(GetElement(h, 0, 1), 200, 0);
  EXPECT_NEAR(GetElement(h, 0, 2), 0, 1e-7);
  EXPECT_EQ(GetElement(h, 0, 3), GetElement(gate_up, 0, 3));
}

TEST_P(OpsTest, AdamWLerpNormCastFill) {
  constexpr int64_t kCount = 40003;
  const Tensor start = RandomTensor(kF32, 1, kCount, 1);
  const Tensor param = As(kF32, start), want_param = As(kReal, start);
  Tensor m(kF32, 1, kCount), v(kF32, 1, kCount), want_m(kReal, 1, kCount), want_v(kReal, 1, kCount);
  for (int64_t step = 1; step <= 3; ++step) {
    const Tensor grad = RandomTensor(kF32, 1, kCount, static_cast<uint64_t>(10 + step));
    AdamWArgs args = {.param = param,
                      .grad = grad,
                      .m = m,
                      .v = v,
                      .learning_rate = 1e-2f,
                      .beta1 = 0.9f,
                      .beta2 = 0.95f,
                      .eps = 1e-8f,
                      .weight_decay = 0.1f,
                      .grad_scale = 0.5f,
                      .step = step};
    cpu_.AdamW(args);
    args.param = want_param;
    args.m = want_m;
    args.v = want_v;
    reference_->AdamW(args);
  }
  EXPECT_LE(WorstError(param, want_param, 1e-6, 1e-6), 1);
  EXPECT_LE(WorstError(m, want_m, 1e-7, 1e-6), 1);
  EXPECT_LE(WorstError(v, want_v, 1e-7, 1e-6), 1);

  EXPECT_NEAR(cpu_.SquaredNorm(start) / reference_->SquaredNorm(start), 1, 1e-13);
  const Tensor other = RandomTensor(kF32, 1, kCount, 2), average = As(kF32, start), want = As(kReal, start);
  cpu_.Lerp(other, 0.1f, average);
  reference_->Lerp(other, 0.1f, want);
  EXPECT_LE(WorstError(average, want, 1e-6, 1e-6), 1);

  const Tensor matrix = RandomTensor(kF32, 3, 20001, 3);
  for (const DType to : {kBf16, DType::kF16, kF32}) {
    const PaddedTensor narrow(Tensor(to, 3, 20001), 5);
    Tensor expected(to, 3, 20001);
    cpu_.Cast(matrix, narrow);
    reference_->Cast(matrix, expected);
    EXPECT_TRUE(BitEqual(narrow.view(), expected));
    EXPECT_TRUE(narrow.Intact());
    Tensor back(kF32, 3, 20001), expected_back(kF32, 3, 20001);
    cpu_.Cast(narrow, back);
    reference_->Cast(narrow, expected_back);
    EXPECT_TRUE(BitEqual(back, expected_back));
    cpu_.Fill(narrow, 2.5f);
    EXPECT_EQ(WorstError(
                  narrow,
                  [&] {
                    cpu_.Fill(back, 2.5f);
                    return back.view();
                  }(),
                  1e-9, 0),
              0);
    EXPECT_TRUE(narrow.Intact());
  }
}

// Every special value goes through the vector conversion as through the scalar one.
TEST_P(OpsTest, CastRoundsLikeTheScalarConversion) {
  std::vector<uint32_t> words = {0,          0x80000000, 1,          0x8000,     0x7fff,     0x18000,
                                 0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00001, 0x7f800001, 0x7fffffff,
                                 0xffffffff, 0x3f808000, 0x3f818000, 0x007fffff, 0x00800000, 0x3f80ffff};
  Random random(7);
  while (words.size() < 4001) words.push_back(random.NextU32());
  const auto count = static_cast<int64_t>(words.size());
  Tensor x(kF32, 1, count), y(kBf16, 1, count);
  std::memcpy(x.view().data, words.data(), words.size() * 4);
  cpu_.Cast(x, y);
  for (int64_t i = 0; i < count; ++i)
    EXPECT_EQ(y.Row<Bf16>(0)[i].bits, Bf16(x.Row<float>(0)[i]).bits) << std::hex << words[static_cast<size_t>(i)];
}

TEST_P(OpsTest, GatherAndScatterRows) {
  const Tensor x = RandomTensor(act(), 7, 19, 1);
  const std::vector<int64_t> rows = {6, 0, 3};
  Tensor y(act(), 3, 19), back(act(), 7, 19), expected(act(), 3, 19);
  cpu_.GatherRows({.x = x, .rows = rows, .y = y});
  reference_->GatherRows({.x = x, .rows = rows, .y = expected});
  EXPECT_TRUE(BitEqual(y, expected));
  cpu_.ScatterRows({.x = y, .rows = rows, .y = back});
  for (const int64_t row : rows) EXPECT_TRUE(BitEqual(back.view().Rows(row, 1), x.view().Rows(row, 1)));
  EXPECT_EQ(GetElement(back, 1, 0), 0);
}

INSTANTIATE_TEST_SUITE_P(Cpu, OpsTest, ::testing::ValuesIn(CpuCases()), CpuCaseName);

}  // namespace
}  // namespace quern
