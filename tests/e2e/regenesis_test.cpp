// Rounds of reasoning chains, as a user runs them: a small model learns some sums, then asks itself others.
#include <map>
#include <nlohmann/json.hpp>

#include "tests/e2e/quern_process.h"

namespace quern {
namespace {

using Json = nlohmann::json;

// One-digit sums in the form of a guideline letter, the question and the result. About a second.
std::string WriteJob(const QuernProcess::Folder& folder) {
  std::string rows;
  for (int a = 0; a < 10; ++a)
    for (int b = 0; b < 10; ++b) rows += StrCat("{\"prompt\": \"", a, "+", b, "=\", \"answer\": \"", a + b, "\"}\n");
  EXPECT_TRUE(WriteFileAtomic(folder.File("sums.jsonl"), rows).ok());
  EXPECT_TRUE(
      WriteFileAtomic(folder.File("templates.txt"),
                      "[solve]\n{guideline}{hint}{prompt}\n[direct]\n{hint}{prompt}\n[hint]\n{answer}\n[opener]\n")
          .ok());
  EXPECT_TRUE(WriteFileAtomic(folder.File("guidelines.txt"), "a\nb\nc\n").ok());
  const std::string job =
      "name: tiny\n"
      "precision: fp32\n"
      "model: {config: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 4, max_position_embeddings: 64}}\n"
      "environment: {name: dataset, file: sums.jsonl, grader: number, max_tokens: 3}\n"
      "data: {collect: [{player: reference, episodes: 200}]}\n"
      "sft: {max_steps: 60, batch_size: 16, learning_rate: 3.0e-3}\n"
      "method: regenesis\n"
      "compare: [star, majority]\n"
      "regenesis: {rounds: 2, questions: 12, stages: [solve], templates: templates.txt, guidelines: guidelines.txt,\n"
      "            paths_per_question: 6, max_kept: 2, temperature: 1, top_p: 1, min_majority_share: 0.2,\n"
      "            max_steps: 5, batch_size: 8}\n"
      "evaluate: {episodes: 20, sets: [{name: in}, {name: out, split: test}]}\n";
  EXPECT_TRUE(WriteFileAtomic(folder.File("tiny.yaml"), job).ok());
  return folder.File("tiny.yaml");
}

// Records by uid, without what differs from run to run.
std::map<std::string, Json> Records(const QuernProcess::Folder& folder, const std::vector<std::string>& filter) {
  std::vector<std::string> arguments = {"replay", "query", "--store", "run/replay", "--limit", "100000", "-o", "jsonl"};
  arguments.insert(arguments.end(), filter.begin(), filter.end());
  const auto ended = QuernProcess::Run(folder, arguments);
  EXPECT_EQ(ended.code, 0) << ended.err;
  std::map<std::string, Json> records;
  for (const std::string& line : StrSplit(ended.out, '\n')) {
    if (line.empty()) continue;
    Json record = Json::parse(line);
    record.erase("created_unix_ms");
    const std::string uid = record["uid"];
    records[uid] = std::move(record);
  }
  return records;
}

TEST(Regenesis, RoundsOfChainsInProcessesAndInOneGiveTheSameRecords) {
  const QuernProcess::Folder folder, other;
  const auto ended = QuernProcess::Run(folder, {"run", WriteJob(folder), "output_dir=run"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  for (const char* label :
       {"SFT @ in", "STaR, round 2 @ out", "majority vote, round 1 @ in", "ReGenesis, round 2 @ out"})
    EXPECT_NE(ended.out.find(label), std::string::npos) << label << "\n" << ended.out;
  const Json result = Json::parse(*ReadFile(folder.File("run/result.json")));
  EXPECT_EQ(result["state"], "succeeded");
  ASSERT_EQ(result["table"].size(), 1u + 2 + 3 * 2 * 2);
  EXPECT_EQ(result["table"].back()["arm"], "regenesis");
  EXPECT_EQ(result["table"].back()["round"], 2);
  EXPECT_EQ(result["table"].back()["set"], "out");

  const auto all = Records(folder, {"--tag", "regenesis"});
  const auto kept = Records(folder, {"--tag", "regenesis", "--tag", "kept"});
  const auto third = Records(folder, {"--tag", "regenesis", "--guideline", "3"});
  EXPECT_GT(kept.size(), 0u);
  EXPECT_LT(kept.size(), all.size());
  EXPECT_EQ(third.size() * 3, all.size());
  for (const auto& [uid, record] : third) EXPECT_EQ(record["chain"]["guideline_text"], "c");
  for (const auto& [uid, record] : kept) {
    EXPECT_EQ(record["episode_return"], 1);
    // Nothing of the guideline is in the text that is learnt.
    EXPECT_EQ(record["messages"][0]["content"], record["chain"]["question"]);
  }
  for (const auto& [uid, record] : Records(folder, {"--tag", "round-2"})) EXPECT_EQ(record["generation_depth"], 2);
  // Nobody is shown the answer where it is not known.
  EXPECT_EQ(Records(folder, {"--tag", "majority", "--tag", "hinted"}).size(), 0u);

  bool measured = false;
  for (const std::string& line : StrSplit(*ReadFile(folder.File("run/metrics.jsonl")), '\n')) {
    const Json metrics = Json::parse(line, nullptr, false);
    if (metrics.is_discarded() || metrics.value("stage", "") != "regenesis-1" || !metrics.contains("pass_rate"))
      continue;
    measured = true;
    EXPECT_EQ(metrics["kept"], Records(folder, {"--tag", "regenesis-1", "--tag", "kept"}).size());
    for (const char* name : {"chains", "unsolved_share", "kept_hinted_share", "guideline_3_pass_rate", "path_tokens"})
      EXPECT_TRUE(metrics.contains(name)) << name;
  }
  EXPECT_TRUE(measured);

  const auto eval = QuernProcess::Run(
      folder, {"eval", "--run", "run", "--policy", "star-1", "--set", "out", "--episodes", "20", "-o", "json"});
  ASSERT_EQ(eval.code, 0) << eval.err;
  for (const Json& row : result["table"])
    if (row["policy"] == "star-1" && row["set"] == "out") {
      EXPECT_EQ(Json::parse(eval.out)["success_rate"], row["success_rate"]);
    }

  const auto in_process =
      QuernProcess::Run(other, {"run", WriteJob(other), "output_dir=run", "--in-process", "actors=1"});
  ASSERT_EQ(in_process.code, 0) << in_process.err;
  const auto again = Records(other, {"--tag", "regenesis"});
  EXPECT_EQ(again, all);
}

TEST(Regenesis, KilledAmongChainsAndWhileTuningItGoesOnAsIfItHadNotBeen) {
  const std::vector<std::string> overrides = {"compare=[]", "regenesis.questions=60", "regenesis.max_steps=40",
                                              "regenesis.paths_per_question=24", "checkpoint.every_steps=5"};
  const auto arguments = [&](const QuernProcess::Folder& folder) {
    std::vector<std::string> all = {"run", WriteJob(folder), "output_dir=run"};
    all.insert(all.end(), overrides.begin(), overrides.end());
    return all;
  };
  const QuernProcess::Folder undisturbed, folder;
  ASSERT_EQ(QuernProcess::Run(undisturbed, arguments(undisturbed)).code, 0);

  const auto chains_of = [&](const std::string& stage) -> uint64_t {
    // Before its server is up the store would be opened here, and the server could not.
    const Result<std::string> journal = ReadFile(folder.File("run/journal.jsonl"));
    if (!journal.ok() || journal->find("\"task_given\",\"stage\":\"" + stage + "\"") == std::string::npos) return 0;
    const auto count =
        QuernProcess::Run(folder, {"replay", "query", "--store", "run/replay", "--tag", stage, "--count"});
    return std::strtoull(count.out.c_str(), nullptr, 10);
  };
  uint64_t acknowledged = 0;
  const std::vector<std::function<bool()>> moments = {
      [&] { return (acknowledged = chains_of("regenesis-1")) > 0; },
      [&] {  // or it is missed, on a busy machine
        return PathExists(folder.File("run/checkpoints/regenesis-1%3Asft")) ||
               PathExists(folder.File("run/weights/regenesis-2"));
      },
      [&] { return chains_of("regenesis-2") > 0; },
  };
  std::vector<std::string> command = arguments(folder);
  for (const auto& moment : moments) {
    QuernProcess process(folder, command);
    ASSERT_TRUE(Eventually(moment));
    for (int i = 0; i < 2; ++i)
      for (const pid_t pid : ProcessesWith({folder.path()})) kill(pid, SIGKILL);
    EXPECT_EQ(process.Wait().code, 128 + SIGKILL);
    ASSERT_TRUE(Eventually([&] { return ProcessesWith({folder.path()}).empty(); }));
    command = {"resume", folder.File("run")};
  }
  EXPECT_GT(acknowledged, 0u);
  const auto ended = QuernProcess::Run(folder, command);
  ASSERT_EQ(ended.code, 0) << ended.err;
  const auto table = [](const QuernProcess::Folder& f) {
    return Json::parse(*ReadFile(f.File("run/result.json")))["table"];
  };
  EXPECT_EQ(table(folder), table(undisturbed));
  EXPECT_EQ(Records(folder, {}), Records(undisturbed, {}));
  const auto weights = [](const QuernProcess::Folder& f) {
    Json all = Json::parse(*ReadFile(f.File("run/weights.json")));
    std::map<std::string, std::string> hashes;
    for (const auto& [stage, version] : all.items()) hashes[stage] = version.at("content_hash");
    return hashes;
  };
  EXPECT_EQ(weights(folder), weights(undisturbed));
  EXPECT_EQ(weights(folder).size(), 3u);
  const auto stats = QuernProcess::Run(folder, {"replay", "stats", "--store", "run/replay", "-o", "json"});
  EXPECT_EQ(Json::parse(stats.out)["duplicates"], 0);  // no acknowledged chain was made again
}

TEST(Regenesis, ChainsOfAKilledActorArePlayedAgainAndAreTheSame) {
  const QuernProcess::Folder folder, calm;
  const auto arguments = [](const QuernProcess::Folder& where) {
    return std::vector<std::string>{"run",
                                    WriteJob(where),
                                    "output_dir=run",
                                    "compare=[]",
                                    "regenesis.rounds=1",
                                    "regenesis.questions=100",
                                    "regenesis.paths_per_question=20",
                                    "regenesis.hint=false",
                                    "rollout.task_episodes=5",
                                    "rollout.lease_s=20"};
  };
  QuernProcess process(folder, arguments(folder));
  ASSERT_TRUE(Eventually([&] {
    const Result<std::string> log = ReadFile(folder.File("run/logs/coordinator-0.0.log"));
    return log.ok() && log->find("stage regenesis-1: 100 episodes") != std::string::npos;
  }));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  for (const pid_t pid : ProcessesWith({std::string("actor") + '\0' + "--job", folder.path()})) {
    kill(pid, SIGKILL);
    break;
  }
  const auto ended = process.Wait();
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_NE(ended.err.find("starting it again (1 of 5)"), std::string::npos) << ended.err;
  const auto records = Records(folder, {"--tag", "regenesis-1"});
  EXPECT_EQ(records.size(), 100u * 20u);
  const auto undisturbed = QuernProcess::Run(calm, arguments(calm));
  ASSERT_EQ(undisturbed.code, 0) << undisturbed.err;
  EXPECT_EQ(records, Records(calm, {"--tag", "regenesis-1"}));
}

TEST(Regenesis, AModelThatSolvesNothingIsSaidSo) {
  const QuernProcess::Folder folder;
  const auto ended = QuernProcess::Run(folder, {"run", WriteJob(folder), "output_dir=run", "sft.max_steps=1",
                                                "compare=[]", "regenesis.max_path_tokens=1", "environment.max_tokens=2",
                                                "regenesis.hint=false", "regenesis.paths_per_question=1"});
  EXPECT_EQ(ended.code, 100);
  EXPECT_NE(ended.err.find("quern: job failed: stage regenesis-1: no path was kept of 12 chains ("), std::string::npos)
      << ended.err;
}

TEST(Regenesis, MistakesAreOneLineBeforeAnythingStarts) {
  const QuernProcess::Folder folder;
  const std::string job = WriteJob(folder);
  const auto problem = [&](const std::string& text) {
    const auto ended = QuernProcess::Run(folder, {"run", job, "--dry-run", text});
    EXPECT_EQ(ended.code, 1) << text;
    EXPECT_EQ(CountLines(ended.err), 1u) << ended.err;
    return ended.err;
  };
  EXPECT_NE(problem("regenesis.stages=[plan]").find("must end with solve"), std::string::npos);
  EXPECT_NE(problem("regenesis.stages=[plan, adapt, solve]").find("comes too late"), std::string::npos);
  EXPECT_NE(problem("regenesis.guidelines=nowhere.txt").find("nowhere.txt"), std::string::npos);
  EXPECT_NE(problem("regenesis.environment={name: wordle}").find("no questions with known answers"), std::string::npos);
  EXPECT_NE(problem("evaluate.sets=[{name: x, splitt: test}]").find("did you mean \"split\"?"), std::string::npos);
}

// Chains say what was left out of the cache, and a round what that did to their log-probabilities.
TEST(Regenesis, RoundsUnderACompressionReportWhatItChanges) {
  const QuernProcess::Folder folder;
  const auto ended = QuernProcess::Run(
      folder, {"run", WriteJob(folder), "output_dir=run", "compare=[]", "regenesis.rounds=1", "evaluate.episodes=4",
               "model.config.selective_attention=true", "compression.budgets=[3]", "rollout.kv_cache_mib=4"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  const auto chains = Records(folder, {"--tag", "regenesis"});
  EXPECT_FALSE(chains.empty());
  int different = 0;
  for (const auto& [uid, record] : chains) {
    EXPECT_EQ(record["sampling"]["compression"]["budgets"], Json({3})) << uid;
    different += record.value("log_prob_difference", 0.0) > 0;
  }
  EXPECT_GT(different, 0);
  double of_round = 0;
  const Json result = Json::parse(*ReadFile(folder.File("run/result.json")));
  for (const Json& stage : result["stages"])
    if (stage["name"] == "regenesis-1") of_round = stage["metrics"].value("log_prob_difference", 0.0);
  EXPECT_GT(of_round, 0);
  EXPECT_EQ(Json::parse(*ReadFile(folder.File("run/job.json")))["rollout"]["kv_cache_mib"], 4);
}

}  // namespace
}  // namespace quern
