#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "learner/mixture.h"
#include "learner/sample_limiter.h"
#include "learner/trainer.h"
#include "proto/coordinator.pb.h"
#include "proto/replay.pb.h"

namespace quern {

inline constexpr char kHeldoutTag[] = "heldout";  // real records that are only ever scored
inline constexpr char kHeldoutMethod[] = "heldout_loss";
inline constexpr char kRolloutMethod[] = "rollout_check";

// A train stage as the learner runs it: TrainStage.options_json with its types.
struct TrainStageOptions {
  std::string method;  // sft | filtered_sft | q_sft; heldout_loss and rollout_check score and train nothing
  OptimizerOptions optimizer;
  int64_t batch_size = 64;  // trajectories a step
  int64_t micro_batch_tokens = 4096;
  double top_fraction = 0;  // 0: all records
  v1::Selector selector = v1::SELECTOR_UNIFORM;
  double priority_exponent = 0.7;
  uint64_t window = 0;
  SampleLimits limits;
  QSftOptions q_sft;
  RewardScale::Kind reward_scale = RewardScale::Kind::kLinear;
  double reward_temperature = 1;
  std::string weights_name;
  uint64_t seed = 0;
  uint64_t watermark = 0;  // records up to this number are sampled
  std::vector<std::string> without_tags;
  MixtureOptions mixture;
  int64_t mixture_checks = 4;  // times in a stage that the controller looks at the held-out loss, where there is any
  uint32_t generation_depth = 1;
  // What earlier stages that publish under this name left to the mixture's controller.
  std::vector<LossPoint> phases;
  int halvings = 0;
};

// Unknown keys and wrong types are errors that name the key.
Result<TrainStageOptions> ParseTrainStage(const v1::TrainStage& stage);

}  // namespace quern
