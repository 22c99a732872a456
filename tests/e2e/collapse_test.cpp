#include <nlohmann/json.hpp>

#include "tests/e2e/quern_process.h"

namespace quern {
namespace {

using Json = nlohmann::json;

// A study of a second or two: the pattern is for examples/collapse.yaml, what is measured and written is tested here.
TEST(Collapse, RowsMetricsAndStagesOfASmallStudy) {
  const QuernProcess::Folder folder;
  const std::string job =
      "name: small\n"
      "precision: fp32\n"
      "model: {config: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 16}}\n"
      "environment: {name: sentences, words: 6, length: 6}\n"
      "data:\n"
      "  collect: [{player: writer, episodes: 96}]\n"
      "  heldout: [{player: writer, episodes: 40}]\n"
      "method: sft\n"
      "sft: {learning_rate: 1e-2, batch_size: 8, warmup_steps: 2}\n"
      "collapse:\n"
      "  first_records: 8\n"
      "  generated: 50\n"
      "  real_records: [48, 96]\n"
      "  passes: 4\n"
      "  rules:\n"
      "    - {policy: real_only}\n"
      "    - {policy: fixed, share: 0.5}\n"
      "    - {policy: controller, probe_steps: 12, probe_sizes: [12, 24, 48], omega_max: 0.4}\n"
      "evaluate: {episodes: 0}\n";
  ASSERT_TRUE(WriteFileAtomic(folder.File("small.yaml"), job).ok());
  const auto ended = QuernProcess::Run(folder, {"run", folder.File("small.yaml"), "output_dir=" + folder.File("run")});
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_NE(ended.out.find("held-out loss"), std::string::npos) << ended.out;

  const Json result = Json::parse(*ReadFile(folder.File("run/result.json")));
  std::map<std::string, Json> rows, stages;
  for (const Json& row : result["table"]) rows[row["policy"]] = row;
  for (const Json& stage : result["stages"]) stages[stage["name"]] = stage["metrics"];
  ASSERT_EQ(rows.size(), 8u) << "the data, the first model, three rules twice";
  for (const auto& [name, row] : rows) {
    if (name == "data") continue;
    EXPECT_GT(row["heldout_loss"], 1.0) << name;  // the language's own entropy is about 1.4 nats
    EXPECT_LT(row["heldout_loss"], 4.0) << name;
    EXPECT_GT(row["heldout_std_error"], 0) << name;
    EXPECT_EQ(stages["score:" + name]["heldout_records"], 40) << name;
  }
  EXPECT_EQ(rows["real_only@96"]["omega"], 0);
  EXPECT_EQ(rows["fixed_0.5@48"]["omega"], 0.5);
  EXPECT_EQ(rows["fixed_0.5@48"]["real_records"], 48);
  const double omega = rows["controller@48"]["omega"];
  EXPECT_GT(omega, 0);
  EXPECT_LE(omega, 0.4);

  const Json& controlled = stages["controller@48"];
  for (const char* name : {"probe_real_12", "probe_real_24", "probe_real_48", "probe_unverified_48", "sigma2d", "e0",
                           "c2_unverified", "halvings", "heldout_loss"})
    EXPECT_TRUE(controlled.contains(name)) << name;
  EXPECT_NEAR(
      controlled["c2_unverified"].get<double>(),
      std::max(0.0, controlled["probe_unverified_48"].get<double>() - controlled["probe_real_48"].get<double>()),
      1e-12);
  EXPECT_EQ(controlled["depth_0"], 48);
  EXPECT_EQ(controlled["depth_1"], 50);
  EXPECT_LE(controlled["unique_real"], 48);

  bool last_phase = false, mixed = false;
  for (const std::string& text : StrSplit(*ReadFile(folder.File("run/metrics.jsonl")), '\n')) {
    const Json line = Json::parse(text, nullptr, false);
    if (!line.is_object() || line.value("stage", "") != "controller@96" || !line.contains("effective_share")) continue;
    for (const char* name :
         {"omega", "real_share", "duplicates", "distinct_1", "distinct_2", "distinct_3", "token_entropy"})
      EXPECT_TRUE(line.contains(name)) << name << " in " << text;
    if (line["step"] == 1) {
      mixed = true;
      EXPECT_NEAR(line["effective_share"].get<double>(), line["omega"].get<double>(), 1e-9);
      EXPECT_GT(line["omega"], 0);
      EXPECT_TRUE(line.contains("distinct_2_generated")) << text;
    }
    if (line["step"] == 48) {
      last_phase = true;
      EXPECT_EQ(line["omega"], 0) << "the last phase has real data only";
    }
  }
  EXPECT_TRUE(mixed && last_phase);
}

TEST(Collapse, WhatAControllerLacksIsSaid) {
  const QuernProcess::Folder folder;
  const std::string job =
      "name: small\n"
      "precision: fp32\n"
      "model: {config: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 16}}\n"
      "environment: {name: sentences, words: 6, length: 6}\n"
      "data: {collect: [{player: writer, episodes: 20}]}\n"
      "method: sft\n"
      "sft: {max_steps: 4, batch_size: 4}\n"
      "mixture: {policy: controller}\n"
      "online: {rounds: 1, episodes: 10}\n"
      "evaluate: {episodes: 0}\n";
  ASSERT_TRUE(WriteFileAtomic(folder.File("small.yaml"), job).ok());
  const std::vector<std::string> run = {"run", folder.File("small.yaml"), "output_dir=" + folder.File("run")};
  const auto refused = QuernProcess::Run(folder, run);
  EXPECT_EQ(refused.code, 1) << refused.err;
  EXPECT_NE(refused.err.find("'mixture.policy' controller needs probes"), std::string::npos) << refused.err;
  std::vector<std::string> given = run;
  given.back() = "output_dir=" + folder.File("run-2");
  for (const char* key : {"mixture.sigma2d=5", "mixture.c2.verified=0.3"}) given.push_back(key);
  const auto failed = QuernProcess::Run(folder, given);
  EXPECT_EQ(failed.code, 100) << failed.err;
  EXPECT_NE(failed.err.find("held-out real records: give data.heldout, or mixture.sigma2d"), std::string::npos)
      << failed.err;
  given[2] = "output_dir=" + folder.File("run-3");
  given.push_back("mixture.c2.unverified=0.3");
  const auto done = QuernProcess::Run(folder, given);
  EXPECT_EQ(done.code, 0) << done.err;
}

}  // namespace
}  // namespace quern
