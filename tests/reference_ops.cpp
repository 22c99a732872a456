#include "tests/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "base/random.h"

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

double Get(const TensorView& view, int64_t row, int64_t col) { return GetElement(view, row, col); }
void Set(const TensorView& view, int64_t row, int64_t col, double value) { SetElement(view, row, col, value); }
void AddTo(const TensorView& view, int64_t row, int64_t col, double value) {
  SetElement(view, row, col, GetElement(view, row, col) + value);
}
// The codes of the largest value not above and the smallest not below x >= 0, by search.
std::pair<uint8_t, uint8_t> Neighbours(double x, const Fp8Format& format) {
  uint8_t low = 0, high = 0;
  for (int code = 0; code < 0x7f; ++code) {
    const double value = Fp8ToFloat(static_cast<uint8_t>(code), format.dtype);
    if (value > format.max) break;
    high = static_cast<uint8_t>(code);
    if (value <= x) low = high;
    if (value >= x) break;
  }
  return {low, high};
}

uint8_t NearestCode(double x, const Fp8Format& format) {
  if (std::isnan(x)) return 0x7f;
  const auto [low, high] = Neighbours(std::abs(x), format);
  const double below = std::abs(x) - Fp8ToFloat(low, format.dtype),
               above = Fp8ToFloat(high, format.dtype) - std::abs(x);
  const uint8_t code = below < above || (below == above && low % 2 == 0) ? low : high;
  return static_cast<uint8_t>(code | (std::signbit(x) ? 0x80 : 0));
}

uint8_t StochasticCode(double x, const Fp8Format& format, uint32_t bits) {
  const int width = format.dtype == DType::kE4M3 ? 20 : 21;
  const auto [low, high] = Neighbours(std::abs(x), format);
  const double step = Fp8ToFloat(high, format.dtype) - Fp8ToFloat(low, format.dtype);
  const double share = step > 0 ? (std::abs(x) - Fp8ToFloat(low, format.dtype)) / step : 0;
  const auto units = static_cast<uint32_t>(std::clamp(share, 0.0, 1.0) * std::ldexp(1, width));
  const bool up = ((units + (bits & ((1u << width) - 1))) >> width) != 0;
  return static_cast<uint8_t>((up ? high : low) | (std::signbit(x) ? 0x80 : 0));
}

double FloorPowerOfTwo(double x) { return std::exp2(std::floor(std::log2(x))); }

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

class ReferencePacked : public PackedMatrix {
 public:
  ReferencePacked(DType dtype, int64_t k, int64_t n) : PackedMatrix(dtype, k, n), values(DType::kF64, k, n) {}
  int64_t bytes() const override { return values.bytes(); }
  Tensor values;  // [k, n]
};

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
    return std::make_unique<ReferencePacked>(dtype, k, n);
  }

  void Quantize(const QuantizeArgs& args) override {
    using Scale = QuantizeArgs::Scale;
    const auto scaled = [&](int64_t t, int64_t d) {
      return Get(args.x, t, d) * (args.column_scale.empty() ? 1 : Get(args.column_scale, 0, d));
    };
    double all = 0;
    std::vector<double> amax(static_cast<size_t>(args.x.rows), 0);
    for (int64_t t = 0; t < args.x.rows; ++t) {
      for (int64_t d = 0; d < args.x.cols; ++d)
        amax[static_cast<size_t>(t)] = std::max(amax[static_cast<size_t>(t)], std::abs(scaled(t, d)));
      all = std::max(all, amax[static_cast<size_t>(t)]);
    }
    const auto scale_for = [&](double most) { return most == 0 ? 1 : 1 / FloorPowerOfTwo(args.format.max / most); };
    if (args.rule == Scale::kTensor) Set(args.scale, 0, 0, scale_for(all));
    for (int64_t t = 0; t < args.x.rows; ++t) {
      if (args.rule == Scale::kRow) Set(args.scale, 0, t, scale_for(amax[static_cast<size_t>(t)]));
      const double scale = Get(args.scale, 0, args.rule == Scale::kRow ? t : 0);
      for (int64_t d = 0; d < args.x.cols; ++d) {
        const double v = scaled(t, d) / scale;
        const auto bits = Philox4x32({static_cast<uint32_t>(d / 4), static_cast<uint32_t>(t), 1, 0},
                                     {static_cast<uint32_t>(args.seed), static_cast<uint32_t>(args.seed >> 32)});
        const uint8_t code = args.stochastic ? StochasticCode(v, args.format, bits[static_cast<size_t>(d % 4)])
                                             : NearestCode(v, args.format);
        args.codes.Row<uint8_t>(t)[d] = code;
        if (args.counts.empty()) continue;
        args.counts.Row<int32_t>(0)[0] += std::abs(v) > args.format.max;
        args.counts.Row<int32_t>(0)[1] += v != 0 && (code & 0x7f) == 0;
      }
    }
    if (!args.amax.empty()) Set(args.amax, 0, 0, std::max(all, Get(args.amax, 0, 0)));
  }

  void Dequantize(const DequantizeArgs& args) override {
    for (int64_t t = 0; t < args.codes.rows; ++t)
      for (int64_t d = 0; d < args.codes.cols; ++d)
        Set(args.y, t, d,
            Get(args.codes, t, d) * Get(args.scale, 0, args.scale.cols == 1 ? 0 : t) /
                (args.column_scale.empty() ? 1 : Get(args.column_scale, 0, d)));
  }

  void ColumnAmax(const ColumnAmaxArgs& args) override {
    for (int64_t t = 0; t < args.x.rows; ++t)
      for (int64_t d = 0; d < args.x.cols; ++d)
        Set(args.amax, 0, d, std::max(Get(args.amax, 0, d), std::abs(Get(args.x, t, d))));
  }

  void PackFp8(const PackArgs& args, ReferencePacked& out) {
    for (int64_t n = 0; n < out.n(); ++n) {
      const auto factor = [&](int64_t k) {
        return args.input_scale.empty() ? 1 : Get(args.input_scale, 0, args.transposed ? n : k);
      };
      const auto weight = [&](int64_t k) {
        return (args.transposed ? Get(args.weight, k, n) : Get(args.weight, n, k)) * factor(k);
      };
      double amax = 0;
      for (int64_t k = 0; k < out.k(); ++k) amax = std::max(amax, std::abs(weight(k)));
      const double scale = !args.scale.empty() ? Get(args.scale, 0, 0)
                           : amax == 0         ? 1
                                               : 1 / FloorPowerOfTwo(args.format.max / amax);
      for (int64_t k = 0; k < out.k(); ++k)
        Set(out.values, k, n,
            Fp8ToFloat(NearestCode(weight(k) / scale, args.format), args.format.dtype) * scale /
                (args.transposed ? factor(k) : 1));
    }
  }

  void Pack(const PackArgs& args) override {
    auto& out = static_cast<ReferencePacked&>(*args.out);
    if (IsFp8(out.dtype())) return PackFp8(args, out);
    Tensor rounded(out.dtype(), 1, 1);
    for (int64_t k = 0; k < out.k(); ++k) {
      for (int64_t n = 0; n < out.n(); ++n) {
        Set(rounded, 0, 0, args.transposed ? Get(args.weight, k, n) : Get(args.weight, n, k));
        Set(out.values, k, n, Get(rounded, 0, 0));
      }
    }
  }

  void MatMul(const MatMulArgs& args) override {
    const auto& b = static_cast<const ReferencePacked&>(*args.b);
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

  void KvWrite(const KvWriteArgs& args) override {
    const KvLayout& layout = args.layout;
    for (const SequenceRows& s : args.sequences) {
      for (int64_t i = 0; i < s.count; ++i) {
        const int64_t slot = (s.context + i) % KvLayout::kPageTokens;
        const TensorView page = Page(s, s.context + i, layout);
        for (int64_t head = 0; head < layout.kv_heads; ++head) {
          for (int64_t d = 0; d < layout.head_dim; ++d) {
            Set(page, 0, layout.KeyOffset(args.layer, head) + layout.KeyElement(slot, d),
                Get(args.qkv, s.row + i, (args.heads + head) * layout.head_dim + d));
            Set(page, 0, layout.ValueOffset(args.layer, head) + slot * layout.head_dim + d,
                Get(args.qkv, s.row + i, (args.heads + layout.kv_heads + head) * layout.head_dim + d));
          }
        }
      }
    }
  }

  void Attention(const AttentionArgs& args) override {
    const KvLayout& layout = args.layout;
    const int64_t dim = layout.head_dim, group = args.heads / layout.kv_heads;
    for (const SequenceRows& s : args.sequences) {
      const std::vector<std::vector<double>> masks =
          layout.selective ? Masks(args, s) : std::vector<std::vector<double>>();
      for (int64_t i = 0; i < s.count; ++i) {
        if (layout.selective && !args.live.empty())
          Set(args.live, 0, s.row + i, Live(masks[static_cast<size_t>(i)], static_cast<double>(args.live_tau)));
        for (int64_t head = 0; head < args.heads; ++head) {
          const int64_t position = s.context + i;
          const int64_t first = args.window > 0 ? std::max<int64_t>(0, position - args.window + 1) : 0;
          const int64_t keys = layout.KeyOffset(args.layer, head / group);
          const int64_t values = layout.ValueOffset(args.layer, head / group);
          std::vector<double> scores;
          for (int64_t p = first; p <= position; ++p) {
            const TensorView page = Page(s, p, layout);
            double sum = 0;
            const bool small = IsPruned(s, p);
            const int64_t channels = small ? s.pruned->Channels(layout, head / group) : dim;
            for (int64_t c = 0; c < channels; ++c) {
              const int64_t slot = p % KvLayout::kPageTokens,
                            d = channels < dim ? s.pruned->kept[head / group * channels + c] : c;
              const int64_t at = small ? s.pruned->KeyOffset(layout, head / group) +
                                             (slot / KvLayout::kBlockTokens * channels + c) * KvLayout::kBlockTokens +
                                             slot % KvLayout::kBlockTokens
                                       : keys + layout.KeyElement(slot, d);
              sum += Get(args.q, s.row + i, head * dim + d) * Get(page, 0, at);
            }
            scores.push_back(sum * static_cast<double>(args.scale));
            if (layout.selective) scores.back() -= masks[static_cast<size_t>(i)][static_cast<size_t>(p)];
          }
          const double max = *std::max_element(scores.begin(), scores.end());
          double mass = 0;
          for (const double score : scores) mass += std::exp(score - max);
          for (int64_t d = 0; d < dim; ++d) {
            double sum = 0;
            for (int64_t p = first; p <= position; ++p)
              sum += std::exp(scores[static_cast<size_t>(p - first)] - max) / mass *
                     Get(Page(s, p, layout), 0,
                         (IsPruned(s, p) ? s.pruned->ValueOffset(layout, head / group) : values) +
                             p % KvLayout::kPageTokens * dim + d);
            Set(args.out, s.row + i, head * dim + d, sum);
          }
          if (!args.lse.empty()) Set(args.lse, s.row + i, head, max + std::log(mass));
        }
      }
    }
  }

  void AttentionBackward(const AttentionBackwardArgs& args) override {
    const int64_t dim = args.head_dim, group = args.heads / args.kv_heads;
    const auto scale = static_cast<double>(args.scale);
    Tensor sums(DType::kF64, args.dqkv.rows, args.dqkv.cols);
    for (const SequenceRows& s : args.sequences) {
      QUERN_CHECK(s.context == 0);
      // Selective Attention: L of head 0, F, and the gradient by F, all [count, count].
      const auto n = static_cast<size_t>(s.count);
      std::vector<std::vector<double>> raw(n, std::vector<double>(n)), masks = raw, dmasks = raw;
      for (size_t i = 0; args.selective && i < n; ++i) {
        for (size_t j = 0; j <= i; ++j) {
          for (int64_t d = 0; d < dim; ++d)
            raw[i][j] += scale * Get(args.qkv, s.row + static_cast<int64_t>(i), d) *
                         Get(args.qkv, s.row + static_cast<int64_t>(j), args.heads * dim + d);
          for (size_t k = 0; k < i; ++k)
            if (j > 0 && j < k) masks[i][j] += args.gain * std::max(0.0, raw[k][j]);
        }
      }
      for (int64_t i = s.row; i < s.row + s.count; ++i) {
        for (int64_t head = 0; head < args.heads; ++head) {
          const int64_t q = head * dim, k = (args.heads + head / group) * dim;
          const int64_t v = (args.heads + args.kv_heads + head / group) * dim;
          double delta = 0;
          for (int64_t d = 0; d < dim; ++d) delta += Get(args.dout, i, q + d) * Get(args.out, i, q + d);
          const int64_t first = args.window > 0 ? std::max(s.row, i - args.window + 1) : s.row;
          for (int64_t j = first; j <= i; ++j) {
            double score = 0, dp = 0;
            for (int64_t d = 0; d < dim; ++d) {
              score += Get(args.qkv, i, q + d) * Get(args.qkv, j, k + d);
              dp += Get(args.dout, i, q + d) * Get(args.qkv, j, v + d);
            }
            const auto a = static_cast<size_t>(i - s.row), b = static_cast<size_t>(j - s.row);
            const double p = std::exp(scale * score - masks[a][b] - Get(args.lse, i, head));
            const double ds = scale * p * (dp - delta);
            dmasks[a][b] -= p * (dp - delta);
            for (int64_t d = 0; d < dim; ++d) {
              AddTo(sums, i, q + d, ds * Get(args.qkv, j, k + d));
              AddTo(sums, j, k + d, ds * Get(args.qkv, i, q + d));
              AddTo(sums, j, v + d, p * Get(args.dout, i, q + d));
            }
          }
        }
      }
      if (args.selective) {
        const auto tau = static_cast<double>(args.live_tau);
        size_t most = 0;
        double most_live = 0;
        for (size_t i = 0; i < n; ++i) {
          const std::vector<double> row(masks[i].begin(), masks[i].begin() + static_cast<std::ptrdiff_t>(i) + 1);
          if (Live(row, tau) <= most_live) continue;
          most = i;
          most_live = Live(row, tau);
        }
        for (size_t j = 0; j <= most && n > 0; ++j)
          if (masks[most][j] < tau) dmasks[most][j] -= static_cast<double>(args.live_weight) / tau;
        for (size_t k = 0; k < n; ++k) {
          for (size_t j = 1; j < k; ++j) {
            if (raw[k][j] <= 0) continue;
            double dselected = 0;
            for (size_t i = k + 1; i < n; ++i) dselected += dmasks[i][j];
            if (!args.dgain.empty()) AddTo(args.dgain, 0, 0, dselected * raw[k][j]);
            const int64_t row = s.row + static_cast<int64_t>(k), key = s.row + static_cast<int64_t>(j);
            for (int64_t d = 0; d < dim; ++d) {
              AddTo(sums, row, d, args.gain * scale * dselected * Get(args.qkv, key, args.heads * dim + d));
              AddTo(sums, key, args.heads * dim + d, args.gain * scale * dselected * Get(args.qkv, row, d));
            }
          }
        }
      }
      for (int64_t i = s.row; i < s.row + s.count; ++i)
        for (int64_t c = 0; c < args.dqkv.cols; ++c) Set(args.dqkv, i, c, Get(sums, i, c));
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

  // FP8 moments: a block's largest new magnitudes first, then everything once more.
  void AdamWFp8(const AdamWArgs& args) {
    const int64_t block = args.block > 0 ? args.block : args.param.cols;
    for (int64_t begin = 0; begin < args.param.cols; begin += block) {
      const int64_t count = std::min(block, args.param.cols - begin);
      Tensor m(DType::kF64, 1, count), v(DType::kF64, 1, count), param(DType::kF64, 1, count);
      const double m_scale = Get(args.m_scale, 0, begin / block), v_scale = Get(args.v_scale, 0, begin / block);
      for (int64_t i = 0; i < count; ++i) {
        Set(m, 0, i, Get(args.m, 0, begin + i) * m_scale);
        Set(v, 0, i, Get(args.v, 0, begin + i) * v_scale);
        Set(param, 0, i, Get(args.param, 0, begin + i));
      }
      AdamWArgs plain = args;
      plain.param = param;
      plain.grad = args.grad.Cols(begin, count);
      plain.m = m;
      plain.v = v;
      AdamW(plain);
      double m_amax = 1e-30, v_amax = 1e-30;
      for (int64_t i = 0; i < count; ++i) {
        m_amax = std::max(m_amax, std::abs(Get(m, 0, i)));
        v_amax = std::max(v_amax, Get(v, 0, i));
      }
      Set(args.m_scale, 0, begin / block, m_amax / 448);
      Set(args.v_scale, 0, begin / block, v_amax / 57344);
      for (int64_t i = 0; i < count; ++i) {
        const auto element = static_cast<uint64_t>(args.first_element + begin + i);
        const auto words = Philox4x32({static_cast<uint32_t>(element), static_cast<uint32_t>(element >> 32), 0, 0},
                                      {static_cast<uint32_t>(args.seed), static_cast<uint32_t>(args.seed >> 32)});
        args.m.Row<uint8_t>(0)[begin + i] = StochasticCode(Get(m, 0, i) * 448 / m_amax, kE4M3, words[0]);
        const uint8_t second = StochasticCode(Get(v, 0, i) * 57344 / v_amax, kE5M2, words[1]);
        args.v.Row<uint8_t>(0)[begin + i] = second == 0 && Get(v, 0, i) > 0 ? 1 : second;
        Set(args.param, 0, begin + i, Get(param, 0, i));
      }
    }
  }

  void AdamW(const AdamWArgs& args) override {
    if (IsFp8(args.m.dtype)) return AdamWFp8(args);
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

  // F of a sequence's rows at positions 0 .. own, infinite where evicted, straight from the definition; leaves that of
  // the next row in the sequence's selection.
  static std::vector<std::vector<double>> Masks(const AttentionArgs& args, const SequenceRows& s) {
    const KvLayout& layout = args.layout;
    QUERN_CHECK(args.window == 0);
    const TensorView selection = {s.selection, layout.dtype == DType::kF64 ? DType::kF64 : DType::kF32, 1, 0, 0};
    const auto at = [&](int64_t p) {
      return layout.SelectionOffset(p / KvLayout::kPageTokens, args.layer) + p % KvLayout::kPageTokens;
    };
    const auto selected = [&](int64_t row, int64_t p) {  // S
      if (p == 0 || p >= s.context + row) return 0.0;
      double sum = 0;
      for (int64_t d = 0; d < layout.head_dim; ++d)
        sum += Get(args.q, s.row + row, d) *
               Get(Page(s, p, layout), 0,
                   layout.KeyOffset(args.layer, 0) + layout.KeyElement(p % KvLayout::kPageTokens, d));
      return args.gain * std::max(0.0, sum * static_cast<double>(args.scale));
    };
    const int64_t end = s.context + s.count;
    std::vector<std::vector<double>> all;  // [count + 1]
    std::vector<bool> gone(static_cast<size_t>(end) + 1);
    for (int64_t i = 0; i <= s.count; ++i) {
      std::vector<double> row;
      for (int64_t p = 0; p < std::min(s.context + i + 1, end); ++p) {
        double f = p < s.context ? Get(selection, 0, at(p)) : 0;
        for (int64_t k = 0; k < i; ++k) f += selected(k, p);
        if (std::isinf(f)) gone[static_cast<size_t>(p)] = true;
        row.push_back(f);
      }
      const int64_t position = s.context + i;
      const auto left = [&] { return position + 1 - std::count(gone.begin(), gone.end(), true); };
      while (i < s.count && args.budget > 0 && left() > args.budget) {
        int64_t worst = -1;
        for (int64_t p = 1; p < position; ++p)
          if (!gone[static_cast<size_t>(p)] &&
              (worst < 0 || row[static_cast<size_t>(p)] > row[static_cast<size_t>(worst)]))
            worst = p;
        gone[static_cast<size_t>(worst)] = true;
      }
      for (size_t p = 0; p < row.size(); ++p)
        if (gone[p]) row[p] = std::numeric_limits<double>::infinity();
      all.push_back(std::move(row));
    }
    for (int64_t p = 0; p < end; ++p) Set(selection, 0, at(p), all.back()[static_cast<size_t>(p)]);
    all.pop_back();
    return all;
  }

  // `mask`: F of one row at positions 0 .. own.
  static double Live(const std::vector<double>& mask, double tau) {
    double live = 0;
    for (const double f : mask) live += 1 - std::min(f, tau) / tau;
    return live;
  }

  static bool IsPruned(const SequenceRows& s, int64_t position) {
    return s.pruned != nullptr && position / KvLayout::kPageTokens < s.pruned->pages;
  }

  static TensorView Page(const SequenceRows& sequence, int64_t position, const KvLayout& layout) {
    return {sequence.pages[position / KvLayout::kPageTokens], layout.dtype, 1, layout.page_elements(),
            layout.page_elements()};
  }
};

}  // namespace

std::unique_ptr<Ops> NewReferenceOps() { return std::make_unique<ReferenceOps>(); }

}  // namespace quern
