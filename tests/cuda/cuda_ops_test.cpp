// The GPU's backend against the reference. One program runs it on a GPU, another the kernels' own text on the CPU
// (compute/cuda/emulator.h), with threads in three orders, which must make no difference.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "compute/cpu/cpu_ops.h"
#include "compute/key_pruning.h"
#include "tests/compute/test_tensors.h"
#include "tests/cuda/backend.h"

namespace quern {
namespace {

constexpr DType kF32 = DType::kF32, kBf16 = DType::kBf16, kReal = DType::kF64;
constexpr double kBf16Rounding = 0x1.01p-8;

class CudaOpsTest : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    ops_ = NewBackendUnderTest();
    if (ops_ == nullptr) GTEST_SKIP() << WhyNoBackend();
  }
  void TearDown() override { SetThreadOrder(0); }
  DType act() const { return GetParam(); }
  double relative() const { return act() == kBf16 ? kBf16Rounding : 1e-5; }

  // What `call` makes, for every order of threads: equal bits.
  template <typename Call>
  Tensor InEveryOrder(const Call& call) {
    Tensor out = call();
    for (const uint64_t order : {1, 7}) {
      SetThreadOrder(order);
      const Tensor again = call();
      EXPECT_TRUE(BitEqual(out, again)) << "order " << order;
    }
    SetThreadOrder(0);
    return out;
  }

  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Ops> reference_ = NewReferenceOps();
};

std::vector<int32_t> RandomIds(int64_t count, int64_t limit, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(limit))));
  return out;
}

TEST_P(CudaOpsTest, Embedding) {
  for (const auto& [vocabulary, dim] : {std::pair{11, 5}, {30, 288}}) {
    const auto ids = RandomIds(50, vocabulary, 1);
    const Tensor table = RandomTensor(act(), vocabulary, dim, 2);
    const PaddedTensor out(Tensor(kF32, 50, dim), 8);
    Tensor expected(kF32, 50, dim);
    ops_->Embedding({.ids = ids, .table = table, .out = out});
    reference_->Embedding({.ids = ids, .table = table, .out = expected});
    EXPECT_EQ(WorstError(out, expected, 1e-9, 0), 0);
    EXPECT_TRUE(out.Intact());
    const Tensor dout = RandomTensor(kF32, 50, dim, 3), start = RandomTensor(kF32, vocabulary, dim, 4);
    const Tensor expected_dtable = As(kReal, start);
    const Tensor dtable = InEveryOrder([&] {
      Tensor d = As(kF32, start);
      ops_->EmbeddingBackward({.ids = ids, .dout = dout, .dtable = d});
      return d;
    });
    reference_->EmbeddingBackward({.ids = ids, .dout = dout, .dtable = expected_dtable});
    EXPECT_LE(WorstError(dtable, expected_dtable, 1e-5, 1e-6), 1);
  }
}

TEST_P(CudaOpsTest, BiasBackward) {
  const Tensor dy = RandomTensor(act(), 77, 150, 1), start = RandomTensor(kF32, 1, 150, 2), dbias = As(kF32, start),
               expected = As(kReal, start);
  ops_->BiasBackward({.dy = dy, .dbias = dbias});
  reference_->BiasBackward({.dy = dy, .dbias = expected});
  EXPECT_LE(WorstError(dbias, expected, 1e-5, 1e-6), 1);
}

TEST_P(CudaOpsTest, RmsNorm) {
  for (const auto& [rows, dim, padding] : {std::tuple{1, 1, 0}, {3, 15, 5}, {20, 288, 8}, {66, 77, 3}, {2, 2304, 0}}) {
    const Tensor weight = RandomTensor(kF32, 1, dim, 1);
    const PaddedTensor x(RandomTensor(kF32, rows, dim, 2, 3), padding);
    const PaddedTensor y(Tensor(act(), rows, dim), padding);
    Tensor inv_rms(kF32, 1, rows), expected(kReal, rows, dim), expected_inv(kReal, 1, rows);
    ops_->RmsNorm({.x = x, .weight = weight, .eps = 1e-5f, .y = y, .inv_rms = inv_rms});
    reference_->RmsNorm({.x = x, .weight = weight, .eps = 1e-5f, .y = expected, .inv_rms = expected_inv});
    EXPECT_LE(WorstError(y, expected, 1e-6, relative()), 1) << dim;
    EXPECT_LE(WorstError(inv_rms, expected_inv, 1e-7, 2e-6), 1);
    EXPECT_TRUE(y.Intact());

    const PaddedTensor dy(RandomTensor(act(), rows, dim, 3), padding);
    const Tensor start = RandomTensor(kF32, rows, dim, 4), dweight_start = RandomTensor(kF32, 1, dim, 5);
    const Tensor expected_dx = As(kReal, start), expected_dw = As(kReal, dweight_start);
    reference_->RmsNormBackward(
        {.dy = dy, .x = x, .weight = weight, .inv_rms = expected_inv, .dx = expected_dx, .dweight = expected_dw});
    Tensor dweight;
    const Tensor dx = InEveryOrder([&] {
      Tensor d = As(kF32, start);
      dweight = As(kF32, dweight_start);
      ops_->RmsNormBackward({.dy = dy, .x = x, .weight = weight, .inv_rms = inv_rms, .dx = d, .dweight = dweight});
      return d;
    });
    EXPECT_LE(WorstError(dx, expected_dx, 1e-5, 1e-5), 1);
    EXPECT_LE(WorstError(dweight, expected_dw, 1e-4, 1e-5), 1);
  }
}

TEST_P(CudaOpsTest, Rotary) {
  struct Shape {
    int64_t heads, kv_heads, dim;
  };
  for (const Shape shape : {Shape{6, 6, 48}, {4, 2, 8}, {3, 1, 70}, {2, 2, 256}, {3, 1, 64}, {4, 2, 128}}) {
    for (const bool norm : {false, true}) {
      constexpr int64_t kRows = 35, kPositions = 33;
      const int64_t width = (shape.heads + 2 * shape.kv_heads) * shape.dim;
      Tensor cos(kF32, kPositions, shape.dim / 2), sin(kF32, kPositions, shape.dim / 2);
      for (int64_t p = 0; p < kPositions; ++p) {
        for (int64_t j = 0; j < shape.dim / 2; ++j) {
          SetElement(cos, p, j, std::cos(static_cast<double>(p * (j + 1))));
          SetElement(sin, p, j, std::sin(static_cast<double>(p * (j + 1))));
        }
      }
      const auto positions = RandomIds(kRows, kPositions, 1);
      const int64_t padding = shape.dim % 64 == 0 ? 8 : 6;
      const PaddedTensor qkv(RandomTensor(act(), kRows, width, 2), padding);
      const PaddedTensor out(Tensor(act(), kRows, width), shape.dim % 64 == 0 ? 16 : 4);
      const Tensor q_norm = RandomTensor(kF32, 1, shape.dim, 3), k_norm = RandomTensor(kF32, 1, shape.dim, 4);
      RotaryArgs args = {.qkv = qkv,
                         .out = out,
                         .positions = positions,
                         .cos = cos,
                         .sin = sin,
                         .q_norm = norm ? q_norm.view() : TensorView{},
                         .k_norm = norm ? k_norm.view() : TensorView{},
                         .heads = shape.heads,
                         .kv_heads = shape.kv_heads,
                         .head_dim = shape.dim};
      Tensor expected(kReal, kRows, width);
      RotaryArgs reference_args = args;
      reference_args.out = expected;
      ops_->Rotary(args);
      reference_->Rotary(reference_args);
      EXPECT_LE(WorstError(out, expected, 3e-6, relative()), 1) << "head dim " << shape.dim << " norm " << norm;
      EXPECT_TRUE(out.Intact());
      if (!norm) {
        const PaddedTensor in_place(qkv, padding);
        args.qkv = args.out = in_place;
        ops_->Rotary(args);
        EXPECT_TRUE(BitEqual(in_place.view(), out.view()));
        args.qkv = qkv;
      }
      const Tensor dout = RandomTensor(act(), kRows, width, 5), expected_dqkv = As(kReal, dout);
      Tensor dq_norm, dk_norm, expected_dq(kReal, 1, shape.dim), expected_dk(kReal, 1, shape.dim);
      const Tensor dqkv = InEveryOrder([&] {
        Tensor d = As(act(), dout);
        dq_norm = Tensor(kF32, 1, shape.dim);
        dk_norm = Tensor(kF32, 1, shape.dim);
        ops_->RotaryBackward({.forward = args,
                              .dqkv = d,
                              .dq_norm = norm ? dq_norm.view() : TensorView{},
                              .dk_norm = norm ? dk_norm.view() : TensorView{}});
        return d;
      });
      reference_->RotaryBackward(
          {.forward = args, .dqkv = expected_dqkv, .dq_norm = expected_dq, .dk_norm = expected_dk});
      EXPECT_LE(WorstError(dqkv, expected_dqkv, 1e-5, relative()), 1) << "head dim " << shape.dim << " norm " << norm;
      if (!norm) continue;
      EXPECT_LE(WorstError(dq_norm, expected_dq, 1e-4, 1e-5), 1);
      EXPECT_LE(WorstError(dk_norm, expected_dk, 1e-4, 1e-5), 1);
    }
  }
}

TEST_P(CudaOpsTest, SwiGlu) {
  for (const auto& [rows, width, padding] : {std::tuple{1, 1, 0}, {19, 37, 5}, {10, 264, 8}}) {
    const PaddedTensor gate_up(RandomTensor(act(), rows, 2 * width, 1, 3), padding);
    const PaddedTensor h(Tensor(act(), rows, width), padding);
    Tensor expected(kReal, rows, width);
    ops_->SwiGlu({.gate_up = gate_up, .h = h});
    reference_->SwiGlu({.gate_up = gate_up, .h = expected});
    EXPECT_LE(WorstError(h, expected, 1e-6, relative()), 1);
    EXPECT_TRUE(h.Intact());
    const Tensor dh = RandomTensor(act(), rows, width, 2);
    Tensor dgate_up(act(), rows, 2 * width), expected_grad(kReal, rows, 2 * width);
    ops_->SwiGluBackward({.gate_up = gate_up, .dh = dh, .dgate_up = dgate_up});
    reference_->SwiGluBackward({.gate_up = gate_up, .dh = dh, .dgate_up = expected_grad});
    EXPECT_LE(WorstError(dgate_up, expected_grad, 1e-5, relative()), 1);
    const PaddedTensor in_place(gate_up, padding);
    ops_->SwiGluBackward({.gate_up = in_place, .dh = dh, .dgate_up = in_place});
    EXPECT_TRUE(BitEqual(in_place.view(), dgate_up.view()));
  }
  Tensor far(act(), 1, 4), h(act(), 1, 2);
  SetElement(far, 0, 0, -200);
  SetElement(far, 0, 1, 1e30);
  SetElement(far, 0, 2, 1);
  SetElement(far, 0, 3, 1);
  ops_->SwiGlu({.gate_up = far, .h = h});
  EXPECT_NEAR(GetElement(h, 0, 0), 0, 1e-30);
  EXPECT_EQ(GetElement(h, 0, 1), GetElement(far, 0, 1));
}

TEST_P(CudaOpsTest, LogSoftmax) {
  for (const auto& [rows, vocabulary, padding] : {std::tuple{5, 1, 0}, {9, 17, 3}, {4, 512, 8}, {2, 9001, 1}}) {
    const auto targets = RandomIds(rows, vocabulary, 1);
    const PaddedTensor logits(RandomTensor(kF32, rows, vocabulary, 2, 4), padding);
    Tensor want_lse(kReal, 1, rows), want_log_prob(kReal, 1, rows), want_mean(kReal, 1, rows),
        want_entropy(kReal, 1, rows), log_prob, mean, entropy;
    const Tensor lse = InEveryOrder([&] {
      Tensor out(kF32, 1, rows);
      log_prob = Tensor(kF32, 1, rows);
      mean = Tensor(kF32, 1, rows);
      entropy = Tensor(kF32, 1, rows);
      ops_->LogSoftmax({.logits = logits,
                        .targets = targets,
                        .lse = out,
                        .log_prob = log_prob,
                        .mean_log_prob = mean,
                        .entropy = entropy});
      return out;
    });
    reference_->LogSoftmax({.logits = logits,
                            .targets = targets,
                            .lse = want_lse,
                            .log_prob = want_log_prob,
                            .mean_log_prob = want_mean,
                            .entropy = want_entropy});
    EXPECT_LE(WorstError(lse, want_lse, 2e-6, 1e-6), 1);
    EXPECT_LE(WorstError(log_prob, want_log_prob, 4e-6, 1e-6), 1);
    EXPECT_LE(WorstError(mean, want_mean, 4e-6, 1e-6), 1);
    EXPECT_LE(WorstError(entropy, want_entropy, 2e-5, 2e-6), 1);

    const Tensor a = RandomTensor(kF32, 1, rows, 3), b = RandomTensor(kF32, 1, rows, 4),
                 c = RandomTensor(kF32, 1, rows, 5);
    for (const bool all : {false, true}) {
      LogSoftmaxBackwardArgs args = {.logits = logits,
                                     .lse = lse,
                                     .targets = targets,
                                     .a = a,
                                     .b = all ? b.view() : TensorView{},
                                     .c = all ? c.view() : TensorView{},
                                     .reserved = all ? static_cast<int32_t>(vocabulary / 2) : -1,
                                     .dlogits = {}};
      const PaddedTensor dlogits(Tensor(act(), rows, vocabulary), padding);
      Tensor expected(kReal, rows, vocabulary);
      LogSoftmaxBackwardArgs reference_args = args;
      args.dlogits = dlogits;
      reference_args.dlogits = expected;
      reference_args.lse = want_lse;
      ops_->LogSoftmaxBackward(args);
      reference_->LogSoftmaxBackward(reference_args);
      EXPECT_LE(WorstError(dlogits, expected, 4e-6, relative()), 1);
      EXPECT_TRUE(dlogits.Intact());
    }
  }
}

TEST_P(CudaOpsTest, LogSoftmaxOfMaskedAndHugeLogits) {
  Tensor logits(kF32, 2, 20), lse(kF32, 1, 2), mean(kF32, 1, 2), entropy(kF32, 1, 2), log_prob(kF32, 1, 2);
  for (int64_t i = 0; i < 20; ++i) {
    SetElement(logits, 0, i, i < 2 ? 1e30 : -std::numeric_limits<double>::infinity());
    SetElement(logits, 1, i, i == 3 ? std::numeric_limits<double>::quiet_NaN() : 0);
  }
  const std::vector<int32_t> targets = {1, 0};
  ops_->LogSoftmax({.logits = logits,
                    .targets = targets,
                    .lse = lse,
                    .log_prob = log_prob,
                    .mean_log_prob = mean,
                    .entropy = entropy});
  EXPECT_EQ(GetElement(lse, 0, 0), static_cast<double>(1e30f));
  EXPECT_NEAR(GetElement(entropy, 0, 0), std::log(2.0), 1e-6);
  EXPECT_TRUE(std::isnan(GetElement(lse, 0, 1)));
}

// Products without rounding, so that both backends draw from the same logits: they take the same ids.
TEST_P(CudaOpsTest, DrawsWhatTheCpuDraws) {
  const auto exact = [&](int64_t rows, int64_t cols, uint64_t seed) {
    Tensor x(act(), rows, cols);
    Random random(seed);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) SetElement(x, r, c, 0.25 * (static_cast<double>(random.Below(17)) - 8));
    return x;
  };
  const auto device = NewDeviceUnderTest();
  ThreadPool pool(1);
  const auto cpu = NewCpuOps(&pool);
  struct Drawn {
    std::vector<int32_t> ids;
    Tensor log_prob, same;  // [1, R]; the second by the product and LogSoftmax
  };
  const auto draw = [](Ops& ops, const TensorView& a, const TensorView& weight, int32_t never,
                       std::span<const DrawUniforms> uniforms) {
    const auto packed = ops.NewPacked(a.dtype, a.cols, weight.rows);
    ops.Pack({.weight = weight, .out = packed.get()});
    const Tensor x = OnDevice(ops, a), ids(DType::kI32, 1, a.rows, ops.memory()),
                 log_prob(kF32, 1, a.rows, ops.memory());
    ops.Draw({.a = x, .b = packed.get(), .never = never, .uniforms = uniforms, .ids = ids, .log_prob = log_prob});
    const Tensor drawn = OnHost(ops, ids), logits(kF32, a.rows, weight.rows, ops.memory()),
                 lse(kF32, 1, a.rows, ops.memory()), same(kF32, 1, a.rows, ops.memory());
    Drawn out = {{drawn.Row<int32_t>(0), drawn.Row<int32_t>(0) + a.rows}, OnHost(ops, log_prob), {}};
    ops.MatMul({.a = x, .b = packed.get(), .c = logits, .bias = {}});
    if (never >= 0) ops.Fill(logits.view().Cols(never, 1), -std::numeric_limits<float>::infinity());
    ops.LogSoftmax(
        {.logits = logits, .targets = out.ids, .lse = lse, .log_prob = same, .mean_log_prob = {}, .entropy = {}});
    out.same = OnHost(ops, same);
    return out;
  };
  for (const auto& [rows, k, vocabulary] : {std::tuple{1, 3, 7}, {5, 2, 480}, {64, 4, 1111}, {9, 4, 2503}}) {
    const Tensor a = exact(rows, k, 1), weight = exact(vocabulary, k, 2);
    Random random(3);
    std::vector<DrawUniforms> uniforms;
    for (int row = 0; row < rows; ++row) {
      if (row % 4 == 3) {
        uniforms.push_back({-1, -1});
      } else {
        uniforms.push_back({random.UniformFloat(), random.UniformFloat(), row % 4 == 2 ? 0.25f : 1.0f});
      }
    }
    for (const int32_t never : {-1, vocabulary / 2}) {
      const Drawn want = draw(*cpu, a, weight, never, uniforms);
      for (const uint64_t order : {0, 1, 7}) {
        SetThreadOrder(order);
        const Drawn got = draw(*device, a, weight, never, uniforms);
        EXPECT_EQ(got.ids, want.ids);
        EXPECT_TRUE(BitEqual(got.log_prob, got.same));
        EXPECT_LE(WorstError(got.log_prob, want.log_prob, 4e-6, 1e-6), 1);
      }
      SetThreadOrder(0);
      const Drawn alone = draw(*device, a.view().Rows(rows - 1, 1), weight, never, std::span(uniforms).last(1));
      EXPECT_EQ(alone.ids[0], want.ids.back());
    }
  }
  // No logit that is finite.
  const Tensor one = exact(1, 1, 1);
  const std::vector<DrawUniforms> uniforms = {{0.5f, 0.5f}};
  for (Ops* ops : {device.get(), cpu.get()}) {
    const auto packed = ops->NewPacked(act(), 1, 1);
    ops->Pack({.weight = one, .out = packed.get()});
    const Tensor x = OnDevice(*ops, one), id(DType::kI32, 1, 1, ops->memory()), log_prob(kF32, 1, 1, ops->memory());
    ops->Draw({.a = x, .b = packed.get(), .never = 0, .uniforms = uniforms, .ids = id, .log_prob = log_prob});
    EXPECT_EQ(OnHost(*ops, id).Row<int32_t>(0)[0], -1);
    EXPECT_TRUE(std::isnan(OnHost(*ops, log_prob).Row<float>(0)[0]));
  }
}

TEST_P(CudaOpsTest, MaxRatio) {
  for (const auto& [rows, vocabulary] : {std::pair{6, 5}, {6, 61}, {2, 2001}}) {
    for (const double spread : {0.3, 6.0}) {
      for (const auto& [epsilon, top_p] : {std::pair{0.01f, 0.95f}, {0.3f, 0.5f}, {1e-4f, 0.9f}}) {
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
          ops_->MaxRatio(args);
          args.max_ratio = expected;
          reference_->MaxRatio(args);
          EXPECT_LE(WorstError(ratio, expected, 1e-7, 3e-5), 1)
              << vocabulary << " " << spread << " " << epsilon << " " << reserved;
        }
      }
    }
  }
  // Eight ids of probability 1/8: a nucleus of 0.5 holds the first four of them.
  for (int64_t favourite = 0; favourite < 8; ++favourite) {
    Tensor value(kF32, 1, 8), behaviour(kF32, 1, 8), ratio(kF32, 1, 1);
    SetElement(value, 0, favourite, 10);
    ops_->MaxRatio(
        {.value_logits = value, .behaviour_logits = behaviour, .epsilon = 0.2f, .top_p = 0.5f, .max_ratio = ratio});
    EXPECT_EQ(GetElement(ratio, 0, 0) == 1, favourite < 4) << favourite;
  }
}

TEST_P(CudaOpsTest, AdamWLerpNormCastFill) {
  constexpr int64_t kCount = 17003;
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
                      .weight_decay = 0.1f,
                      .grad_scale = 0.5f,
                      .step = step};
    ops_->AdamW(args);
    args.param = want_param;
    args.m = want_m;
    args.v = want_v;
    reference_->AdamW(args);
  }
  EXPECT_LE(WorstError(param, want_param, 1e-6, 1e-6), 1);
  EXPECT_LE(WorstError(m, want_m, 1e-7, 1e-6), 1);
  EXPECT_LE(WorstError(v, want_v, 1e-7, 1e-6), 1);
  EXPECT_NEAR(ops_->SquaredNorm(start) / reference_->SquaredNorm(start), 1, 1e-12);

  const Tensor other = RandomTensor(act(), 1, 1000, 2), begin = RandomTensor(kF32, 1, 1000, 3),
               average = As(kF32, begin), want = As(kReal, begin);
  ops_->Lerp(other, 0.1f, average);
  reference_->Lerp(other, 0.1f, want);
  EXPECT_LE(WorstError(average, want, 1e-6, 1e-6), 1);
  const Tensor matrix = RandomTensor(act(), 3, 408, 3);
  for (const DType to : {kBf16, DType::kF16, kF32}) {
    const PaddedTensor narrow(Tensor(to, 3, 408), 5);
    Tensor expected(to, 3, 408);
    ops_->Cast(matrix, narrow);
    reference_->Cast(matrix, expected);
    EXPECT_TRUE(BitEqual(narrow.view(), expected));
    EXPECT_TRUE(narrow.Intact());
    ops_->Fill(narrow, 2.5f);
    EXPECT_EQ(GetElement(narrow, 2, 407), 2.5);
    EXPECT_TRUE(narrow.Intact());
  }
}

TEST_P(CudaOpsTest, GatherAndScatterRows) {
  for (const int64_t cols : {19, 64}) {
    const Tensor x = RandomTensor(act(), 7, cols, 1);
    const std::vector<int64_t> rows = {6, 0, 3};
    Tensor y(act(), 3, cols), back(act(), 7, cols), expected(act(), 3, cols);
    ops_->GatherRows({.x = x, .rows = rows, .y = y});
    reference_->GatherRows({.x = x, .rows = rows, .y = expected});
    EXPECT_TRUE(BitEqual(y, expected));
    ops_->ScatterRows({.x = y, .rows = rows, .y = back});
    for (const int64_t row : rows) EXPECT_TRUE(BitEqual(back.view().Rows(row, 1), x.view().Rows(row, 1)));
    EXPECT_EQ(GetElement(back, 1, 0), 0);
  }
}

TEST_P(CudaOpsTest, Products) {
  for (const auto& [rows, k, n] : {std::tuple{1, 1, 1}, {3, 33, 49}, {20, 64, 32}}) {
    for (const bool transposed : {false, true}) {
      const Tensor weight = RandomTensor(kF32, transposed ? k : n, transposed ? n : k, 1, 0.3);
      const auto packed = ops_->NewPacked(act(), k, n), expected = reference_->NewPacked(act(), k, n);
      ops_->Pack({.weight = weight, .transposed = transposed, .out = packed.get()});
      reference_->Pack({.weight = weight, .transposed = transposed, .out = expected.get()});
      const Tensor x = RandomTensor(act(), rows, k, 2), bias = RandomTensor(kF32, 1, n, 3);
      for (const DType out : {kF32, act()}) {
        const PaddedTensor y(Tensor(out, rows, n), 3);
        Tensor want(kReal, rows, n);
        ops_->MatMul({.a = x, .b = packed.get(), .c = y, .bias = bias});
        reference_->MatMul({.a = x, .b = expected.get(), .c = want, .bias = bias});
        // With a bf16 result the bias is rounded to bf16 as well.
        EXPECT_LE(WorstError(y, want, out == kBf16 ? 0x1p-7 : 1e-5, out == kBf16 ? 0x1.02p-7 : 1e-5), 1);
        EXPECT_TRUE(y.Intact());
      }
      const Tensor dy = RandomTensor(act(), rows, n, 4), start = RandomTensor(kF32, n, k, 5), dw = As(kF32, start),
                   want = As(kReal, start);
      ops_->MatMulGradWeight({.dy = dy, .x = x, .dw = dw});
      reference_->MatMulGradWeight({.dy = dy, .x = x, .dw = want});
      EXPECT_LE(WorstError(dw, want, 1e-4, 1e-5), 1);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cuda, CudaOpsTest, ::testing::Values(kF32, kBf16),
                         [](const auto& test) { return DTypeName(test.param); });

}  // namespace
}  // namespace quern
