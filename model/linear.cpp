#include "model/linear.h"

#include <algorithm>
#include <cmath>

namespace quern {

namespace {

// kFp8Delayed: one scale, of `amax` where it is known.
void UseTensorScale(Ops& ops, float amax, QuantizeArgs& args) {
  args.rule = QuantizeArgs::Scale::kTensor;
  if (!(amax > 0)) return;
  args.rule = QuantizeArgs::Scale::kGiven;
  ops.Fill(args.scale, std::ldexp(1.0f, -PowerOfTwoExponent(amax, args.format.max)));
}

float Amax(const LinearWeight& weight, int64_t which) {
  return weight.amax.cols() == 3 ? weight.amax.Row<float>(0)[which] : 0.0f;
}
enum Which : int64_t { kInputs, kWeight, kGradients };

// How a product's inputs or its gradients become codes, as the weight's recipe says.
QuantizeArgs CastFor(Ops& ops, const LinearWeight& weight, Which which, int64_t rows, Arena& arena,
                     const CastRecord& record) {
  const bool delayed = weight.recipe.delayed(), inputs = which == kInputs;
  const Fp8Format& format = inputs ? weight.recipe.forward : weight.recipe.gradient;
  const int64_t cols = inputs ? weight.forward->k() : weight.forward->n();
  QuantizeArgs args{.x = {},
                    .column_scale = inputs ? weight.input_scale.view() : TensorView(),
                    .format = format,
                    .stochastic = delayed && !inputs,
                    .seed = record.seed,
                    .codes = arena.New(format.dtype, rows, cols),
                    .scale = arena.New(DType::kF32, 1, delayed ? 1 : rows),
                    .amax = record.amax,
                    .counts = record.counts};
  if (delayed) UseTensorScale(ops, Amax(weight, which), args);
  return args;
}

QuantizeArgs Quantize(Ops& ops, const LinearWeight& weight, Which which, const TensorView& x, Arena& arena,
                      const CastRecord& record) {
  const QuantizeArgs args = CastFor(ops, weight, which, x.rows, arena, record);
  CastOutput(ops, x, args);
  return args;
}

// The largest magnitude of a weight after its inputs' scale.
float WeightAmax(Ops& ops, const TensorView& weight, const Tensor& input_scale) {
  const Tensor amax(DType::kF32, 1, weight.cols, ops.memory());
  ops.ColumnAmax({.x = weight, .amax = amax});
  const Tensor columns = OnHost(ops, amax), scale = OnHost(ops, input_scale);
  float most = 0;
  for (int64_t i = 0; i < weight.cols; ++i) {
    const float value = columns.Row<float>(0)[i] * (scale.cols() > 0 ? scale.Row<float>(0)[i] : 1.0f);
    most = std::max(most, value);
  }
  return most;
}

}  // namespace

int64_t LinearWeight::bytes() const {
  return (forward ? forward->bytes() : 0) + (transposed ? transposed->bytes() : 0) + bias.bytes() +
         input_scale.bytes() + amax.bytes() + master.bytes();
}

bool PackLinear(Ops& ops, const TensorView& weight, bool trainable, LinearWeight& out) {
  const DType dtype = out.recipe.weight_dtype();
  if (!out.forward) out.forward = ops.NewPacked(dtype, weight.cols, weight.rows);
  if (out.forward->k() != weight.cols || out.forward->n() != weight.rows) return false;
  Tensor inverse;
  if (out.input_scale.cols() > 0) {
    inverse = OnHost(ops, out.input_scale);
    for (int64_t i = 0; i < weight.cols; ++i) inverse.Row<float>(0)[i] = 1.0f / inverse.Row<float>(0)[i];
    inverse = OnDevice(ops, inverse);
  }
  Tensor scale;
  TensorView whole = weight;
  Tensor wide;
  if (out.recipe.delayed()) {
    if (weight.dtype != DType::kF32 && weight.dtype != DType::kBf16) {
      wide = Tensor(DType::kF32, weight.rows, weight.cols, ops.memory());
      ops.Cast(weight, wide);
      whole = wide;
    }
    out.weight_amax = WeightAmax(ops, whole, inverse);
    const float amax = Amax(out, kWeight) > 0 ? Amax(out, kWeight) : out.weight_amax;
    scale = Tensor(DType::kF32, 1, 1, ops.memory());
    ops.Fill(scale, std::ldexp(1.0f, -PowerOfTwoExponent(amax, out.recipe.forward.max)));
  }
  PackArgs args{.weight = whole, .input_scale = inverse, .format = out.recipe.forward, .scale = scale};
  args.out = out.forward.get();
  ops.Pack(args);
  if (!trainable) return true;
  // With a scale of its own for each input, what the forward product divides by makes no difference.
  if (!out.transposed) out.transposed = ops.NewPacked(dtype, weight.rows, weight.cols);
  args.transposed = true;
  if (!out.recipe.delayed()) args.input_scale = {};
  args.out = out.transposed.get();
  ops.Pack(args);
  return true;
}

OutputCast InputCast(Ops& ops, const LinearWeight& weight, int64_t rows, Arena& arena, const CastRecord& record) {
  return weight.fp8() ? CastFor(ops, weight, kInputs, rows, arena, record) : OutputCast();
}

void LinearForward(Ops& ops, const LinearWeight& weight, const TensorView& x, const TensorView& y, bool accumulate,
                   Arena& arena, const CastRecord& record, const OutputCast* cast) {
  MatMulArgs args{.a = x, .b = weight.forward.get(), .c = y, .bias = weight.bias, .accumulate = accumulate};
  const Arena::Scope scope(arena);
  if (weight.fp8()) {
    const QuantizeArgs codes = cast != nullptr ? *cast : Quantize(ops, weight, kInputs, x, arena, record);
    args.a = codes.codes;
    args.a_scale = codes.scale;
  }
  ops.MatMul(args);
}

void LinearBackward(Ops& ops, const LinearWeight& weight, const LinearGradients& args, Arena& arena,
                    const CastRecord& record) {
  const Arena::Scope scope(arena);
  MatMulArgs input{.a = args.dy, .b = weight.transposed.get(), .c = args.dx, .bias = {}};
  TensorView dy = args.dy, x = args.x;
  if (weight.fp8()) {
    const QuantizeArgs codes = Quantize(ops, weight, kGradients, dy, arena, record);
    input.a = codes.codes;
    input.a_scale = codes.scale;
    if (weight.recipe.delayed()) {
      const QuantizeArgs inputs = Quantize(ops, weight, kInputs, x, arena, {});  // as the forward product had them
      dy = arena.New(args.dy.dtype, dy.rows, dy.cols);
      x = arena.New(args.x.dtype, x.rows, x.cols);
      ops.Dequantize({.codes = codes.codes, .scale = codes.scale, .y = dy});
      ops.Dequantize({.codes = inputs.codes, .scale = inputs.scale, .column_scale = weight.input_scale, .y = x});
    }
  }
  ops.MatMul(input);
  ops.MatMulGradWeight({.dy = dy, .x = x, .dw = args.dw});
}

}  // namespace quern
