#pragma once

#include <memory>
#include <vector>

#include "compute/ops.h"
#include "model/config.h"
#include "model/parameters.h"

namespace quern {

// A weight matrix as products use it: packed for the forward product, and for the input gradient when trainable.
struct LinearWeight {
  std::unique_ptr<PackedMatrix> forward;
  std::unique_ptr<PackedMatrix> transposed;  // null unless trainable
  Tensor bias;                               // empty when the layer has none
};

struct BlockWeights {
  Tensor input_norm, post_attention_norm;
  Tensor q_norm, k_norm;  // empty unless config.qk_norm
  LinearWeight qkv, attention_output, gate_up, down;
};

// Everything a forward pass reads, in the backend's layout: one weight version. Immutable between calls of Load.
class Weights {
 public:
  // dtype: activation dtype of the model (bf16, fp32; fp64 with the reference backend). Products read weights in that
  // dtype; norms and biases stay fp32 (fp64).
  Weights(Ops& ops, const ModelConfig& config, DType dtype, bool trainable);
  // (Re)packs all weights from `source`. An error names the weight.
  Status Load(const TensorSource& source);

  const ModelConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }
  DType acc_dtype() const { return dtype_ == DType::kF64 ? DType::kF64 : DType::kF32; }
  int64_t bytes() const;

  Tensor embedding;  // [V, D] dtype
  std::vector<BlockWeights> blocks;
  Tensor final_norm;
  LinearWeight head;

 private:
  Status LoadLinear(const TensorSource& source, const std::vector<std::string>& names, LinearWeight& out);
  Status LoadVector(const TensorSource& source, const std::vector<std::string>& names, Tensor& out);
  Ops& ops_;
  ModelConfig config_;
  DType dtype_;
  bool trainable_;
};

}  // namespace quern
