#include "service/policies.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/strings.h"
#include "service/compression.h"
#include "service/plan.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kOnlineSuffix = "_online";

v1::WeightVersion BaseWeights(const BaseModel& model) {
  v1::WeightVersion weights;
  weights.set_name(kBaseModel);
  weights.set_path(model.directory);
  weights.set_content_hash(model.content_hash);
  return weights;
}

}  // namespace

void SetSampling(const Job& job, int32_t reserved_token, bool evaluation, v1::PolicySpec& policy) {
  policy.set_reserved_token(reserved_token);
  policy.set_uniform_remainder(job.qsft.remainder == "uniform");
  v1::SamplingParams& sampling = *policy.mutable_sampling();
  sampling.set_temperature(static_cast<float>(job.sampling.temperature));
  if (evaluation && job.evaluate.temperature >= 0)
    sampling.set_temperature(static_cast<float>(job.evaluate.temperature));
  sampling.set_top_k(static_cast<uint32_t>(job.sampling.top_k));
  sampling.set_top_p(static_cast<float>(job.sampling.top_p));
  sampling.set_min_p(static_cast<float>(job.sampling.min_p));
  sampling.set_repetition_penalty(static_cast<float>(job.sampling.repetition_penalty));
  if (policy.weights_size() > 0 && !job.compression.off()) *sampling.mutable_compression() = ToProto(job.compression);
  if (policy.weights_size() != 2) return;
  sampling.set_q_sft_beta(static_cast<float>(job.qsft.beta));
  sampling.set_rule(job.qsft.rule);
  policy.set_support_epsilon(static_cast<float>(job.qsft.support_epsilon));
  policy.set_support_top_p(static_cast<float>(job.qsft.support_top_p));
}

Status SaveWeights(const std::string& run_directory, const std::map<std::string, v1::WeightVersion>& weights) {
  Json json = Json::object();
  for (const auto& [stage, version] : weights) {
    const std::string relative = std::filesystem::path(version.path()).lexically_relative(run_directory);
    const bool inside = !relative.empty() && !relative.starts_with("..");
    json[stage] = {{"name", version.name()},
                   {"version", version.version()},
                   {"content_hash", version.content_hash()},
                   {"path", inside ? relative : version.path()},
                   {"step", version.step()},
                   {"generation_depth", version.generation_depth()}};
  }
  return WriteFileAtomic(JoinPath(run_directory, "weights.json"), json.dump(2) + "\n");
}

Result<std::map<std::string, v1::WeightVersion>> LoadWeights(const Run& run) {
  std::map<std::string, v1::WeightVersion> weights;
  const std::string path = run.Path("weights.json");
  if (!PathExists(path)) return weights;
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  try {
    const Json json = Json::parse(text);
    for (const auto& [stage, entry] : json.items()) {
      v1::WeightVersion& version = weights[stage];
      version.set_name(entry.at("name"));
      version.set_version(entry.at("version"));
      version.set_content_hash(entry.at("content_hash"));
      version.set_path(run.Path(entry.at("path")));  // an absolute path stays itself
      version.set_step(entry.at("step"));
      version.set_generation_depth(entry.at("generation_depth"));
    }
  } catch (const nlohmann::json::exception& problem) {
    return DataLoss(path + ": " + problem.what());
  }
  return weights;
}

Result<v1::PolicySpec> FindPolicy(const Run& run, const std::string& asked) {
  if (asked.find('/') != std::string::npos || (!asked.empty() && PathExists(JoinPath(asked, "config.json"))))
    return LoadPolicyDirectory(asked);
  v1::PolicySpec policy;
  if (asked.starts_with("player:")) {
    policy.set_name(asked);
    policy.set_player(asked.substr(7));
    return policy;
  }
  QUERN_ASSIGN_OR_RETURN(const auto weights, LoadWeights(run));
  std::string name = asked == "behaviour" ? "sft" : asked;
  const auto online_stages = [&](const std::string& method) {
    std::vector<std::string> newest;
    for (int64_t round = 1; round <= run.job.online.rounds; ++round) {
      std::vector<std::string> stages = {StrCat("online-", round, ":", method)};
      if (method == "q_sft") stages.insert(stages.begin(), StrCat("online-", round, ":sft"));
      bool all = true;
      for (const std::string& stage : stages) all = all && weights.contains(stage);
      if (all) newest = stages;
    }
    return newest;
  };
  // An arm of reasoning rounds: its last one that is done; ARM-K: after round K.
  const auto last_round = [&](const std::string& arm) {
    std::string newest;
    for (int64_t round = 1; round <= run.job.regenesis.rounds; ++round)
      if (const std::string stage = StrCat(arm, "-", round, ":sft"); weights.contains(stage)) newest = stage;
    return newest;
  };
  std::vector<std::string> stages;
  if (name.empty() && run.job.method == "regenesis") name = "regenesis";
  if (std::find(std::begin(kArms), std::end(kArms), name) != std::end(kArms)) {
    stages = {last_round(name)};
    if (stages[0].empty()) return NotFound(run.directory + ": no round of " + name + " of this run is done");
  } else if (weights.contains(name + ":sft")) {
    stages = {name + ":sft"};
  } else if (name.empty()) {
    stages = online_stages(run.job.method);
    name = stages.empty() ? run.job.method : run.job.method + std::string(kOnlineSuffix);
  } else if (name.ends_with(kOnlineSuffix)) {
    stages = online_stages(name.substr(0, name.size() - kOnlineSuffix.size()));
    if (stages.empty()) return NotFound(run.directory + ": no online round of this run is done");
  }
  policy.set_name(name);
  if (name == kBaseModel) {
    *policy.add_weights() = BaseWeights(run.model);
  } else {
    if (stages.empty())
      stages = name == "q_sft" ? std::vector<std::string>{"sft", "q_sft"} : std::vector<std::string>{name};
    for (const std::string& stage : stages) {
      const auto it = weights.find(stage);
      if (it == weights.end()) {
        std::vector<std::string> known = {kBaseModel};
        for (const auto& [done, version] : weights) known.push_back(done);
        return NotFound("policy '" + name + "': this run has no weights of stage " + stage + "; it has " +
                        StrJoin(known, ", "));
      }
      *policy.add_weights() = it->second;
    }
  }
  SetSampling(run.job, run.model.reserved_token, true, policy);
  return policy;
}

std::string PolicyJson(const Run& run, const v1::PolicySpec& policy, const std::vector<std::string>& model_folders) {
  const v1::SamplingParams& sampling = policy.sampling();
  Json json = {{"policy", policy.name()}, {"run", run.name()}, {"environment", run.job.environment}};
  json["models"] = Json::array();
  for (int i = 0; i < policy.weights_size(); ++i) {
    const v1::WeightVersion& weights = policy.weights(i);
    json["models"].push_back({{"folder", model_folders[static_cast<size_t>(i)]},
                              {"role", policy.weights_size() == 1 ? "policy"
                                       : i == 0                   ? "behaviour"
                                                                  : "value"},
                              {"version", weights.version()},
                              {"step", weights.step()},
                              {"trained_hash", weights.content_hash()}});
  }
  json["reserved_token"] = policy.reserved_token();
  json["sampling"] = {{"temperature", sampling.temperature()},
                      {"top_k", sampling.top_k()},
                      {"top_p", sampling.top_p()},
                      {"min_p", sampling.min_p()},
                      {"repetition_penalty", sampling.repetition_penalty()}};
  if (policy.weights_size() == 2) {
    json["qsft"] = {{"beta", sampling.q_sft_beta()},
                    {"rule", sampling.rule()},
                    {"support_epsilon", policy.support_epsilon()},
                    {"support_top_p", policy.support_top_p()},
                    {"remainder", policy.uniform_remainder() ? "uniform" : "dummy"}};
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<v1::PolicySpec> LoadPolicyDirectory(const std::string& directory) {
  v1::PolicySpec policy;
  policy.set_name(directory);
  policy.set_reserved_token(-1);
  policy.mutable_sampling()->set_temperature(1);
  policy.mutable_sampling()->set_top_p(1);
  policy.mutable_sampling()->set_repetition_penalty(1);
  const std::string path = JoinPath(directory, "policy.json");
  if (!PathExists(path)) {
    if (!PathExists(JoinPath(directory, "config.json")))
      return NotFound(directory + ": neither a model directory (config.json) nor an exported policy (policy.json)");
    policy.add_weights()->set_path(directory);
    return policy;
  }
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  try {
    const Json json = Json::parse(text);
    for (const Json& model : json.at("models")) {
      const std::string folder = model.at("folder");
      if (folder.find("..") != std::string::npos || folder.starts_with("/"))
        return InvalidArgument(path + ": folder '" + folder + "' is not inside the directory");
      policy.add_weights()->set_path(folder == "." ? directory : JoinPath(directory, folder));
    }
    policy.set_reserved_token(json.at("reserved_token"));
    const Json& sampling = json.at("sampling");
    policy.mutable_sampling()->set_temperature(sampling.at("temperature"));
    policy.mutable_sampling()->set_top_k(sampling.at("top_k"));
    policy.mutable_sampling()->set_top_p(sampling.at("top_p"));
    policy.mutable_sampling()->set_min_p(sampling.at("min_p"));
    policy.mutable_sampling()->set_repetition_penalty(sampling.at("repetition_penalty"));
    if (policy.weights_size() == 2) {
      const Json& qsft = json.at("qsft");
      policy.mutable_sampling()->set_q_sft_beta(qsft.at("beta"));
      policy.mutable_sampling()->set_rule(qsft.at("rule"));
      policy.set_support_epsilon(qsft.at("support_epsilon"));
      policy.set_support_top_p(qsft.at("support_top_p"));
      policy.set_uniform_remainder(qsft.at("remainder") == "uniform");
    }
  } catch (const nlohmann::json::exception& problem) {
    return DataLoss(path + ": " + problem.what());
  }
  return policy;
}

}  // namespace quern
