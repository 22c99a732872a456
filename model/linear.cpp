#include "model/linear.h"

namespace quern {

namespace {

struct Codes {
  TensorView values, scale;
};

Codes QuantizeRows(Ops& ops, const TensorView& x, const Tensor& column_scale, const Fp8Format& format, Arena& arena,
                   const TensorView& counts) {
  const Codes out{arena.New(format.dtype, x.rows, x.cols), arena.New(DType::kF32, 1, x.rows)};
  ops.Quantize({.x = x,
                .column_scale = column_scale,
                .format = format,
                .codes = out.values,
                .scale = out.scale,
                .counts = counts});
  return out;
}

}  // namespace

int64_t LinearWeight::bytes() const {
  return (forward ? forward->bytes() : 0) + (transposed ? transposed->bytes() : 0) + bias.bytes() + input_scale.bytes();
}

bool PackLinear(Ops& ops, const TensorView& weight, bool trainable, LinearWeight& out) {
  const DType dtype = out.recipe.weight_dtype();
  if (!out.forward) out.forward = ops.NewPacked(dtype, weight.cols, weight.rows);
  if (out.forward->k() != weight.cols || out.forward->n() != weight.rows) return false;
  Tensor inverse;
  if (out.input_scale.cols() > 0) {
    inverse = Tensor(DType::kF32, 1, weight.cols);
    for (int64_t i = 0; i < weight.cols; ++i) inverse.Row<float>(0)[i] = 1.0f / out.input_scale.Row<float>(0)[i];
  }
  ops.Pack({.weight = weight,
            .transposed = false,
            .input_scale = inverse,
            .format = out.recipe.forward,
            .out = out.forward.get()});
  if (trainable) {
    // Its columns are the inputs, each with a scale of its own: what the forward product divides by makes no
    // difference.
    if (!out.transposed) out.transposed = ops.NewPacked(dtype, weight.rows, weight.cols);
    ops.Pack({.weight = weight, .transposed = true, .format = out.recipe.forward, .out = out.transposed.get()});
  }
  return true;
}

void LinearForward(Ops& ops, const LinearWeight& weight, const TensorView& x, const TensorView& y, bool accumulate,
                   Arena& arena, const TensorView& counts) {
  MatMulArgs args{.a = x, .b = weight.forward.get(), .c = y, .bias = weight.bias, .accumulate = accumulate};
  const Arena::Scope scope(arena);
  if (weight.fp8()) {
    const Codes codes = QuantizeRows(ops, x, weight.input_scale, weight.recipe.forward, arena, counts);
    args.a = codes.values;
    args.a_scale = codes.scale;
  }
  ops.MatMul(args);
}

void LinearInputGradient(Ops& ops, const LinearWeight& weight, const TensorView& dy, const TensorView& dx, Arena& arena,
                         const TensorView& counts) {
  MatMulArgs args{.a = dy, .b = weight.transposed.get(), .c = dx, .bias = {}};
  const Arena::Scope scope(arena);
  if (weight.fp8()) {
    const Codes codes = QuantizeRows(ops, dy, Tensor(), weight.recipe.gradient, arena, counts);
    args.a = codes.values;
    args.a_scale = codes.scale;
  }
  ops.MatMul(args);
}

}  // namespace quern
