#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "learner/batch_parts.h"
#include "learner/communicator.h"
#include "learner/loss_head.h"
#include "learner/moments.h"
#include "methods/objective.h"
#include "methods/q_sft.h"
#include "model/transformer.h"

namespace quern {

struct OptimizerOptions {
  float learning_rate = 1e-3f;
  int64_t warmup_steps = 0;
  int64_t max_steps = 1000;              // where the schedule ends
  std::string schedule = "cosine";       // constant | linear | cosine
  float min_learning_rate_ratio = 0.1f;  // the schedule ends at this share of learning_rate
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f;
  float weight_decay = 0.01f;
  float max_grad_norm = 1.0f;  // 0: no clipping
  uint64_t seed = 0;           // of stochastic rounding
  // Selective attention: the loss gets this times the cache entries that each layer and sequence needs at most (largest
  // M of methods.md), per token and layer.
  float memory_loss = 0;
};

// Learning rate of 0-based step `step`: linear warm-up, then the schedule.
float LearningRate(const OptimizerOptions& options, int64_t step);

struct TrainerOptions {
  OptimizerOptions optimizer;
  OptimizerMemory memory = {};
  int64_t max_micro_batch_tokens = 4096;  // a step's batch is split by whole sequences to stay below this
  // Data-parallel training with sharded optimizer state (ZeRO-1): every rank gives the same batch to Step, takes the
  // gradient of its shards of it, keeps the moments of its slice of the weights and updates that. Null: alone.
  HostCommunicator* ranks = nullptr;
  // For gradients and weights where they lie in a device's memory, and needed there beside `ranks` (NCCL).
  Communicator* device_ranks = nullptr;
  // A batch is cut, by whole sequences, into so many parts whose gradients are summed in the order of Communicator's
  // tree. Steps are equal to the bit for every number of ranks that goes with the same number of shards: a divisor of
  // it, both powers of two; or as many ranks as shards. 0: as many as ranks.
  int64_t shards = 0;
};

struct StepReport {
  double loss = 0;  // per loss token
  double mean_log_prob = 0;
  double entropy = 0;
  double grad_norm = 0;  // before clipping
  double learning_rate = 0;
  int64_t tokens = 0;  // rows of the batch
  int64_t loss_tokens = 0;
  MethodMetrics method;  // per loss token
  // FP8 recipes: shares of all values cast to FP8, and by layer.
  struct Fp8Layer {
    double saturated = 0, flushed = 0;                    // by casts of activations
    double gradient_saturated = 0, gradient_flushed = 0;  // by casts of gradients
    double linear_amax = 0;                               // largest magnitude of the SwiGLU's linear branch
  };
  std::vector<Fp8Layer> fp8;
  std::vector<float> log_probs;  // of the batch's loss rows, before the update
  struct Seconds {
    double forward = 0;    // of the model, and of those that it learns against
    double backward = 0;   // the head both ways, and the model's backward
    double optimizer = 0;  // norm, update, repacking of the weights
  } seconds;
  double live_share = 0;  // selective attention: cache entries needed at most, of all, mean over layers

  // What a part of the batch reports is added to what another does.
  void Add(const StepReport& other);
};

// Bytes that a trainer holds.
struct TrainerMemory {
  int64_t parameters = 0;  // the master weights
  int64_t gradients = 0;
  int64_t moments = 0;
  int64_t packed = 0;       // the weights as products read them, both ways
  int64_t target = 0;       // Q-SFT's second copy: masters and packed
  int64_t activations = 0;  // most that a step has taken so far
  int64_t total() const { return parameters + gradients + moments + packed + target + activations; }
};

// Largest and mean over the channels of a layer of |cosine| between the rows of its gate and its up projection: a
// channel near 1 squares its input.
struct GateLinearCorrelation {
  double largest = 0, mean = 0;
};
GateLinearCorrelation CorrelateGateAndLinear(const Parameters& parameters, int64_t layer);

// Master weights, moments and the training step of one model. Owns nothing of where data comes from or weights go.
// Not thread-safe.
class Trainer {
 public:
  // Copies of other models a method learns against; they must outlive the call.
  struct Bootstrap {
    const Weights* behaviour = nullptr;
    float epsilon = 0.01f;
    float top_p = 0.95f;
    int32_t reserved = -1;
  };

  // max_positions bounds the length of a sequence.
  Trainer(Ops& ops, const ModelConfig& config, const Recipe& recipe, int64_t max_positions,
          const TrainerOptions& options);

  Parameters& parameters() { return parameters_; }
  // Weights and, where the recipe has them, smooth scales: what a version of weights is.
  TensorSource Source() const;
  // From what Source() gave at some time; scales that `source` does not have are ones.
  Status CopyFrom(const TensorSource& source);
  void set_max_micro_batch_tokens(int64_t tokens) { options_.max_micro_batch_tokens = tokens; }
  const Transformer& transformer() const { return transformer_; }
  const Weights& weights() const { return weights_; }
  TrainerMemory Memory() const;
  int64_t step() const { return step_; }

  // Repacks the working copy after parameters() changed from outside; starts moments, the step counter and, when
  // `polyak` is given, a target copy of the weights afresh.
  Status Begin(const OptimizerOptions& optimizer, std::optional<float> polyak);

  // After Begin: everything that steps change, by name. Once they are overwritten with those of an earlier moment,
  // Resume makes this the trainer of that moment, to the bit, with any number of ranks. With ranks, the moments are
  // temporary arrays of the whole: CollectState (a call of all ranks) fills those of rank 0; Resume and ReleaseState
  // give them back.
  std::vector<std::pair<std::string, TensorView>> State();
  Status CollectState();
  void ReleaseState() { whole_moments_.clear(); }
  Status Resume(int64_t step);

  // One optimizer step. `bootstrap` is needed when objective.needs_max_ratio(). A loss or gradient that is not finite
  // is an error and changes nothing.
  Result<StepReport> Step(const TrainingBatch& batch, const Objective& objective, const Bootstrap* bootstrap);

  // Raw log-probabilities of the batch's loss rows under the current weights.
  std::vector<float> Score(const TrainingBatch& batch);

  // Forward and backward of the whole batch without an update: for tests and gradient accumulation. Adds to
  // gradients().
  Result<StepReport> AccumulateGradients(const TrainingBatch& batch, const Objective& objective,
                                         const Bootstrap* bootstrap);
  Parameters& gradients() { return gradients_; }

 private:
  // Of the whole batch that a shard is a part of.
  struct WholeBatch {
    double loss_rows = 0;
    int64_t tokens = 0;
  };
  int rank() const { return options_.ranks == nullptr ? 0 : options_.ranks->rank(); }
  Result<StepReport> AccumulateShard(const TrainingBatch& shard, uint64_t number, const WholeBatch& whole,
                                     const Objective& objective, const Bootstrap* bootstrap, Parameters& gradients,
                                     const GradientsDone& done);
  Result<StepReport> AccumulateTree(std::span<const TrainingBatch> shards, int64_t lo, int64_t hi,
                                    const WholeBatch& whole, const Objective& objective, const Bootstrap* bootstrap,
                                    Parameters& gradients, size_t depth, const GradientsDone& done);
  Status ReduceOverRanks(StepReport& report);
  Result<double> GradientNorm();
  Communicator& tensor_ranks() { return options_.device_ranks != nullptr ? *options_.device_ranks : *options_.ranks; }
  void ObserveFp8(const Saved& saved, StepReport& report);
  void FinishFp8(StepReport& report) const;
  void UpdateFp8State();
  Status LoadTarget();
  TensorView ForwardHidden(const Weights& weights, const TokenBatch& batch, const KvView& kv, Saved* saved);

  Ops& ops_;
  TrainerOptions options_;
  Transformer transformer_;
  LossHead loss_head_;
  Parameters parameters_, gradients_;
  std::vector<std::unique_ptr<Parameters>> spare_gradients_;  // of the tree's right halves, by depth
  std::vector<size_t> slices_;                                // first parameter of each rank's slice, and the end
  std::vector<int64_t> slice_bounds_;                         // the same in elements
  Moments moments_;
  std::vector<Tensor> whole_moments_;  // Moments::Arrays, while the state is looked at
  Tensor smooth_scales_;               // [layers, F], empty unless the recipe smooths channels
  Tensor linear_amax_;                 // [layers, F], of the step under way
  Tensor fp8_amax_;                    // [layers, 12], kFp8Delayed: of the last step; and of the one under way
  Tensor fp8_seen_;
  Weights weights_;
  std::optional<float> polyak_;
  std::unique_ptr<Parameters> target_parameters_;
  std::unique_ptr<Weights> target_weights_;
  Arena arena_;
  int64_t step_ = 0;
};

}  // namespace quern
