// The reinforcement-learning fixture that verl tests itself with (QUERN_SHARED_DATA), from its random weights and by
// its own rule: the best mean reward of an online run must exceed 0.2.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/e2e/quern_process.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

TEST(DigitFixture, AnOnlineRunPassesThePeersOwnRule) {
  QUERN_NEED_SHARED_DATA("digit-completion");
  const std::string fixture = std::filesystem::absolute(SharedData("digit-completion"));
  const QuernProcess::Folder folder;
  const std::string job = "name: fixture\nprecision: fp32\nmodel_name_or_path: " + fixture +
                          "/model\nenvironment: {name: dataset, file: " + fixture +
                          "/data/train.jsonl, suffix: S, grader: prefix, max_tokens: 32}\n"
                          "method: filtered_sft\n"
                          "filtered_sft: {top_fraction: 0.1, learning_rate: 1e-3, batch_size: 64}\n"
                          "online:\n"
                          "  rounds: 22\n"
                          "  episodes: 2400\n"
                          "  filtered_sft: {max_steps: 70, warmup_steps: 5}\n"
                          "evaluate: {episodes: 800, players: []}\n";
  ASSERT_TRUE(WriteFileAtomic(folder.File("fixture.yaml"), job).ok());
  const auto ended = QuernProcess(folder, {"run", folder.File("fixture.yaml"), "output_dir=" + folder.File("run")})
                         .Wait(std::chrono::seconds(560));
  ASSERT_EQ(ended.code, 0) << ended.err;
  const auto result = nlohmann::json::parse(*ReadFile(folder.File("run/result.json")));
  double best = 0;
  for (const auto& row : result["table"]) best = std::max(best, row["mean_return"].get<double>());
  RecordProperty("best_mean_reward", std::to_string(best));
  EXPECT_GT(best, 0.2);
}

}  // namespace
}  // namespace quern
