#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model/config.h"
#include "service/job.h"

namespace quern {

// What one role's process will need, in bytes.
struct RolePlan {
  std::string role;
  int64_t processes = 1;
  std::vector<std::pair<std::string, int64_t>> items;  // "weights", "gradients", ...; the process itself is one
  std::string note;                                    // of what was assumed; may be empty
  int64_t peak() const;
};

struct MemoryPlan {
  std::vector<RolePlan> memory;
  std::vector<RolePlan> device;  // on a GPU, where the job computes on one
  std::vector<RolePlan> disk;    // what each role will have written by the end
  int64_t parameters = 0;
};

// Runs the steps of every train stage and an actor's largest step without computing anything, on as many layers as it
// takes to know what one costs. A GPU that the job computes on need not be there. Records are as long as what the job's
// players write; where no player does, as long as the environment and the model allow.
Result<MemoryPlan> PlanMemory(const Job& job);

// The budget of an actor's keys and values: rollout.kv_cache_mib, or by default room for all concurrent episodes.
int64_t ActorKvBytes(const Job& job, const ModelConfig& config);

std::string FormatMemoryPlan(const MemoryPlan& plan);
std::string MemoryPlanToJson(const MemoryPlan& plan);

}  // namespace quern
