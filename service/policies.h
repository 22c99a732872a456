#pragma once

#include <string>
#include <vector>

#include "proto/coordinator.pb.h"
#include "service/job.h"
#include "service/run_directory.h"

namespace quern {

// How a job samples from its models: temperature and cuts, and for pairs Q-SFT's extraction.
void SetSampling(const Job& job, int32_t reserved_token, bool evaluation, v1::PolicySpec& policy);

// RUN/weights.json: what every finished train stage published, by stage name. Paths inside the run are kept relative to
// it.
Status SaveWeights(const std::string& run_directory, const std::map<std::string, v1::WeightVersion>& weights);
Result<std::map<std::string, v1::WeightVersion>> LoadWeights(const Run& run);

// A policy by what the command line calls it: "behaviour" or "sft", "filtered_sft", "q_sft", the same with "_online"
// (after the last round that is done), "regenesis" and other arms, "regenesis-1", "base", "player:NAME"; or a
// directory: a Hugging Face model, or one that `quern export` wrote. Empty: the job's method, after the online phase if
// there was one.
Result<v1::PolicySpec> FindPolicy(const Run& run, const std::string& name);

// DIR/policy.json: how the models beside it make a policy.
std::string PolicyJson(const Run& run, const v1::PolicySpec& policy, const std::vector<std::string>& model_folders);
Result<v1::PolicySpec> LoadPolicyDirectory(const std::string& directory);

}  // namespace quern
