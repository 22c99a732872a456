// The reference backend's backward of every operation against central differences of its own forward, in double.

#include <cmath>
#include <functional>
#include <numeric>

#include "tests/compute/test_tensors.h"

namespace quern {
namespace {

constexpr DType kReal = DType::kF64;

double Dot(const TensorView& a, const TensorView& b) {
  double sum = 0;
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t c = 0; c < a.cols; ++c) sum += GetElement(a, r, c) * GetElement(b, r, c);
  return sum;
}

// `gradient` is that of loss() with respect to x, everywhere.
void ExpectGradient(const std::function<double()>& loss, const TensorView& x, const TensorView& gradient,
                    const char* what) {
  constexpr double kStep = 1e-5;
  double largest = 0;
  for (int64_t r = 0; r < x.rows; ++r)
    for (int64_t c = 0; c < x.cols; ++c) largest = std::max(largest, std::abs(GetElement(gradient, r, c)));
  ASSERT_GT(largest, 0) << what;
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      const double at = GetElement(x, r, c);
      SetElement(x, r, c, at + kStep);
      const double above = loss();
      SetElement(x, r, c, at - kStep);
      const double below = loss();
      SetElement(x, r, c, at);
      ASSERT_NEAR((above - below) / (2 * kStep), GetElement(gradient, r, c), 1e-6 * largest)
          << what << " at " << r << ", " << c;
    }
  }
}

class GradientTest : public ::testing::Test {
 protected:
  std::unique_ptr<Ops> ops_ = NewReferenceOps();
};

TEST_F(GradientTest, MatMul) {
  const Tensor x = RandomTensor(kReal, 5, 7, 1), w = RandomTensor(kReal, 3, 7, 2), bias = RandomTensor(kReal, 1, 3, 3);
  const Tensor dy = RandomTensor(kReal, 5, 3, 4);
  Tensor y(kReal, 5, 3);
  const auto packed = ops_->NewPacked(kReal, 7, 3);
  const auto loss = [&] {
    ops_->Pack({.weight = w, .out = packed.get()});
    ops_->MatMul({.a = x, .b = packed.get(), .c = y, .bias = bias});
    return Dot(y, dy);
  };
  Tensor dx(kReal, 5, 7), dw(kReal, 3, 7), dbias(kReal, 1, 3);
  const auto backward = ops_->NewPacked(kReal, 3, 7);
  ops_->Pack({.weight = w, .transposed = true, .out = backward.get()});
  ops_->MatMul({.a = dy, .b = backward.get(), .c = dx, .bias = {}});
  ops_->MatMulGradWeight({.dy = dy, .x = x, .dw = dw});
  ops_->BiasBackward({.dy = dy, .dbias = dbias});
  ExpectGradient(loss, x, dx, "x");
  ExpectGradient(loss, w, dw, "w");
  ExpectGradient(loss, bias, dbias, "bias");
}

TEST_F(GradientTest, Embedding) {
  const std::vector<int32_t> ids = {3, 0, 3, 1};
  const Tensor table = RandomTensor(kReal, 5, 4, 1), dout = RandomTensor(kReal, 4, 4, 2);
  Tensor out(kReal, 4, 4), dtable(kReal, 5, 4);
  ops_->EmbeddingBackward({.ids = ids, .dout = dout, .dtable = dtable});
  ExpectGradient(
      [&] {
        ops_->Embedding({.ids = ids, .table = table, .out = out});
        return Dot(out, dout);
      },
      table, dtable, "table");
}

TEST_F(GradientTest, RmsNorm) {
  const Tensor x = RandomTensor(kReal, 4, 9, 1), weight = RandomTensor(kReal, 1, 9, 2),
               dy = RandomTensor(kReal, 4, 9, 3);
  Tensor y(kReal, 4, 9), inv_rms(kReal, 1, 4), dx(kReal, 4, 9), dweight(kReal, 1, 9);
  const auto loss = [&] {
    ops_->RmsNorm({.x = x, .weight = weight, .eps = 0.1f, .y = y, .inv_rms = inv_rms});
    return Dot(y, dy);
  };
  loss();
  ops_->RmsNormBackward({.dy = dy, .x = x, .weight = weight, .inv_rms = inv_rms, .dx = dx, .dweight = dweight});
  ExpectGradient(loss, x, dx, "x");
  ExpectGradient(loss, weight, dweight, "weight");
}

class RotaryGradientTest : public GradientTest, public ::testing::WithParamInterface<bool> {};

TEST_P(RotaryGradientTest, Rotary) {
  constexpr int64_t kHeads = 3, kKvHeads = 2, kDim = 6, kRows = 3;
  const std::vector<int32_t> positions = {0, 4, 2};
  Tensor cos(kReal, 5, kDim / 2), sin(kReal, 5, kDim / 2);
  for (int64_t p = 0; p < 5; ++p) {
    for (int64_t j = 0; j < kDim / 2; ++j) {
      SetElement(cos, p, j, std::cos(static_cast<double>(p) / (1 + static_cast<double>(j))));
      SetElement(sin, p, j, std::sin(static_cast<double>(p) / (1 + static_cast<double>(j))));
    }
  }
  constexpr int64_t kWidth = (kHeads + 2 * kKvHeads) * kDim;
  const Tensor qkv = RandomTensor(kReal, kRows, kWidth, 1), dout = RandomTensor(kReal, kRows, kWidth, 2);
  const Tensor q_norm = RandomTensor(kReal, 1, kDim, 3), k_norm = RandomTensor(kReal, 1, kDim, 4);
  Tensor out(kReal, kRows, kWidth), dq_norm(kReal, 1, kDim), dk_norm(kReal, 1, kDim);
  RotaryArgs forward = {.qkv = qkv,
                        .out = out,
                        .positions = positions,
                        .cos = cos,
                        .sin = sin,
                        .q_norm = {},
                        .k_norm = {},
                        .norm_eps = 0.01f,
                        .heads = kHeads,
                        .kv_heads = kKvHeads,
                        .head_dim = kDim};
  if (GetParam()) {
    forward.q_norm = q_norm;
    forward.k_norm = k_norm;
  }
  const auto loss = [&] {
    ops_->Rotary(forward);
    return Dot(out, dout);
  };
  const Tensor dqkv = As(kReal, dout);
  ops_->RotaryBackward({.forward = forward, .dqkv = dqkv, .dq_norm = dq_norm, .dk_norm = dk_norm});
  ExpectGradient(loss, qkv, dqkv, "qkv");
  if (GetParam()) {
    ExpectGradient(loss, q_norm, dq_norm, "q_norm");
    ExpectGradient(loss, k_norm, dk_norm, "k_norm");
  }
}

INSTANTIATE_TEST_SUITE_P(WithAndWithoutNorm, RotaryGradientTest, ::testing::Bool());

class AttentionGradientTest : public GradientTest, public ::testing::WithParamInterface<int64_t> {};

TEST_P(AttentionGradientTest, GroupedHeads) {
  constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 3;
  const std::vector<int64_t> lengths = {5, 1, 7};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  const KvLayout layout = {.dtype = kReal, .layers = 2, .kv_heads = kKvHeads, .head_dim = kDim};
  const TestPages pages(layout, lengths);
  const auto sequences = pages.AllRows(lengths);
  const Tensor qkv = RandomTensor(kReal, rows, (kHeads + 2 * kKvHeads) * kDim, 1);
  const Tensor dout = RandomTensor(kReal, rows, kHeads * kDim, 2);
  Tensor out(kReal, rows, kHeads * kDim), lse(kReal, rows, kHeads), dqkv(kReal, rows, qkv.cols());
  const auto loss = [&] {
    ops_->KvWrite({.qkv = qkv, .sequences = sequences, .layout = layout, .layer = 1, .heads = kHeads});
    ops_->Attention({.q = qkv.view().Cols(0, kHeads * kDim),
                     .sequences = sequences,
                     .layout = layout,
                     .layer = 1,
                     .heads = kHeads,
                     .scale = 0.7f,
                     .window = GetParam(),
                     .out = out,
                     .lse = lse});
    return Dot(out, dout);
  };
  loss();
  ops_->AttentionBackward({.qkv = qkv,
                           .sequences = sequences,
                           .heads = kHeads,
                           .kv_heads = kKvHeads,
                           .head_dim = kDim,
                           .scale = 0.7f,
                           .window = GetParam(),
                           .out = out,
                           .lse = lse,
                           .dout = dout,
                           .dqkv = dqkv});
  ExpectGradient(loss, qkv, dqkv, "qkv");
}

INSTANTIATE_TEST_SUITE_P(Windows, AttentionGradientTest, ::testing::Values(0, 1, 3));

TEST_F(GradientTest, SwiGlu) {
  const Tensor gate_up = RandomTensor(kReal, 3, 10, 1, 2), dh = RandomTensor(kReal, 3, 5, 2);
  Tensor h(kReal, 3, 5), dgate_up(kReal, 3, 10);
  ops_->SwiGluBackward({.gate_up = gate_up, .dh = dh, .dgate_up = dgate_up});
  ExpectGradient(
      [&] {
        ops_->SwiGlu({.gate_up = gate_up, .h = h});
        return Dot(h, dh);
      },
      gate_up, dgate_up, "gate_up");
}

// The loss that the three coefficients belong to: sum over rows of a log p(target) + b mean log p + c log p(reserved).
TEST_F(GradientTest, LogSoftmax) {
  constexpr int64_t kRows = 4, kVocabulary = 6;
  constexpr int32_t kReserved = 2;
  const std::vector<int32_t> targets = {0, 5, kReserved, 3}, reserved(kRows, kReserved);
  const Tensor logits = RandomTensor(kReal, kRows, kVocabulary, 1, 2);
  const Tensor a = RandomTensor(kReal, 1, kRows, 2), b = RandomTensor(kReal, 1, kRows, 3),
               c = RandomTensor(kReal, 1, kRows, 4);
  Tensor lse(kReal, 1, kRows), log_prob(kReal, 1, kRows), mean(kReal, 1, kRows), log_reserved(kReal, 1, kRows);
  const auto loss = [&] {
    ops_->LogSoftmax(
        {.logits = logits, .targets = targets, .lse = lse, .log_prob = log_prob, .mean_log_prob = mean, .entropy = {}});
    ops_->LogSoftmax({.logits = logits,
                      .targets = reserved,
                      .lse = lse,
                      .log_prob = log_reserved,
                      .mean_log_prob = {},
                      .entropy = {}});
    return Dot(log_prob, a) + Dot(mean, b) + Dot(log_reserved, c);
  };
  loss();
  Tensor dlogits(kReal, kRows, kVocabulary);
  ops_->LogSoftmaxBackward({.logits = logits,
                            .lse = lse,
                            .targets = targets,
                            .a = a,
                            .b = b,
                            .c = c,
                            .reserved = kReserved,
                            .dlogits = dlogits});
  ExpectGradient(loss, logits, dlogits, "logits");
}

}  // namespace
}  // namespace quern
