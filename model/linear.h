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

  bool fp8() const { return forward != nullptr && IsFp8(forward->dtype()); }
  int64_t bytes() const;
};

// Packs `weight` [outputs, inputs] under out.recipe and out.input_scale. False: another shape than before.
bool PackLinear(Ops& ops, const TensorView& weight, bool trainable, LinearWeight& out);

// y = x W^T + bias, or y += where `accumulate`. x [T, k] act, y [T, n] act or acc. `counts`: values of x that the cast
// to FP8 saturated and flushed to zero are added ([1, 2] i32), or empty.
void LinearForward(Ops& ops, const LinearWeight& weight, const TensorView& x, const TensorView& y, bool accumulate,
                   Arena& arena, const TensorView& counts = {});
// dx = dy W. dy [T, n] act; counts as above, of dy.
void LinearInputGradient(Ops& ops, const LinearWeight& weight, const TensorView& dy, const TensorView& dx, Arena& arena,
                         const TensorView& counts = {});

}  // namespace quern
