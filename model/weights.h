#pragma once

#include <memory>
#include <vector>

#include "compute/ops.h"
#include "model/config.h"
#include "model/linear.h"
#include "model/parameters.h"

namespace quern {

struct BlockWeights {
  Tensor input_norm, post_attention_norm;
  Tensor q_norm, k_norm;  // empty unless config.qk_norm
  double gain = 1;        // of the selections
  LinearWeight qkv, attention_output, gate_up, down;
};

// Everything a forward pass reads, in the backend's layout: one weight version. Immutable between calls of Load.
class Weights {
 public:
  // The recipe's dtype is that of activations (bf16, fp32; fp64 with the reference backend), of the embedding and the
  // head; norms and biases stay fp32 (fp64).
  Weights(Ops& ops, const ModelConfig& config, const Recipe& recipe, bool trainable);
  // (Re)packs all weights from `source`. An error names the weight. Where the recipe smooths channels, `source` is
  // asked for each layer's SmoothScaleName as well; none are ones. Where it is kFp8Delayed, for Fp8AmaxName; none are
  // zeros.
  Status Load(const TensorSource& source);

  const ModelConfig& config() const { return config_; }
  const Recipe& recipe() const { return recipe_; }
  DType dtype() const { return recipe_.act; }
  DType acc_dtype() const { return dtype() == DType::kF64 ? DType::kF64 : DType::kF32; }
  int64_t bytes() const;

  Tensor embedding;  // [V, D] dtype
  std::vector<BlockWeights> blocks;
  Tensor final_norm;
  LinearWeight head;

 private:
  Status LoadLinear(const TensorSource& source, const std::vector<std::string>& names, LinearWeight& out);
  Status LoadFp8Amax(const TensorSource& source, int64_t layer, BlockWeights& block);
  Status LoadSmoothScale(const TensorSource& source, int64_t layer, LinearWeight& down);
  Status LoadVector(const TensorSource& source, const std::vector<std::string>& names, Tensor& out);
  Ops& ops_;
  ModelConfig config_;
  Recipe recipe_;
  bool trainable_;
};

}  // namespace quern
