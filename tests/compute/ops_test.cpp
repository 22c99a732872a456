// The CPU backend against the reference, for every instruction set this machine has.

#include <bit>
#include <cmath>
#include <numeric>

#include "compute/cpu/cpu_ops.h"
#include "tests/compute/test_tensors.h"

namespace quern {
namespace {

constexpr DType kF32 = DType::kF32, kBf16 = DType::kBf16, kReal = DType::kF64;
constexpr double kBf16Rounding = 0x1.01p-8;  // one rounding of 8 significant bits, and what fp32 adds

struct Case {
  cpu::Isa isa;
  DType act;
};

std::vector<Case> AllCases() {
  std::vector<Case> out;
  for (const cpu::Isa isa : {cpu::Isa::kScalar, cpu::Isa::kAvx2, cpu::Isa::kAvx512})
    if (cpu::IsaAvailable(isa))
      for (const DType act : {kF32, kBf16}) out.push_back({isa, act});
  return out;
}

class OpsTest : public ::testing::TestWithParam<Case> {
 protected:
  DType act() const { return GetParam().act; }
  // Of an output in the activation dtype.
  double relative() const { return act() == kBf16 ? kBf16Rounding : 1e-5; }

  ThreadPool pool_{2};
  CpuOps cpu_{&pool_, GetParam().isa};
  std::unique_ptr<Ops> reference_ = NewReferenceOps();
};

std::vector<int32_t> RandomIds(int64_t count, int64_t limit, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(limit))));
  return out;
}

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

TEST_P(OpsTest, LogSoftmax) {
  for (const auto& [rows, vocabulary] : {std::pair{5, 1}, {9, 17}, {4, 512}, {3, 32001}}) {
    const auto targets = RandomIds(rows, vocabulary, 1);
    const PaddedTensor logits(RandomTensor(kF32, rows, vocabulary, 2, 4), 3);
    Tensor lse(kF32, 1, rows), log_prob(kF32, 1, rows), mean(kF32, 1, rows), entropy(kF32, 1, rows);
    Tensor want_lse(kReal, 1, rows), want_log_prob(kReal, 1, rows), want_mean(kReal, 1, rows),
        want_entropy(kReal, 1, rows);
    cpu_.LogSoftmax({.logits = logits,
                     .targets = targets,
                     .lse = lse,
                     .log_prob = log_prob,
                     .mean_log_prob = mean,
                     .entropy = entropy});
    reference_->LogSoftmax({.logits = logits,
                            .targets = targets,
                            .lse = want_lse,
                            .log_prob = want_log_prob,
                            .mean_log_prob = want_mean,
                            .entropy = want_entropy});
    EXPECT_LE(WorstError(lse, want_lse, 1e-6, 1e-6), 1);
    EXPECT_LE(WorstError(log_prob, want_log_prob, 2e-6, 1e-6), 1);
    EXPECT_LE(WorstError(mean, want_mean, 2e-6, 1e-6), 1);
    EXPECT_LE(WorstError(entropy, want_entropy, 1e-5, 1e-6), 1);

    const int32_t reserved = static_cast<int32_t>(vocabulary / 2);
    const Tensor a = RandomTensor(kF32, 1, rows, 3), b = RandomTensor(kF32, 1, rows, 4),
                 c = RandomTensor(kF32, 1, rows, 5);
    LogSoftmaxBackwardArgs args = {
        .logits = logits, .lse = lse, .targets = targets, .a = a, .b = {}, .c = {}, .reserved = -1, .dlogits = {}};
    for (const bool all : {false, true}) {
      if (all) {
        args.b = b;
        args.c = c;
        args.reserved = reserved;
      }
      const PaddedTensor dlogits(Tensor(act(), rows, vocabulary), 2);
      Tensor expected(kReal, rows, vocabulary);
      LogSoftmaxBackwardArgs reference_args = args;
      args.dlogits = dlogits;
      reference_args.dlogits = expected;
      reference_args.lse = want_lse;
      cpu_.LogSoftmaxBackward(args);
      reference_->LogSoftmaxBackward(reference_args);
      EXPECT_LE(WorstError(dlogits, expected, 2e-6, relative()), 1);
      EXPECT_TRUE(dlogits.Intact());
      if (act() == kF32) {
        const PaddedTensor in_place(logits, 3);
        args.logits = args.dlogits = in_place;
        cpu_.LogSoftmaxBackward(args);
        EXPECT_TRUE(BitEqual(in_place.view(), dlogits.view()));
        args.logits = logits;
      }
    }
  }
}

TEST_P(OpsTest, LogSoftmaxOfMaskedAndHugeLogits) {
  Tensor logits(kF32, 2, 20), lse(kF32, 1, 2), mean(kF32, 1, 2), entropy(kF32, 1, 2), log_prob(kF32, 1, 2);
  for (int64_t i = 0; i < 20; ++i) {
    SetElement(logits, 0, i, i < 2 ? 1e30 : -std::numeric_limits<double>::infinity());
    SetElement(logits, 1, i, i == 3 ? std::numeric_limits<double>::quiet_NaN() : 0);
  }
  const std::vector<int32_t> targets = {1, 0};
  cpu_.LogSoftmax({.logits = logits,
                   .targets = targets,
                   .lse = lse,
                   .log_prob = log_prob,
                   .mean_log_prob = mean,
                   .entropy = entropy});
  EXPECT_EQ(GetElement(lse, 0, 0), static_cast<double>(1e30f));
  EXPECT_NEAR(GetElement(entropy, 0, 0), std::log(2.0), 1e-6);
  EXPECT_TRUE(std::isnan(GetElement(lse, 0, 1)));
}

// Draws from a product's rows, and what the same draws are by the product, its logits and LogSoftmax.
TEST_P(OpsTest, DrawGivesTheLogProbabilityOfItsLogits) {
  for (const auto& [rows, k, vocabulary] :
       {std::tuple{1, 33, 7}, {3, 64, 480}, {9, 31, 481}, {140, 48, 1500}, {33, 16, 5000}}) {
    const Tensor a = RandomTensor(act(), rows, k, 1), weight = RandomTensor(act(), vocabulary, k, 2);
    const auto packed = cpu_.NewPacked(act(), k, vocabulary);
    cpu_.Pack({.weight = weight, .out = packed.get()});
    Random random(3);
    std::vector<DrawUniforms> uniforms;
    for (int row = 0; row < rows; ++row)
      uniforms.push_back(row % 5 == 4 ? DrawUniforms{-1, -1}
                                      : DrawUniforms{random.UniformFloat(), random.UniformFloat()});
    for (const int32_t never : {-1, vocabulary / 2}) {
      std::vector<int32_t> ids(static_cast<size_t>(rows));
      Tensor log_prob(kF32, 1, rows), logits(kF32, rows, vocabulary), lse(kF32, 1, rows), expected(kF32, 1, rows);
      cpu_.Draw({.a = a, .b = packed.get(), .never = never, .uniforms = uniforms, .ids = ids, .log_prob = log_prob});
      cpu_.MatMul({.a = a, .b = packed.get(), .c = logits, .bias = {}});
      if (never >= 0) cpu_.Fill(logits.view().Cols(never, 1), -std::numeric_limits<float>::infinity());
      cpu_.LogSoftmax(
          {.logits = logits, .targets = ids, .lse = lse, .log_prob = expected, .mean_log_prob = {}, .entropy = {}});
      EXPECT_TRUE(BitEqual(log_prob, expected));
      for (int row = 0; row < rows; ++row) {
        const auto at = static_cast<size_t>(row);
        EXPECT_NE(ids[at], never);
        const float* z = logits.Row<float>(row);
        if (uniforms[at].block < 0) {
          EXPECT_EQ(ids[at], std::max_element(z, z + vocabulary) - z);
        }
        // A row alone, in another pool, gives what it gives among others.
        if (row % 10 != 0) continue;
        ThreadPool one(1);
        CpuOps alone(&one, GetParam().isa);
        int32_t id = -1;
        Tensor own(kF32, 1, 1);
        alone.Draw({.a = a.view().Rows(row, 1),
                    .b = packed.get(),
                    .never = never,
                    .uniforms = std::span(uniforms).subspan(at, 1),
                    .ids = {&id, 1},
                    .log_prob = own});
        EXPECT_EQ(id, ids[at]);
        EXPECT_TRUE(BitEqual(own, log_prob.view().Cols(row, 1)));
      }
    }
  }
}

TEST_P(OpsTest, DrawsFollowTheSoftmax) {
  constexpr int64_t kRows = 20000, kWidth = 4, kVocabulary = 600;
  Tensor a(act(), kRows, kWidth);
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t i = 0; i < kWidth; ++i) SetElement(a, r, i, 1);
  const auto packed = cpu_.NewPacked(act(), kWidth, kVocabulary);
  const Tensor weight = RandomTensor(act(), kVocabulary, kWidth, 2, 0.8);
  cpu_.Pack({.weight = weight, .out = packed.get()});
  Random random(5);
  std::vector<DrawUniforms> uniforms(kRows);
  for (DrawUniforms& u : uniforms) u = {random.UniformFloat(), random.UniformFloat()};
  std::vector<int32_t> ids(kRows);
  Tensor log_prob(kF32, 1, kRows);
  cpu_.Draw({.a = a, .b = packed.get(), .uniforms = uniforms, .ids = ids, .log_prob = log_prob});
  std::vector<int64_t> counts(kVocabulary);
  std::vector<double> probabilities(kVocabulary);
  for (size_t r = 0; r < ids.size(); ++r) {
    ++counts[static_cast<size_t>(ids[r])];
    probabilities[static_cast<size_t>(ids[r])] = std::exp(GetElement(log_prob, 0, static_cast<int64_t>(r)));
  }
  double mass = 0;
  for (size_t id = 0; id < counts.size(); ++id) {
    if (counts[id] == 0) continue;
    mass += probabilities[id];
    const double expected = probabilities[id] * kRows;
    EXPECT_NEAR(static_cast<double>(counts[id]), expected, 6 * std::sqrt(expected) + 6) << id;
  }
  EXPECT_GT(mass, 0.99);
}

// e^x itself, read off the gradient: with lse 0, a = -1 and a target elsewhere, dlogits = e^logit.
TEST_P(OpsTest, ExponentialIsWithinOneUnitInTheLastPlace) {
  if (act() != kF32) return;  // it has no other form
  constexpr int64_t kCount = 400001;
  Tensor logits(kF32, 1, kCount), out(kF32, 1, kCount), lse(kF32, 1, 1), a(kF32, 1, 1);
  for (int64_t i = 0; i < kCount; ++i) SetElement(logits, 0, i, -87.3 + 175.6 * static_cast<double>(i) / kCount);
  SetElement(a, 0, 0, -1);
  const std::vector<int32_t> targets = {0};
  cpu_.LogSoftmaxBackward(
      {.logits = logits, .lse = lse, .targets = targets, .a = a, .b = {}, .c = {}, .reserved = -1, .dlogits = out});
  double worst = 0;
  for (int64_t i = 1; i < kCount; ++i) {
    const double want = std::exp(GetElement(logits, 0, i));
    const double ulp = std::exp2(std::floor(std::log2(want)) - 23);
    worst = std::max(worst, std::abs(GetElement(out, 0, i) - want) / ulp);
  }
  EXPECT_LT(worst, 1);
  RecordProperty("worst_ulp_thousandths", static_cast<int>(worst * 1000));
}

TEST_P(OpsTest, MaxRatio) {
  for (const auto& [rows, vocabulary] : {std::pair{40, 5}, {40, 61}, {10, 512}, {3, 20001}}) {
    for (const double spread : {0.3, 2.0, 6.0}) {
      for (const auto& [epsilon, top_p] : {std::pair{0.01f, 0.95f}, {0.3f, 0.5f}, {1e-4f, 0.9f}, {0.9f, 0.99f}}) {
        for (const int32_t reserved : {-1, 3}) {
          const Tensor value = RandomTensor(kF32, rows, vocabulary, 1, 2),
                       behaviour = RandomTensor(kF32, rows, vocabulary, 2, spread);
          Tensor ratio(kF32, 1, rows), expected(kReal, 1, rows);
          MaxRatioArgs args = {.value_logits = value,
                               .behaviour_logits = behaviour,
                               .epsilon = epsilon,
                               .top_p = top_p,
                               .reserved = reserved,
                               .max_ratio = ratio};
          cpu_.MaxRatio(args);
          args.max_ratio = expected;
          reference_->MaxRatio(args);
          EXPECT_LE(WorstError(ratio, expected, 1e-7, 3e-5), 1)
              << vocabulary << " " << spread << " " << epsilon << " " << reserved;
        }
      }
    }
  }
}

// Eight ids of probability 1/8: a nucleus of 0.5 holds the first four of them that are not reserved.
TEST_P(OpsTest, MaxRatioTakesTiesInOrderOfId) {
  for (const int32_t reserved : {-1, 1}) {
    const int64_t vocabulary = reserved < 0 ? 8 : 9;
    for (int64_t favourite = 0; favourite < vocabulary; ++favourite) {
      Tensor value(kF32, 1, vocabulary), behaviour(kF32, 1, vocabulary), ratio(kF32, 1, 1);
      SetElement(value, 0, favourite, 10);
      cpu_.MaxRatio({.value_logits = value,
                     .behaviour_logits = behaviour,
                     .epsilon = 0.2f,
                     .top_p = 0.5f,
                     .reserved = reserved,
                     .max_ratio = ratio});
      const bool inside = favourite != reserved && favourite < (reserved < 0 ? 4 : 5);
      EXPECT_EQ(GetElement(ratio, 0, 0) == 1, inside) << favourite;
    }
  }
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

// A row alone gives the bits it gives among others, with any number of threads.
TEST_P(OpsTest, RowsDoNotDependOnTheBatch) {
  constexpr int64_t kRows = 50, kDim = 300;
  ThreadPool one(1);
  CpuOps alone(&one, GetParam().isa);
  const Tensor x = RandomTensor(kF32, kRows, kDim, 1), weight = RandomTensor(kF32, 1, kDim, 2);
  const Tensor gate_up = RandomTensor(act(), kRows, 2 * kDim, 3);
  const auto targets = RandomIds(kRows, kDim, 4);
  const std::vector<int32_t> positions(kRows, 0);
  const Tensor cos = RandomTensor(kF32, 1, 15, 5), sin = RandomTensor(kF32, 1, 15, 6),
               norm = RandomTensor(kF32, 1, 30, 7);
  const Tensor a = RandomTensor(kF32, 1, kRows, 8);
  struct Outputs {
    Tensor normed, inv_rms, h, rotated, lse, log_prob, mean, entropy, dlogits, ratio;
  };
  const auto run = [&](Ops& ops, int64_t begin, int64_t rows) {
    Outputs out = {Tensor(act(), rows, kDim),     Tensor(kF32, 1, rows), Tensor(act(), rows, kDim),
                   Tensor(act(), rows, 2 * kDim), Tensor(kF32, 1, rows), Tensor(kF32, 1, rows),
                   Tensor(kF32, 1, rows),         Tensor(kF32, 1, rows), Tensor(act(), rows, kDim),
                   Tensor(kF32, 1, rows)};
    const TensorView xs = x.view().Rows(begin, rows), gates = gate_up.view().Rows(begin, rows);
    const std::span<const int32_t> ids =
        std::span(targets).subspan(static_cast<size_t>(begin), static_cast<size_t>(rows));
    ops.RmsNorm({.x = xs, .weight = weight, .eps = 1e-5f, .y = out.normed, .inv_rms = out.inv_rms});
    ops.SwiGlu({.gate_up = gates, .h = out.h});
    ops.Rotary({.qkv = gates,
                .out = out.rotated,
                .positions = std::span(positions).first(static_cast<size_t>(rows)),
                .cos = cos,
                .sin = sin,
                .q_norm = norm,
                .k_norm = norm,
                .norm_eps = 1e-6f,
                .heads = 10,
                .kv_heads = 5,
                .head_dim = 30});
    ops.LogSoftmax({.logits = xs,
                    .targets = ids,
                    .lse = out.lse,
                    .log_prob = out.log_prob,
                    .mean_log_prob = out.mean,
                    .entropy = out.entropy});
    ops.LogSoftmaxBackward({.logits = xs,
                            .lse = out.lse,
                            .targets = ids,
                            .a = a.view().Cols(begin, rows),
                            .b = {},
                            .c = {},
                            .reserved = -1,
                            .dlogits = out.dlogits});
    ops.MaxRatio({.value_logits = xs, .behaviour_logits = xs, .max_ratio = out.ratio});
    return out;
  };
  const Outputs all = run(cpu_, 0, kRows);
  const Outputs single = run(alone, 0, kRows);
  for (int64_t row = 0; row < kRows; row += 7) {
    const Outputs own = run(alone, row, 1);
    for (const Outputs* batch : {&all, &single}) {
      for (const auto member : {&Outputs::normed, &Outputs::h, &Outputs::rotated, &Outputs::dlogits})
        EXPECT_TRUE(BitEqual(own.*member, (batch->*member).view().Rows(row, 1)));
      for (const auto member :
           {&Outputs::inv_rms, &Outputs::lse, &Outputs::log_prob, &Outputs::mean, &Outputs::entropy, &Outputs::ratio})
        EXPECT_TRUE(BitEqual(own.*member, (batch->*member).view().Cols(row, 1)));
    }
  }
  // The statistics that need a second sum do not change the first.
  Tensor lse(kF32, 1, kRows);
  cpu_.LogSoftmax({.logits = x, .targets = {}, .lse = lse, .log_prob = {}, .mean_log_prob = {}, .entropy = {}});
  EXPECT_TRUE(BitEqual(lse, all.lse));
}

// Sums over rows are cut into pieces by size, never by the number of threads.
TEST_P(OpsTest, GradientsDoNotDependOnThreads) {
  constexpr int64_t kRows = 300, kDim = 200;
  const Tensor x = RandomTensor(kF32, kRows, kDim, 1), weight = RandomTensor(kF32, 1, kDim, 2),
               dy = RandomTensor(act(), kRows, kDim, 3);
  const Tensor inv_rms = RandomTensor(kF32, 1, kRows, 4);
  const auto ids = RandomIds(kRows, 7, 5);
  const auto run = [&](int threads) {
    ThreadPool pool(threads);
    CpuOps ops(&pool, GetParam().isa);
    std::vector<Tensor> out;
    out.emplace_back(kF32, 1, kDim);
    ops.BiasBackward({.dy = dy, .dbias = out[0]});
    out.emplace_back(kF32, kRows, kDim);
    out.emplace_back(kF32, 1, kDim);
    ops.RmsNormBackward({.dy = dy, .x = x, .weight = weight, .inv_rms = inv_rms, .dx = out[1], .dweight = out[2]});
    out.emplace_back(kF32, 7, kDim);
    ops.EmbeddingBackward({.ids = ids, .dout = x, .dtable = out[3]});
    out.emplace_back(kReal, 1, 1);
    SetElement(out[4], 0, 0, ops.SquaredNorm(x));
    return out;
  };
  const auto one = run(1), two = run(2), five = run(5);
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_TRUE(BitEqual(one[i], two[i])) << i;
    EXPECT_TRUE(BitEqual(one[i], five[i])) << i;
  }
}

TEST(OpsAcrossInstructionSets, Avx2AndAvx512GiveEqualBits) {
  if (!cpu::IsaAvailable(cpu::Isa::kAvx512)) GTEST_SKIP() << "no AVX-512";
  ThreadPool pool(1);
  CpuOps narrow(&pool, cpu::Isa::kAvx2), wide(&pool, cpu::Isa::kAvx512);
  const Tensor logits = RandomTensor(kF32, 6, 1003, 1, 5), weight = RandomTensor(kF32, 1, 1003, 2);
  const auto run = [&](Ops& ops) {
    std::vector<Tensor> out;
    for (int i = 0; i < 3; ++i) out.emplace_back(kF32, 1, 6);
    out.emplace_back(kBf16, 6, 1003);
    ops.LogSoftmax(
        {.logits = logits, .targets = {}, .lse = out[0], .log_prob = {}, .mean_log_prob = out[1], .entropy = out[2]});
    ops.RmsNorm({.x = logits, .weight = weight, .eps = 1e-5f, .y = out[3], .inv_rms = {}});
    return out;
  };
  const auto a = run(narrow), b = run(wide);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(BitEqual(a[i], b[i])) << i;
}

INSTANTIATE_TEST_SUITE_P(Cpu, OpsTest, ::testing::ValuesIn(AllCases()), [](const auto& test) {
  return std::string(cpu::IsaName(test.param.isa)) + "_" + DTypeName(test.param.act);
});

}  // namespace
}  // namespace quern
