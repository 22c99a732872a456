#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "learner/batch_builder.h"
#include "learner/checkpoints.h"
#include "learner/communicator.h"
#include "learner/moments.h"
#include "model/config.h"
#include "model/recipe.h"
#include "replay/replay.h"
#include "transport/metrics.h"
#include "transport/rpc.h"

namespace quern {

// Everything the learner needs, made by whoever starts it. Pointers must outlive RunLearner.
struct LearnerRoleOptions {
  RpcClient* coordinator = nullptr;
  Replay* replay = nullptr;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::string model_directory;        // the untrained model: what a start named "base" of version 0 means
  std::string weights_directory;      // published versions are written here: NAME-VERSION/
  std::string metrics_path;           // metrics.jsonl: one object a logged step
  std::string tensorboard_directory;  // the same numbers as event files, a folder a stage; empty: none
  BatchOptions batch;                 // max_positions 0: the model's
  int32_t reserved_token = -1;        // Q-SFT's dummy action
  Recipe precision;
  std::string device = "cpu";  // NewOps; rank r counts r further
  OptimizerMemory optimizer;
  // Data-parallel: rank 0 speaks with the coordinator, publishes and writes checkpoints, the others do as it does and
  // are told so; coordinator is null for them. Null: alone.
  HostCommunicator* ranks = nullptr;
  int64_t shards = 0;  // TrainerOptions::shards
  int threads = 0;     // 0: all cores
  int64_t log_every_steps = 10;
  Duration call_timeout = std::chrono::seconds(30);
  CheckpointOptions checkpoints;
  std::function<void(const std::string& text)> on_event;  // something that people should know; may be empty
  Metrics* metrics = nullptr;                             // of role "learner"; may be null
  const std::atomic<bool>* stop = nullptr;
};

// Asks the coordinator for train stages, runs each, publishes its weights, reports, until the coordinator or `stop`
// says so. A stage that fails is reported to the coordinator with its reason; an error of the learner itself is
// returned.
Status RunLearner(const LearnerRoleOptions& options);

}  // namespace quern
