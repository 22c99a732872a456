#include "model/rope.h"

#include <cmath>
#include <numbers>

namespace quern {

std::vector<double> RotaryFrequencies(const ModelConfig& config) {
  std::vector<double> frequencies(static_cast<size_t>(config.head_dim / 2));
  const RopeScaling& s = config.rope_scaling;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double f = std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim));
    if (s.type == RopeScaling::Type::kLinear) f /= s.factor;
    if (s.type == RopeScaling::Type::kLlama3) {
      const double wavelength = 2.0 * std::numbers::pi / f;
      const double original = static_cast<double>(s.original_max_positions);
      const double low = original / s.low_freq_factor;
      const double high = original / s.high_freq_factor;
      if (wavelength > low) {
        f /= s.factor;
      } else if (wavelength > high) {
        const double smooth = (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
        f = (1.0 - smooth) * f / s.factor + smooth * f;
      }
    }
    frequencies[i] = f;
  }
  return frequencies;
}

void FillRotaryTables(const ModelConfig& config, const TensorView& cos, const TensorView& sin) {
  const std::vector<double> frequencies = RotaryFrequencies(config);
  for (int64_t p = 0; p < cos.rows; ++p) {
    for (size_t i = 0; i < frequencies.size(); ++i) {
      const double angle = static_cast<double>(p) * frequencies[i];
      if (cos.dtype == DType::kF64) {
        cos.Row<double>(p)[i] = std::cos(angle);
        sin.Row<double>(p)[i] = std::sin(angle);
      } else {
        cos.Row<float>(p)[i] = static_cast<float>(std::cos(angle));
        sin.Row<float>(p)[i] = static_cast<float>(std::sin(angle));
      }
    }
  }
}

}  // namespace quern
