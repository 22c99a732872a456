#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/e2e/tiny_job.h"

namespace quern {
namespace {

using Json = nlohmann::json;

std::map<std::string, int64_t> Planned(const QuernProcess::Folder& folder, std::vector<std::string> settings = {}) {
  settings.insert(settings.begin(), {"plan", folder.File("tiny.yaml"), "-o", "json"});
  const auto plan = QuernProcess::Run(folder, settings);
  EXPECT_EQ(plan.code, 0) << plan.err;
  std::map<std::string, int64_t> bytes;
  const Json json = Json::parse(plan.out);
  for (const Json& role : json.at("memory")) bytes[role.at("role")] = role.at("bytes");
  return bytes;
}

// The most of each role's processes.
std::map<std::string, int64_t> Measured(const QuernProcess::Folder& folder) {
  std::map<std::string, int64_t> bytes;
  const auto text = ReadFile(folder.File("run/memory.jsonl"));
  EXPECT_TRUE(text.ok()) << text.status().ToString();
  for (const std::string& line : StrSplit(*text, '\n')) {
    if (line.empty()) continue;
    const Json json = Json::parse(line);
    int64_t& most = bytes[json.at("role")];
    most = std::max(most, json.at("peak_resident_bytes").get<int64_t>());
  }
  return bytes;
}

// docs/benchmarks.md has how near they come; machines, libraries and sanitizers differ, so there is room here.
TEST(MemoryPlan, ForetellsTheLearnerAndTheActor) {
  const QuernProcess::Folder folder;
  const auto run = QuernProcess::Run(folder, RunArguments(folder));
  ASSERT_EQ(run.code, 0) << run.err;
  std::map<std::string, int64_t> planned = Planned(folder), measured = Measured(folder);
  EXPECT_EQ(measured.size(), 4u);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  for (const char* role : {"learner", "actor"}) {
    EXPECT_GT(planned[role], measured[role] * 2 / 3) << role << " " << measured[role];
    EXPECT_LT(planned[role], measured[role] * 3 / 2) << role << " " << measured[role];
  }
#endif
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Where weights decide, in the two precisions: 11 and 27 million parameters.
TEST(MemoryPlan, ComesWithinATenthWhereWeightsDecide) {
  const std::vector<std::vector<std::string>> sizes = {
      {"model.config.hidden_size=384", "model.config.num_hidden_layers=6", "model.config.num_attention_heads=6",
       "model.config.intermediate_size=1024"},
      {"model.config.hidden_size=512", "model.config.num_hidden_layers=8", "model.config.num_attention_heads=8",
       "model.config.intermediate_size=1536"}};
  const std::vector<std::vector<std::string>> precisions = {{"precision=bf16"},
                                                            {"precision=fp8", "optimizer.moments=fp8"}};
  for (const auto& size : sizes) {
    for (const auto& precision : precisions) {
      const QuernProcess::Folder folder;
      // Enough steps and episodes that the longest batch and the budget of keys and values are met.
      std::vector<std::string> settings = {"method=sft",
                                           "compare=[]",
                                           "online.rounds=0",
                                           "sft.max_steps=12",
                                           "evaluate.episodes=48",
                                           "evaluate.players=[]",
                                           "optimizer.block=0",
                                           "actors=1",
                                           "rollout.kv_cache_mib=16"};
      settings.insert(settings.end(), size.begin(), size.end());
      settings.insert(settings.end(), precision.begin(), precision.end());
      const auto run = QuernProcess::Run(folder, RunArguments(folder, settings));
      ASSERT_EQ(run.code, 0) << run.err;
      std::map<std::string, int64_t> planned = Planned(folder, settings), measured = Measured(folder);
      for (const char* role : {"learner", "actor"}) {
        const double ratio = static_cast<double>(planned[role]) / static_cast<double>(measured[role]);
        EXPECT_NEAR(ratio, 1, 0.1) << role << ", " << size[0] << ", " << precision[0] << ": " << measured[role];
      }
    }
  }
}
#endif

// A GPU that a job names need not be there.
TEST(MemoryPlan, CountsAGpusMemoryApart) {
  const QuernProcess::Folder folder;
  WriteTinyJob(folder);
  const auto plan = [&](const std::string& device) {
    const auto ended = QuernProcess::Run(folder, {"plan", folder.File("tiny.yaml"), "-o", "json", "device=" + device});
    EXPECT_EQ(ended.code, 0) << ended.err;
    return Json::parse(ended.out);
  };
  const Json host = plan("cpu"), gpu = plan("cuda");
  EXPECT_TRUE(host.at("gpu_memory").empty());
  ASSERT_EQ(gpu.at("gpu_memory").size(), 2u);
  for (const size_t role : {0, 1}) {
    const Json &before = host.at("memory")[role], &on_host = gpu.at("memory")[role],
               &there = gpu.at("gpu_memory")[role];
    EXPECT_EQ(there.at("role"), before.at("role"));
    EXPECT_EQ(there.at("processes"), before.at("processes"));
    for (const auto& [item, bytes] : before.at("items").items()) {
      const bool stays = item == "process" || item == "environment";
      EXPECT_EQ(on_host.at("items").contains(item), stays) << item;
      EXPECT_EQ(there.at("items").contains(item), !stays) << item;
    }
  }
  const auto item = [](const Json& role, const char* name) { return role.at("items").at(name).get<int64_t>(); };
  for (const char* name : {"weights", "gradients", "moments", "activations"})
    EXPECT_EQ(item(gpu.at("gpu_memory")[0], name), item(host.at("memory")[0], name)) << name;
  // Masters, moments and Q-SFT's target, as a checkpoint has them.
  EXPECT_EQ(item(gpu.at("memory")[0], "copies for checkpoints"), 16 * gpu.at("parameters").get<int64_t>());
}

// What a larger model needs can be told where it could not run.
TEST(MemoryPlan, GrowsAsTheModelDoes) {
  const QuernProcess::Folder folder;
  WriteTinyJob(folder);
  const auto plan = [&](std::vector<std::string> overrides) {
    std::vector<std::string> arguments = {"plan",
                                          folder.File("tiny.yaml"),
                                          "-o",
                                          "json",
                                          "method=sft",
                                          "compare=[]",
                                          "model.config.hidden_size=512",
                                          "model.config.intermediate_size=1536"};
    arguments.insert(arguments.end(), overrides.begin(), overrides.end());
    const auto ended = QuernProcess::Run(folder, arguments);
    EXPECT_EQ(ended.code, 0) << ended.err;
    return Json::parse(ended.out);
  };
  const auto learner = [](const Json& json, const char* item) -> int64_t {
    return json.at("memory").at(0).at("items").at(item);
  };
  const Json two = plan({"model.config.num_hidden_layers=2"});
  const Json five = plan({"model.config.num_hidden_layers=5"});
  const int64_t matrices = int64_t{4} * 512 * 512 + 3 * 512 * 1536;
  const int64_t layer = matrices + 2 * 512;
  EXPECT_EQ(five.at("parameters").get<int64_t>() - two.at("parameters").get<int64_t>(), 3 * layer);
  for (const char* item : {"weights", "gradients"})
    EXPECT_EQ(learner(five, item), 4 * five.at("parameters").get<int64_t>());
  EXPECT_EQ(learner(five, "moments"), 8 * five.at("parameters").get<int64_t>());
  EXPECT_GT(learner(five, "activations"), learner(two, "activations"));
  // FP8 moments: 2 bytes a parameter of the matrices, and next to nothing for scales, norms and biases.
  const Json fp8 = plan({"model.config.num_hidden_layers=5", "optimizer.moments=fp8", "optimizer.block=2048"});
  EXPECT_GE(learner(fp8, "moments"), 2 * five.at("parameters").get<int64_t>());
  EXPECT_LE(learner(fp8, "moments"), 2.02 * five.at("parameters").get<double>());
}

}  // namespace
}  // namespace quern
