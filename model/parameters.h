#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "compute/ops.h"
#include "model/config.h"

namespace quern {

// One weight with its Hugging Face name and shape (vectors have one row).
struct ParameterInfo {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t offset = 0;  // elements from the start of the flat buffer
  bool decay = false;  // matrices take weight decay; norms and biases do not
};

// Every weight of a configuration in a fixed order without gaps. Queries, keys and values of a layer are adjacent, and
// so are gate and up, so that one view covers what one product uses.
class ParameterLayout {
 public:
  explicit ParameterLayout(const ModelConfig& config);
  const std::vector<ParameterInfo>& parameters() const { return parameters_; }
  int64_t size() const { return size_; }  // elements in all
  // Elements before a layer's weights; of the number of layers: those of all layers and what lies before them.
  int64_t LayerOffset(int64_t layer) const { return layer_offsets_[static_cast<size_t>(layer)]; }
  int64_t layers() const { return static_cast<int64_t>(layer_offsets_.size()) - 1; }
  // The entry of that name; CHECK fails when there is none.
  const ParameterInfo& Find(const std::string& name) const;
  bool Has(const std::string& name) const;

 private:
  void Add(const std::string& name, int64_t rows, int64_t cols, bool decay);
  std::vector<ParameterInfo> parameters_;
  std::vector<int64_t> layer_offsets_;
  int64_t size_ = 0;
};

// "model.layers.3." for 3.
std::string LayerPrefix(int64_t layer);

// Name of what a layer's selections are multiplied by where ModelConfig::selection_gain is set; 0 or more.
std::string SelectionGainName(int64_t layer);

// Name of a layer's Smooth-SwiGLU scales ([1, F], powers of two), which belong to a weight version beside its weights.
std::string SmoothScaleName(int64_t layer);

// Name of a layer's largest magnitudes under kFp8Delayed ([1, 12]: inputs, weight and gradients of the qkv, attention
// output, gate-up and down products), part of a version in the same way.
std::string Fp8AmaxName(int64_t layer);

// Gives a weight by its Hugging Face name: from training masters, a checkpoint file or a test. fp32, bf16, fp16 or
// fp64.
using TensorSource = std::function<Result<TensorView>(const std::string& name)>;

// `source` with every layer's smooth scales folded into its up and down projections: the same function of the tokens,
// without any rounding that was not there. Without scales the source itself.
TensorSource FoldSmoothScales(const ModelConfig& config, const TensorSource& source);

// `source`, of a backend's memory, in the host's: itself where that is the same, else copies that live as long as what
// is returned.
TensorSource OnHost(Ops& ops, const TensorSource& source);

// Flat storage for master weights or gradients: fp32, bf16 (fp64 for gradient checks).
class Parameters {
 public:
  // In a backend's memory where `ops` is given.
  explicit Parameters(const ModelConfig& config, DType dtype = DType::kF32, Ops* ops = nullptr);
  const ParameterLayout& layout() const { return layout_; }
  Ops* device() const { return device_; }                  // whose memory they are in; null: the host's
  const TensorView& flat() const { return data_.view(); }  // [1, size]
  TensorView View(const std::string& name) const;
  // `rows` rows starting at the weight `name`: q, k and v as one matrix.
  TensorView View(const std::string& name, int64_t rows) const;
  TensorSource Source() const;
  // Normal(0, initializer_range) for matrices, 1 for norms, 0 for biases and gains (the usual initialisation of the
  // family); a pure function of (config, seed).
  void Initialize(const ModelConfig& config, uint64_t seed);
  // Copies every weight from `source`, converting to this dtype. A missing or misshapen weight is an error that names
  // it.
  Status CopyFrom(const TensorSource& source);

 private:
  ParameterLayout layout_;
  Ops* device_;  // null where the weights are in the host's memory
  Tensor data_;
};

// A selection masks, it never helps: gains below zero become zero.
void ClampSelectionGains(const ModelConfig& config, const Parameters& parameters);

}  // namespace quern
