#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "actors/environment.h"
#include "actors/rollout.h"
#include "model/tokenizer/tokenizer.h"
#include "proto/coordinator.pb.h"
#include "replay/client.h"
#include "transport/metrics.h"
#include "transport/rpc.h"

namespace quern {

// Everything an actor needs, made by whoever starts it. Pointers must outlive RunActor.
struct ActorRoleOptions {
  uint32_t index = 0;
  RpcClient* coordinator = nullptr;
  Replay* replay = nullptr;
  std::shared_ptr<const EnvironmentFactory> environment;  // the job's; tasks may name others
  std::string environment_name;                           // its name, for metrics
  std::string base_dir;                                   // where relative files of those are looked up
  std::shared_ptr<const Tokenizer> tokenizer;
  RolloutOptions rollout;
  EngineOptions engine;
  Recipe precision;
  std::string device = "cpu";  // NewOps, with this share
  int64_t device_share = 0;
  int threads = 1;
  int64_t insert_batch = 64;                            // trajectories an insert
  Duration call_timeout = std::chrono::seconds(30);     // for the coordinator's answers
  Duration insert_timeout = std::chrono::seconds(120);  // until the store acknowledges
  Metrics* metrics = nullptr;                           // of role "actor"; may be null
  // Where a version is on this host; null: at its path. `alive` is to be called about once a second meanwhile.
  std::function<Result<std::string>(const v1::WeightVersion& version, const std::function<Status()>& alive)> locate;
  const std::atomic<bool>* stop = nullptr;  // set: leave after what is acknowledged
};

// Leases rollout tasks, plays them with the policy they name, stores every episode durably, reports, until the
// coordinator or `stop` says so. An error of a task is reported to the coordinator and the actor goes on; an error of
// the actor itself (no coordinator, no store) is returned.
Status RunActor(const ActorRoleOptions& options);

}  // namespace quern
