#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "base/random.h"
#include "tests/reference_parts.h"

namespace quern::reference {
namespace {

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

}  // namespace

void Quantize(const QuantizeArgs& args) {
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

void Dequantize(const DequantizeArgs& args) {
  for (int64_t t = 0; t < args.codes.rows; ++t)
    for (int64_t d = 0; d < args.codes.cols; ++d)
      Set(args.y, t, d,
          Get(args.codes, t, d) * Get(args.scale, 0, args.scale.cols == 1 ? 0 : t) /
              (args.column_scale.empty() ? 1 : Get(args.column_scale, 0, d)));
}

void ColumnAmax(const ColumnAmaxArgs& args) {
  for (int64_t t = 0; t < args.x.rows; ++t)
    for (int64_t d = 0; d < args.x.cols; ++d)
      Set(args.amax, 0, d, std::max(Get(args.amax, 0, d), std::abs(Get(args.x, t, d))));
}

void PackFp8(const PackArgs& args, Packed& out) {
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

// FP8 moments: a block's largest new magnitudes first, then everything once more.
void AdamWFp8(Ops& ops, const AdamWArgs& args) {
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
    ops.AdamW(plain);
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

}  // namespace quern::reference
