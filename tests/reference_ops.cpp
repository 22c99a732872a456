#include "tests/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "tests/reference_parts.h"

namespace quern {

double GetElement(const TensorView& view, int64_t row, int64_t col) {
  switch (view.dtype) {
    case DType::kF64: return view.Row<double>(row)[col];
    case DType::kF32: return view.Row<float>(row)[col];
    case DType::kBf16: return static_cast<float>(view.Row<Bf16>(row)[col]);
    case DType::kF16: return HalfToFloat(view.Row<uint16_t>(row)[col]);
    case DType::kE4M3:
    case DType::kE5M2: return Fp8ToFloat(view.Row<uint8_t>(row)[col], view.dtype);
    default: QUERN_CHECK(false, DTypeName(view.dtype));
  }
  return 0;
}

void SetElement(const TensorView& view, int64_t row, int64_t col, double value) {
  switch (view.dtype) {
    case DType::kF64: view.Row<double>(row)[col] = value; break;
    case DType::kF32: view.Row<float>(row)[col] = static_cast<float>(value); break;
    case DType::kBf16: view.Row<Bf16>(row)[col] = Bf16(static_cast<float>(value)); break;
    case DType::kF16: view.Row<uint16_t>(row)[col] = FloatToHalf(static_cast<float>(value)); break;
    case DType::kI32: view.Row<int32_t>(row)[col] = static_cast<int32_t>(value); break;
    default: QUERN_CHECK(false, DTypeName(view.dtype));
  }
}

namespace {

using namespace reference;  // NOLINT: the parts of this class

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Log-sum-exp of a row without one column (-1: of all of it).
double LogSumExp(const TensorView& x, int64_t row, int64_t without = -1) {
  double max = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t i = 0; i < x.cols; ++i)
    if (i != without) max = std::max(max, Get(x, row, i));
  for (int64_t i = 0; i < x.cols; ++i)
    if (i != without) sum += std::exp(Get(x, row, i) - max);
  return max + std::log(sum);
}

class ReferenceOps : public Ops {
 public:
  const char* name() const override { return "reference"; }

  std::unique_ptr<PackedMatrix> NewPacked(DType dtype, int64_t k, int64_t n) override {
    return std::make_unique<Packed>(dtype, k, n);
  }

  void Quantize(const QuantizeArgs& args) override { reference::Quantize(args); }
  void Dequantize(const DequantizeArgs& args) override { reference::Dequantize(args); }
  void ColumnAmax(const ColumnAmaxArgs& args) override { reference::ColumnAmax(args); }
  void KvWrite(const KvWriteArgs& args) override { reference::KvWrite(args); }
  void Attention(const AttentionArgs& args) override { reference::Attention(args); }
  void AttentionBackward(const AttentionBackwardArgs& args) override { reference::AttentionBackward(args); }

  void Pack(const PackArgs& args) override {
    auto& out = static_cast<Packed&>(*args.out);
    if (IsFp8(out.dtype())) return reference::PackFp8(args, out);
    Tensor rounded(out.dtype(), 1, 1);
    for (int64_t k = 0; k < out.k(); ++k) {
      for (int64_t n = 0; n < out.n(); ++n) {
        Set(rounded, 0, 0, args.transposed ? Get(args.weight, k, n) : Get(args.weight, n, k));
        Set(out.values, k, n, Get(rounded, 0, 0));
      }
    }
  }

  void MatMul(const MatMulArgs& args) override {
    const auto& b = static_cast<const Packed&>(*args.b);
    for (int64_t t = 0; t < args.a.rows; ++t) {
      for (int64_t n = 0; n < b.n(); ++n) {
        double sum = args.bias.empty() ? 0 : Get(args.bias, 0, n);
        const double scale = args.a_scale.empty() ? 1 : Get(args.a_scale, 0, args.a_scale.cols == 1 ? 0 : t);
        for (int64_t k = 0; k < b.k(); ++k) sum += Get(args.a, t, k) * scale * Get(b.values, k, n);
        Set(args.c, t, n, args.accumulate ? Get(args.c, t, n) + sum : sum);
      }
    }
  }

  void MatMulGradWeight(const MatMulGradWeightArgs& args) override {
    for (int64_t n = 0; n < args.dw.rows; ++n) {
      for (int64_t k = 0; k < args.dw.cols; ++k) {
        double sum = 0;
        for (int64_t t = 0; t < args.x.rows; ++t) sum += Get(args.dy, t, n) * Get(args.x, t, k);
        AddTo(args.dw, n, k, sum);
      }
    }
  }

  void BiasBackward(const BiasBackwardArgs& args) override {
    for (int64_t n = 0; n < args.dy.cols; ++n) {
      double sum = 0;
      for (int64_t t = 0; t < args.dy.rows; ++t) sum += Get(args.dy, t, n);
      AddTo(args.dbias, 0, n, sum);
    }
  }

  void Embedding(const EmbeddingArgs& args) override {
    for (int64_t t = 0; t < args.out.rows; ++t)
      for (int64_t d = 0; d < args.out.cols; ++d)
        Set(args.out, t, d, Get(args.table, args.ids[static_cast<size_t>(t)], d));
  }

  void EmbeddingBackward(const EmbeddingBackwardArgs& args) override {
    for (int64_t t = 0; t < args.dout.rows; ++t)
      for (int64_t d = 0; d < args.dout.cols; ++d)
        AddTo(args.dtable, args.ids[static_cast<size_t>(t)], d, Get(args.dout, t, d));
  }

  void RmsNorm(const RmsNormArgs& args) override {
    for (int64_t t = 0; t < args.x.rows; ++t) {
      const double rms = Rms(args.x, t, 0, args.x.cols, static_cast<double>(args.eps));
      for (int64_t d = 0; d < args.x.cols; ++d) Set(args.y, t, d, Get(args.x, t, d) / rms * Get(args.weight, 0, d));
      if (!args.inv_rms.empty()) Set(args.inv_rms, 0, t, 1 / rms);
    }
    CastOutput(*this, args.y, args.cast);
  }

  // y_i = x_i w_i / r with r = sqrt(mean x^2 + eps): dy_i/dx_j = w_i (delta_ij / r - x_i x_j / (D r^3)).
  void RmsNormBackward(const RmsNormBackwardArgs& args) override {
    const int64_t dim = args.x.cols;
    for (int64_t t = 0; t < args.x.rows; ++t) {
      const double inv = Get(args.inv_rms, 0, t);
      double dot = 0;
      for (int64_t i = 0; i < dim; ++i) dot += Get(args.dy, t, i) * Get(args.weight, 0, i) * Get(args.x, t, i);
      for (int64_t j = 0; j < dim; ++j) {
        const double x = Get(args.x, t, j), dy = Get(args.dy, t, j);
        AddTo(args.dx, t, j, dy * Get(args.weight, 0, j) * inv - x * dot * inv * inv * inv / static_cast<double>(dim));
        AddTo(args.dweight, 0, j, dy * x * inv);
      }
    }
  }

  void Rotary(const RotaryArgs& args) override {
    const int64_t half = args.head_dim / 2;
    for (int64_t t = 0; t < args.qkv.rows; ++t) {
      const int64_t position = args.positions[static_cast<size_t>(t)];
      for (int64_t head = 0; head < args.heads + args.kv_heads; ++head) {
        const int64_t at = head * args.head_dim;
        std::vector<double> x = NormedHead(args, t, head);
        for (int64_t j = 0; j < half; ++j) {
          const double cos = Get(args.cos, position, j), sin = Get(args.sin, position, j);
          const double a = x[static_cast<size_t>(j)], b = x[static_cast<size_t>(j + half)];
          Set(args.out, t, at + j, a * cos - b * sin);
          Set(args.out, t, at + j + half, b * cos + a * sin);
        }
      }
      for (int64_t i = (args.heads + args.kv_heads) * args.head_dim; i < args.qkv.cols; ++i)
        Set(args.out, t, i, Get(args.qkv, t, i));
    }
    WritePages(*this, args);
  }

  void RotaryBackward(const RotaryBackwardArgs& args) override {
    const RotaryArgs& forward = args.forward;
    const int64_t dim = forward.head_dim, half = dim / 2;
    for (int64_t t = 0; t < args.dqkv.rows; ++t) {
      const int64_t position = forward.positions[static_cast<size_t>(t)];
      for (int64_t head = 0; head < forward.heads + forward.kv_heads; ++head) {
        const int64_t at = head * dim;
        std::vector<double> du(static_cast<size_t>(dim));
        for (int64_t j = 0; j < half; ++j) {
          const double cos = Get(forward.cos, position, j), sin = Get(forward.sin, position, j);
          const double a = Get(args.dqkv, t, at + j), b = Get(args.dqkv, t, at + j + half);
          du[static_cast<size_t>(j)] = a * cos + b * sin;
          du[static_cast<size_t>(j + half)] = b * cos - a * sin;
        }
        if (!forward.q_norm.empty()) {
          const bool query = head < forward.heads;
          const TensorView& weight = query ? forward.q_norm : forward.k_norm;
          const TensorView& dweight = query ? args.dq_norm : args.dk_norm;
          const double rms = Rms(forward.qkv, t, at, dim, static_cast<double>(forward.norm_eps));
          double dot = 0;
          for (int64_t i = 0; i < dim; ++i)
            dot += du[static_cast<size_t>(i)] * Get(weight, 0, i) * Get(forward.qkv, t, at + i);
          for (int64_t j = 0; j < dim; ++j) {
            const double x = Get(forward.qkv, t, at + j), d = du[static_cast<size_t>(j)];
            AddTo(dweight, 0, j, d * x / rms);
            du[static_cast<size_t>(j)] =
                d * Get(weight, 0, j) / rms - x * dot / (rms * rms * rms * static_cast<double>(dim));
          }
        }
        for (int64_t j = 0; j < dim; ++j) Set(args.dqkv, t, at + j, du[static_cast<size_t>(j)]);
      }
    }
  }

  void SwiGlu(const SwiGluArgs& args) override {
    for (int64_t t = 0; t < args.h.rows; ++t) {
      for (int64_t f = 0; f < args.h.cols; ++f) {
        const double gate = Get(args.gate_up, t, f), up = Get(args.gate_up, t, f + args.h.cols);
        Set(args.h, t, f, gate * Sigmoid(gate) * up);
      }
    }
    CastOutput(*this, args.h, args.cast);
  }

  void SwiGluBackward(const SwiGluBackwardArgs& args) override {
    const int64_t width = args.dh.cols;
    for (int64_t t = 0; t < args.dh.rows; ++t) {
      for (int64_t f = 0; f < width; ++f) {
        const double gate = Get(args.gate_up, t, f), up = Get(args.gate_up, t, f + width);
        const double dh = Get(args.dh, t, f), s = Sigmoid(gate);
        Set(args.dgate_up, t, f, dh * up * (s + gate * s * (1 - s)));
        Set(args.dgate_up, t, f + width, dh * gate * s);
      }
    }
  }

  void LogSoftmax(const LogSoftmaxArgs& args) override {
    for (int64_t r = 0; r < args.logits.rows; ++r) {
      const double lse = LogSumExp(args.logits, r);
      double mean = 0, entropy = 0;
      for (int64_t v = 0; v < args.logits.cols; ++v) {
        const double log_prob = Get(args.logits, r, v) - lse;
        mean += log_prob / static_cast<double>(args.logits.cols);
        if (std::exp(log_prob) > 0) entropy -= std::exp(log_prob) * log_prob;
      }
      Set(args.lse, 0, r, lse);
      if (!args.log_prob.empty())
        Set(args.log_prob, 0, r, Get(args.logits, r, args.targets[static_cast<size_t>(r)]) - lse);
      if (!args.mean_log_prob.empty()) Set(args.mean_log_prob, 0, r, mean);
      if (!args.entropy.empty()) Set(args.entropy, 0, r, entropy);
    }
  }

  void LogSoftmaxBackward(const LogSoftmaxBackwardArgs& args) override {
    for (int64_t r = 0; r < args.logits.rows; ++r) {
      const double a = Get(args.a, 0, r);
      const double b = args.b.empty() ? 0 : Get(args.b, 0, r), c = args.c.empty() ? 0 : Get(args.c, 0, r);
      for (int64_t v = 0; v < args.logits.cols; ++v) {
        const double p = std::exp(Get(args.logits, r, v) - Get(args.lse, 0, r));
        Set(args.dlogits, r, v,
            a * ((v == args.targets[static_cast<size_t>(r)]) - p) +
                b * (1 / static_cast<double>(args.logits.cols) - p) + c * ((v == args.reserved) - p));
      }
    }
  }

  void MaxRatio(const MaxRatioArgs& args) override {
    const int64_t n = args.value_logits.cols;
    for (int64_t r = 0; r < args.value_logits.rows; ++r) {
      const double value_lse = LogSumExp(args.value_logits, r);
      const double behaviour_lse = LogSumExp(args.behaviour_logits, r, args.reserved);
      std::vector<int64_t> ids(static_cast<size_t>(n));
      std::iota(ids.begin(), ids.end(), int64_t{0});
      std::vector<double> behaviour;
      for (int64_t v = 0; v < n; ++v) behaviour.push_back(std::exp(Get(args.behaviour_logits, r, v) - behaviour_lse));
      const auto p = [&](int64_t v) { return behaviour[static_cast<size_t>(v)]; };
      std::stable_sort(ids.begin(), ids.end(), [&](int64_t x, int64_t y) { return p(x) > p(y); });
      double mass = 0, best = 0;
      for (const int64_t v : ids) {
        if (v == args.reserved) continue;
        if (mass < static_cast<double>(args.top_p) || p(v) >= static_cast<double>(args.epsilon)) {
          const double ratio =
              std::exp(Get(args.value_logits, r, v) - value_lse) / std::max(p(v), static_cast<double>(args.epsilon));
          best = std::max(best, std::min(1.0, ratio));
        }
        mass += p(v);
      }
      Set(args.max_ratio, 0, r, best);
    }
  }

  void GatherRows(const GatherRowsArgs& args) override {
    for (size_t i = 0; i < args.rows.size(); ++i)
      for (int64_t c = 0; c < args.x.cols; ++c) Set(args.y, static_cast<int64_t>(i), c, Get(args.x, args.rows[i], c));
  }

  void ScatterRows(const ScatterRowsArgs& args) override {
    for (size_t i = 0; i < args.rows.size(); ++i)
      for (int64_t c = 0; c < args.x.cols; ++c) Set(args.y, args.rows[i], c, Get(args.x, static_cast<int64_t>(i), c));
  }

  void AdamW(const AdamWArgs& args) override {
    if (IsFp8(args.m.dtype)) return reference::AdamWFp8(*this, args);
    const double beta1 = args.beta1, beta2 = args.beta2, rate = args.learning_rate;
    const auto step = static_cast<double>(args.step);
    for (int64_t i = 0; i < args.param.cols; ++i) {
      const double g = Get(args.grad, 0, i) * args.grad_scale;
      const double m = beta1 * Get(args.m, 0, i) + (1 - beta1) * g;
      const double v = beta2 * Get(args.v, 0, i) + (1 - beta2) * g * g;
      const double p = Get(args.param, 0, i);
      Set(args.m, 0, i, m);
      Set(args.v, 0, i, v);
      const double unbiased = m / (1 - std::pow(beta1, step));
      const double root = std::sqrt(v / (1 - std::pow(beta2, step)));
      Set(args.param, 0, i, p - rate * args.weight_decay * p - rate * unbiased / (root + args.eps));
    }
  }

  double SquaredNorm(const TensorView& x) override {
    double sum = 0;
    for (int64_t r = 0; r < x.rows; ++r)
      for (int64_t c = 0; c < x.cols; ++c) sum += Get(x, r, c) * Get(x, r, c);
    return sum;
  }

  void Lerp(const TensorView& x, float alpha, const TensorView& y) override {
    for (int64_t i = 0; i < y.cols; ++i) AddTo(y, 0, i, static_cast<double>(alpha) * (Get(x, 0, i) - Get(y, 0, i)));
  }

  void Cast(const TensorView& x, const TensorView& y) override {
    for (int64_t r = 0; r < x.rows; ++r)
      for (int64_t c = 0; c < x.cols; ++c) Set(y, r, c, Get(x, r, c));
  }

  void Fill(const TensorView& x, float value) override {
    for (int64_t r = 0; r < x.rows; ++r)
      for (int64_t c = 0; c < x.cols; ++c) Set(x, r, c, static_cast<double>(value));
  }

 private:
  static double Rms(const TensorView& x, int64_t row, int64_t begin, int64_t count, double eps) {
    double sum = 0;
    for (int64_t i = begin; i < begin + count; ++i) sum += Get(x, row, i) * Get(x, row, i);
    return std::sqrt(sum / static_cast<double>(count) + eps);
  }

  static std::vector<double> NormedHead(const RotaryArgs& args, int64_t row, int64_t head) {
    std::vector<double> out(static_cast<size_t>(args.head_dim));
    const int64_t at = head * args.head_dim;
    const TensorView& weight = head < args.heads ? args.q_norm : args.k_norm;
    for (int64_t j = 0; j < args.head_dim; ++j) {
      out[static_cast<size_t>(j)] = Get(args.qkv, row, at + j);
      if (!weight.empty()) {
        out[static_cast<size_t>(j)] *=
            Get(weight, 0, j) / Rms(args.qkv, row, at, args.head_dim, static_cast<double>(args.norm_eps));
      }
    }
    return out;
  }
};

}  // namespace

std::unique_ptr<Ops> NewReferenceOps() { return std::make_unique<ReferenceOps>(); }

}  // namespace quern
