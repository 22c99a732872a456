#include "model/recipe.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace quern {

Recipe RecipeOf(const std::string& precision, const std::string& smooth_swiglu) {
  if (precision == "fp32") return DType::kF32;
  if (precision == "bf16") return DType::kBf16;
  if (precision == "fp8_delayed") {
    QUERN_CHECK(smooth_swiglu == "channel" || smooth_swiglu == "off", smooth_swiglu);
    return Recipe::Fp8Delayed(smooth_swiglu == "off" ? Recipe::Smooth::kOff : Recipe::Smooth::kChannel);
  }
  QUERN_CHECK(precision == "fp8", precision);
  if (smooth_swiglu == "off") return Recipe::Fp8(Recipe::Smooth::kOff);
  if (smooth_swiglu == "row") return Recipe::Fp8(Recipe::Smooth::kRow);
  QUERN_CHECK(smooth_swiglu == "channel", smooth_swiglu);
  return Recipe::Fp8();
}

std::string RecipeName(const Recipe& recipe) {
  if (!recipe.fp8()) return DTypeName(recipe.act);
  if (recipe.delayed()) {
    const std::string max = recipe.forward.max == kE4M3.max ? "" : "-240";
    return (recipe.smooth == Recipe::Smooth::kOff ? "fp8_delayed-plain" : "fp8_delayed") + max;
  }
  if (recipe.smooth == Recipe::Smooth::kOff) return "fp8-plain";
  return recipe.smooth == Recipe::Smooth::kRow ? "fp8-row" : "fp8";
}

float SmoothScale(float amax) {
  if (!(amax > 0) || !std::isfinite(amax)) return 1.0f;
  int exponent = 0;
  const float fraction = std::frexp(amax, &exponent);  // [0.5, 1)
  const int ceiling = fraction == 0.5f ? exponent - 1 : exponent;
  // Far beyond what a model has; products of scales and values stay in range.
  return std::ldexp(1.0f, std::clamp(-ceiling, -30, 30));
}

}  // namespace quern
