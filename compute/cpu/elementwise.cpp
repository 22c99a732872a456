#include "compute/cpu/kernels.h"
#include "compute/cpu/simd.h"
#include "compute/cpu/views.h"

namespace quern::cpu::QUERN_ISA {

void BiasBackwardColumns(const BiasBackwardArgs& args, int64_t begin, int64_t end) {
  auto* dbias = static_cast<float*>(args.dbias.data) + begin;
  WithType(args.dy, [&](auto type) {
    for (int64_t row = 0; row < args.dy.rows; ++row) {
      const auto* dy = Row<decltype(type)>(args.dy, row) + begin;
      ForVectors(end - begin,
                 [&](int64_t i, auto lanes) { Store(dbias + i, Load(dbias + i, lanes) + Load(dy + i, lanes), lanes); });
    }
  });
}

void Embedding(const EmbeddingArgs& args, int64_t begin, int64_t end) {
  const int32_t* ids = args.ids.data();
  WithType(args.table, [&](auto type) {
    for (int64_t row = begin; row < end; ++row) {
      const auto* from = Row<decltype(type)>(args.table, ids[row]);
      float* to = Row<float>(args.out, row);
      ForVectors(args.out.cols, [&](int64_t i, auto lanes) { Store(to + i, Load(from + i, lanes), lanes); });
    }
  });
}

void EmbeddingBackwardColumns(const EmbeddingBackwardArgs& args, int64_t begin, int64_t end) {
  const int32_t* ids = args.ids.data();
  for (int64_t row = 0; row < args.dout.rows; ++row) {
    const float* from = Row<float>(args.dout, row) + begin;
    float* to = Row<float>(args.dtable, ids[row]) + begin;
    ForVectors(end - begin,
               [&](int64_t i, auto lanes) { Store(to + i, Load(to + i, lanes) + Load(from + i, lanes), lanes); });
  }
}

double SquaredNorm(const float* x, int64_t count) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  for (int64_t j = 0; i + j < count; ++j) lanes[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  double sum = 0;
  for (int64_t j = 0; j < kLanes; ++j) sum += lanes[j];
  return sum;
}

void Lerp(const TensorView& x, float alpha, const TensorView& y, int64_t begin, int64_t end) {
  WithType(x, [&](auto in) {
    const auto* from = Row<decltype(in)>(x, 0) + begin;
    auto* to = Row<float>(y, 0) + begin;
    ForVectors(end - begin, [&](int64_t i, auto lanes) {
      const F16 old = Load(to + i, lanes);
      Store(to + i, Fma(Set(alpha), Load(from + i, lanes) - old, old), lanes);
    });
  });
}

void Cast(const TensorView& x, const TensorView& y, int64_t begin, int64_t end) {
  WithTypes(x, y, [&](auto in, auto out) {
    for (int64_t row = begin; row < end; ++row) {
      const auto* from = Row<decltype(in)>(x, row);
      auto* to = Row<decltype(out)>(y, row);
      ForVectors(x.cols, [&](int64_t i, auto lanes) { Store(to + i, Load(from + i, lanes), lanes); });
    }
  });
}

}  // namespace quern::cpu::QUERN_ISA
