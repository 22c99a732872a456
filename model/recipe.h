#pragma once

#include <string>

#include "base/status.h"
#include "compute/fp8.h"

namespace quern {

// How the products inside the blocks are computed. Nothing but this and Linear knows: embedding, norms, attention, the
// head and losses stay in `act` and fp32 under every recipe.
struct Recipe {
  enum class Kind : uint8_t {
    kPlain,  // in `act`
    // FP8 in the forward product and the input gradient: activations and gradients have a scale a row, weights one for
    // each of their columns, from the present values. A token's numbers do not depend on what else is computed with it.
    // The weight gradient is bf16's.
    kFp8,
    // As published: one scale for each tensor, from its largest magnitude in the last global batch (until there is one,
    // from the present values); gradients in E5M2, rounded stochastically; all three products in FP8. With smooth
    // channels, training takes their scales from the micro-batch, so a token's numbers depend on its neighbours there.
    kFp8Delayed,
  };
  // Smooth-SwiGLU (Fishman et al., arXiv 2409.12517): powers of two s that multiply the SwiGLU output before its cast
  // and divide the down projection's inputs before theirs.
  enum class Smooth : uint8_t {
    kOff,
    kChannel,  // one a channel, state of the weight version: from the linear branch's largest magnitudes of the step
               // before (SmoothScale)
    kRow,      // one a token; with a scale a row, that is what kFp8 does without being asked
  };

  Recipe() = default;
  Recipe(DType dtype) : act(dtype) {}  // NOLINT: a dtype alone is the plain recipe
  static Recipe Fp8(Smooth mode = Smooth::kChannel) {
    Recipe recipe;
    recipe.kind = Kind::kFp8;
    recipe.smooth = mode;
    return recipe;
  }

  static Recipe Fp8Delayed(Smooth mode = Smooth::kChannel, const Fp8Format& e4m3 = kE4M3) {
    Recipe recipe = Fp8(mode);
    recipe.kind = Kind::kFp8Delayed;
    recipe.forward = e4m3;
    recipe.gradient = kE5M2;
    return recipe;
  }

  bool delayed() const { return kind == Kind::kFp8Delayed; }
  bool fp8() const { return kind != Kind::kPlain; }
  // What a block's weight matrices are packed as.
  DType weight_dtype() const { return fp8() ? forward.dtype : act; }
  bool smooth_channels() const { return fp8() && smooth == Smooth::kChannel; }

  DType act = DType::kBf16;
  Kind kind = Kind::kPlain;
  Smooth smooth = Smooth::kOff;
  Fp8Format forward = kE4M3;   // of activations and weights
  Fp8Format gradient = kE4M3;  // of the outputs' gradients
};

// "bf16", "fp32", "fp8", "fp8_delayed" with "channel", "row" or "off": what a job file says. CHECK fails for other
// words.
Recipe RecipeOf(const std::string& precision, const std::string& smooth_swiglu = "channel");
// One word for messages and checkpoint keys.
std::string RecipeName(const Recipe& recipe);

}  // namespace quern
