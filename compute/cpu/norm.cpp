#include "compute/cpu/kernels.h"
#include "compute/cpu/simd.h"
#include "compute/cpu/views.h"

namespace quern::cpu::QUERN_ISA {

namespace {

template <typename Y>
void NormRow(const float* x, const float* weight, float eps, int64_t dim, Y* y, float* inv_rms) {
  const float squares = SumVectors(dim, [&](F16 sum, int64_t i, auto lanes) {
    const F16 v = Load(x + i, lanes);
    return Fma(v, v, sum);
  });
  const float inv = 1.0f / __builtin_sqrtf(squares / static_cast<float>(dim) + eps);
  ForVectors(dim, [&](int64_t i, auto lanes) {
    Store(y + i, Load(x + i, lanes) * Set(inv) * Load(weight + i, lanes), lanes);
  });
  if (inv_rms != nullptr) *inv_rms = inv;
}

// With n = x inv: dx = inv (dy w - n mean(dy w n)); dweight = dy n.
template <typename Dy>
void NormBackwardRow(const RmsNormBackwardArgs& args, int64_t row, const Dy* dy, float* dweight) {
  const int64_t dim = args.x.cols;
  const float* x = Row<float>(args.x, row);
  const auto* weight = static_cast<const float*>(args.weight.data);
  const float inv = At(args.inv_rms, row);
  float* dx = Row<float>(args.dx, row);
  const float dot = SumVectors(dim, [&](F16 sum, int64_t i, auto lanes) {
    return Fma(Load(dy + i, lanes) * Load(weight + i, lanes), Load(x + i, lanes), sum);
  });
  const F16 slope = Set(dot * inv * inv * inv / static_cast<float>(dim));
  ForVectors(dim, [&](int64_t i, auto lanes) {
    const F16 v = Load(x + i, lanes);
    const F16 d = Load(dy + i, lanes);
    const F16 scaled = d * Set(inv);
    Store(dweight + i, Fma(scaled, v, Load(dweight + i, lanes)), lanes);
    Store(dx + i, Load(dx + i, lanes) + Fnma(v, slope, scaled * Load(weight + i, lanes)), lanes);
  });
}

}  // namespace

void RmsNorm(const RmsNormArgs& args, int64_t begin, int64_t end) {
  const auto* weight = static_cast<const float*>(args.weight.data);
  auto* inv_rms = static_cast<float*>(args.inv_rms.data);
  WithType(args.y, [&](auto type) {
    for (int64_t row = begin; row < end; ++row)
      NormRow(Row<float>(args.x, row), weight, args.eps, args.x.cols, Row<decltype(type)>(args.y, row),
              inv_rms == nullptr ? nullptr : inv_rms + row);
  });
}

void RmsNormBackward(const RmsNormBackwardArgs& args, int64_t begin, int64_t end, float* dweight) {
  WithType(args.dy, [&](auto type) {
    for (int64_t row = begin; row < end; ++row) NormBackwardRow(args, row, Row<decltype(type)>(args.dy, row), dweight);
  });
}

}  // namespace quern::cpu::QUERN_ISA
