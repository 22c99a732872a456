#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "compute/arena.h"
#include "compute/ops.h"
#include "model/config.h"
#include "model/parameters.h"
#include "model/token_batch.h"
#include "model/weights.h"

namespace quern {

// What a block's backward reads, T rows each; residual streams in acc, the rest in act. Taken from the caller's arena.
struct SavedBlock {
  TensorView input;          // residual stream entering the block [T, D]
  TensorView input_inv_rms;  // [1, T]
  TensorView normed;         // input of the qkv product [T, D]
  TensorView qkv_raw;        // before Rotary; empty unless config.qk_norm
  TensorView qkv;            // after Rotary
  TensorView attention;      // [T, heads * head_dim]
  TensorView lse;            // [T, heads]
  TensorView live;           // [1, T], selective attention: positions that are not masked yet, by kLiveTau
  TensorView middle;         // residual stream after attention [T, D]
  TensorView middle_inv_rms;
  TensorView middle_normed;  // input of the gate/up product
  TensorView gate_up;        // [T, 2F]
  TensorView hidden;         // SwiGLU output [T, F]
  TensorView fp8_counts;     // [1, 4] i32, FP8 recipes: saturated and flushed to zero by forward casts, then backward
  TensorView fp8_amax;       // [1, 8], FP8 recipes: largest magnitudes of the four products' inputs, then of gradients
  std::shared_ptr<LinearWeight> down;  // kFp8Delayed with smooth channels: under the micro-batch's scales
  TensorView linear_amax;              // [1, F], FP8 recipes: largest magnitude of the SwiGLU's linear branch
};

constexpr float kLiveTau = 1.0f;  // a position counts as masked from here on

struct Saved {
  uint64_t seed = 0;  // of Backward's random rounding
  std::vector<SavedBlock> blocks;
  TensorView final_input;  // residual stream entering the final norm [T, D]
  TensorView final_inv_rms;
};

// The sum over blocks and sequences of the largest `live` of a sequence's rows: cache entries that would be needed.
double LivePositions(Ops& ops, const TokenBatch& batch, const Saved& saved);

// Elements [begin, end) of the flat gradients are complete: first those behind the layers, then each layer's, the last
// layer first, then those before the layers.
using GradientsDone = std::function<void(int64_t begin, int64_t end)>;
// All of these calls.
void CallForAll(const ParameterLayout& layout, const GradientsDone& done);

// A decoder of the Llama family, forward and backward written out. One Forward serves training, prefill and decode;
// only attention looks into the KvView. Stateless but for the rotary tables: several weight versions may share one.
class Transformer {
 public:
  // Rotary tables cover positions [0, max_positions). dtype as in Weights.
  Transformer(Ops& ops, const ModelConfig& config, DType dtype, int64_t max_positions);

  const ModelConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }
  DType acc_dtype() const { return dtype_ == DType::kF64 ? DType::kF64 : DType::kF32; }
  int64_t max_positions() const { return cos_.rows(); }
  KvLayout kv_layout() const {
    return {dtype_, config_.layers, config_.kv_heads, config_.head_dim, config_.selective_attention};
  }

  // Writes the final-normed hidden state of every row, or of every wanted one, to `hidden` [rows, D] act. With `saved`,
  // keeps what Backward needs in `arena`, which must then live until Backward has returned; without, temporaries are
  // given back.
  void Forward(const Weights& weights, const TokenBatch& batch, const KvView& kv, Arena& arena, TensorView hidden,
               Saved* saved = nullptr) const;
  // logits [R, V] acc of R rows of hidden states. The one head that sampler and losses share.
  void Logits(const Weights& weights, const TensorView& hidden, const TensorView& logits) const;
  // The head's product and a draw from it in one (Ops::Draw, where the backend has it); args.a and args.b are set here.
  void Draw(const Weights& weights, const TensorView& hidden, DrawArgs args) const;
  // Adds to `gradients` the gradient of every weight, given that of the hidden states, dhidden [T, D] act or acc. The
  // head's own gradient is the caller's (HeadBackward). Selective attention: the loss has a term live_weight *
  // LivePositions(batch, saved). `done` is called as soon as everything has been added to a part of the gradients.
  void Backward(const Weights& weights, const TokenBatch& batch, const Saved& saved, const TensorView& dhidden,
                Parameters& gradients, Arena& arena, float live_weight = 0, const GradientsDone& done = {}) const;
  // dhidden [R, D] acc = dlogits * W; adds dlogits^T hidden to the head's gradient. dlogits [R, V] act.
  void HeadBackward(const Weights& weights, const TensorView& dlogits, const TensorView& hidden,
                    const TensorView& dhidden, Parameters& gradients) const;

 private:
  struct ForwardPass;
  struct BackwardPass;
  SavedBlock NewBlock(const ForwardPass& pass) const;
  bool AttentionForward(int64_t layer, ForwardPass& pass, SavedBlock& s) const;
  void FeedForward(int64_t layer, ForwardPass& pass, SavedBlock& s) const;
  void AttentionBackward(int64_t layer, const BackwardPass& pass) const;
  void FeedForwardBackward(int64_t layer, const BackwardPass& pass) const;
  void LinearGradients(int64_t layer, int64_t product, const LinearWeight& weight, const std::string& name,
                       const TensorView& dout, const TensorView& x, const TensorView& dx,
                       const BackwardPass& pass) const;
  float AttentionScale() const { return 1.0f / std::sqrt(static_cast<float>(config_.head_dim)); }
  // The down projection folded with, and cast under, the scales of a micro-batch.
  std::shared_ptr<LinearWeight> SmoothedDown(const LinearWeight& down, const TensorView& linear_amax) const;
  RotaryArgs Rotary(const BlockWeights& block, const TokenBatch& batch, TensorView qkv, TensorView out) const;

  Ops& ops_;
  ModelConfig config_;
  DType dtype_;
  Tensor cos_, sin_;  // [max_positions, head_dim / 2]
};

}  // namespace quern
