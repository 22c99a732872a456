#include "model/recipe.h"

#include "base/check.h"

namespace quern {

namespace {

Recipe::Smooth SmoothOf(const std::string& word) {
  if (word == "off") return Recipe::Smooth::kOff;
  if (word == "row") return Recipe::Smooth::kRow;
  QUERN_CHECK(word == "channel", word);
  return Recipe::Smooth::kChannel;
}

}  // namespace

Recipe RecipeOf(const std::string& precision, const std::string& smooth_swiglu) {
  if (precision == "fp32") return DType::kF32;
  if (precision == "bf16") return DType::kBf16;
  if (precision.starts_with("fp8_delayed")) {
    QUERN_CHECK(precision == "fp8_delayed" || precision == "fp8_delayed_gaudi", precision);
    return Recipe::Fp8Delayed(SmoothOf(smooth_swiglu), precision == "fp8_delayed" ? kE4M3 : kE4M3Gaudi);
  }
  QUERN_CHECK(precision == "fp8", precision);
  return Recipe::Fp8(SmoothOf(smooth_swiglu));
}

std::string RecipeName(const Recipe& recipe) {
  if (!recipe.fp8()) return DTypeName(recipe.act);
  if (recipe.delayed()) {
    const std::string max = recipe.forward.max == kE4M3.max ? "" : "-240";
    const char* smooth = recipe.smooth == Recipe::Smooth::kOff   ? "-plain"
                         : recipe.smooth == Recipe::Smooth::kRow ? "-row"
                                                                 : "";
    return std::string("fp8_delayed") + smooth + max;
  }
  if (recipe.smooth == Recipe::Smooth::kOff) return "fp8-plain";
  return recipe.smooth == Recipe::Smooth::kRow ? "fp8-row" : "fp8";
}

}  // namespace quern
