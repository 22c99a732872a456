#pragma once

#include <memory>

#include "compute/arena.h"
#include "compute/ops.h"
#include "model/recipe.h"

namespace quern {

// A weight matrix as products use it, in the recipe's precision: packed for the forward product, and for the input
// gradient when trainable.
struct LinearWeight {
  Recipe recipe;
  std::unique_ptr<PackedMatrix> forward;
  std::unique_ptr<PackedMatrix> transposed;  // null unless trainable
  Tensor bias;                               // empty when the layer has none
  // Smooth-SwiGLU on the down projection: inputs are multiplied by this, [1, k] powers of two, and the weight is
  // divided by it; empty: ones.
  Tensor input_scale;

  // kFp8Delayed: largest magnitudes of the last global batch, [1, 3]: inputs, weight, gradients of outputs; 0: there
  // was none. Empty: three zeros.
  Tensor amax;
  float weight_amax = 0;  // kFp8Delayed: of what is packed
  Tensor master;          // kFp8Delayed with smooth channels, down projection, trainable: the weight, fp32

  bool fp8() const { return forward != nullptr && IsFp8(forward->dtype()); }
  int64_t bytes() const;
};

// Packs `weight` [outputs, inputs] under out.recipe and out.input_scale. False: another shape than before.
bool PackLinear(Ops& ops, const TensorView& weight, bool trainable, LinearWeight& out);

// What a product's casts report, and what their random rounding comes from. Views may be empty.
struct CastRecord {
  TensorView counts{};  // [1, 2] i32: values saturated and flushed to zero are added
  TensorView amax{};    // [1, 1] acc, kFp8Delayed: raised to the largest magnitude
  uint64_t seed = 0;
};

struct LinearGradients {
  TensorView dy;  // [T, n] act
  TensorView x;   // [T, k] act: the forward product's
  TensorView dx;  // [T, k] act
  TensorView dw;  // [n, k] acc; accumulated into
};

// How the inputs of a product are cast, for the operation that makes them, with codes and scales from `arena`; nothing
// under recipes without FP8. `rows` of them.
OutputCast InputCast(Ops& ops, const LinearWeight& weight, int64_t rows, Arena& arena, const CastRecord& record = {});

// y = x W^T + bias, or y += where `accumulate`. x [T, k] act, y [T, n] act or acc. `cast`: what InputCast gave to the
// operation that made x; without it x is cast here.
void LinearForward(Ops& ops, const LinearWeight& weight, const TensorView& x, const TensorView& y, bool accumulate,
                   Arena& arena, const CastRecord& record = {}, const OutputCast* cast = nullptr);
// dx = dy W, dw += dy^T x. The record is of dy.
void LinearBackward(Ops& ops, const LinearWeight& weight, const LinearGradients& args, Arena& arena,
                    const CastRecord& record = {});

}  // namespace quern
