#include <nlohmann/json.hpp>

#include "tests/e2e/tiny_job.h"

namespace quern {
namespace {

using Json = nlohmann::json;
using std::chrono::seconds;

// Steps that would take minutes: something to interrupt.
const std::vector<std::string> kLong = {"qsft.max_steps=200000", "online.rounds=0"};

bool StageReached(const QuernProcess::Folder& folder, const std::string& text) {
  const Result<std::string> log = ReadFile(folder.File("run/logs/coordinator-0.0.log"));
  return log.ok() && log->find(text) != std::string::npos;
}

uint64_t VerifiedRecords(const QuernProcess::Folder& folder) {
  const auto verify = QuernProcess::Run(folder, {"replay", "verify", "--store", folder.File("run/replay")});
  EXPECT_EQ(verify.code, 0) << verify.out << verify.err;
  const auto count = QuernProcess::Run(folder, {"replay", "query", "--store", folder.File("run/replay"), "--count"});
  EXPECT_EQ(count.code, 0) << count.err;
  return std::strtoull(count.out.c_str(), nullptr, 10);
}

TEST(Run, AWholeJobInProcesses) {
  const QuernProcess::Folder folder;
  const auto ended = QuernProcess::Run(folder, RunArguments(folder));
  ASSERT_EQ(ended.code, 0) << ended.err;
  for (const char* label : {"data mean", "SFT", "filtered SFT", "Q-SFT", "Q-SFT after the online phase",
                            "best known player (best)", "run directory: ", "next: quern eval --run"})
    EXPECT_NE(ended.out.find(label), std::string::npos) << label << "\n" << ended.out;
  const Json result = Json::parse(*ReadFile(folder.File("run/result.json")));
  EXPECT_EQ(result["state"], "succeeded");
  ASSERT_EQ(result["table"].size(), 6u);
  EXPECT_EQ(result["table"][0]["episodes"], 120);
  EXPECT_EQ(result["table"][5]["policy"], "player:best");
  EXPECT_GT(result["table"][5]["mean_return"], result["table"][0]["mean_return"]);
  EXPECT_EQ(VerifiedRecords(folder), 120u + 5 * 24u + 24u);
  EXPECT_GT(CountLines(*ReadFile(folder.File("run/metrics.jsonl"))), 5u);
  for (const char* log : {"coordinator-0", "replay-server-0", "learner-0", "actor-0", "actor-1"})
    EXPECT_TRUE(PathExists(folder.File(StrCat("run/logs/", log, ".0.log")))) << log;
  EXPECT_TRUE(ProcessesWith({folder.path()}).empty());

  // What comes next, as the last line says.
  const auto eval = QuernProcess::Run(
      folder, {"eval", "--run", "run", "--policy", "q_sft", "--episodes", "12", "--seed", "5", "-o", "json"});
  ASSERT_EQ(eval.code, 0) << eval.err;
  const Json measured = Json::parse(eval.out);
  EXPECT_EQ(measured["policy"], "q_sft");
  EXPECT_EQ(measured["episodes"], 12);
  EXPECT_LE(measured["mean_return"], 0);
  const auto exported = QuernProcess::Run(folder, {"export", "--run", "run", "--to", "out", "--precision", "fp32"});
  ASSERT_EQ(exported.code, 0) << exported.err;
  EXPECT_EQ(Json::parse(*ReadFile(folder.File("out/policy.json")))["policy"], "q_sft_online");
  // The exported policy plays as the run's own does.
  const std::vector<std::string> same = {"--episodes", "12", "--seed", "5", "-o", "json"};
  std::vector<std::string> own = {"eval", "--run", "run"}, other = {"eval", "--run", "run", "--policy", "./out"};
  own.insert(own.end(), same.begin(), same.end());
  other.insert(other.end(), same.begin(), same.end());
  Json a = Json::parse(QuernProcess::Run(folder, own).out), b = Json::parse(QuernProcess::Run(folder, other).out);
  EXPECT_EQ(a["policy"], "q_sft_online");
  a.erase("policy");
  b.erase("policy");
  EXPECT_EQ(a, b);
  EXPECT_EQ(QuernProcess::Run(folder, {"export", "--run", "run", "--to", "out"}).code, 1);
}

TEST(Run, AWholeJobInOneProcessGivesTheSameRecords) {
  const QuernProcess::Folder one, many;
  auto arguments = RunArguments(one);
  arguments.push_back("--in-process");
  const auto in_process = QuernProcess::Run(one, arguments);
  ASSERT_EQ(in_process.code, 0) << in_process.err;
  ASSERT_EQ(QuernProcess::Run(many, RunArguments(many)).code, 0);
  const Json a = Json::parse(*ReadFile(one.File("run/result.json"))),
             b = Json::parse(*ReadFile(many.File("run/result.json")));
  // Data and players do not depend on who played what when; only the order of the sum does.
  for (const int row : {0, 5}) {
    EXPECT_EQ(a["table"][row]["episodes"], b["table"][row]["episodes"]);
    EXPECT_NEAR(a["table"][row]["mean_return"], b["table"][row]["mean_return"], 1e-9);
    EXPECT_EQ(a["table"][row]["success_rate"], b["table"][row]["success_rate"]);
  }
  EXPECT_EQ(VerifiedRecords(one), VerifiedRecords(many));
}

// The log-probabilities that actors stored are those that the learner computes with the same weights, to the bit: of
// one model, of Q-SFT's pair, of every stage of a reasoning chain.
TEST(Run, ActorsAndTrainerAgree) {
  for (const std::string precision : {"bf16", "fp8"}) {
    const QuernProcess::Folder folder;
    const auto ended = QuernProcess::Run(folder, RunArguments(folder, {"precision=" + precision}));
    ASSERT_EQ(ended.code, 0) << ended.err;
    const Json result = Json::parse(*ReadFile(folder.File("run/result.json")));
    double compared = 0;
    for (const Json& stage : result["stages"]) {
      if (!stage["metrics"].contains("rollout_logprob_diff")) continue;
      compared += 1;
      EXPECT_EQ(stage["metrics"]["rollout_logprob_diff"], 0) << precision << " " << stage.dump();
      EXPECT_GT(stage["metrics"]["rollout_logprobs_checked"], 10);
    }
    EXPECT_GE(compared, 1) << precision << " " << result.dump();  // of train stages, what was there when they began
    const Json& last = result["stages"].back();
    EXPECT_EQ(last["name"], "check:rollouts");
    // sft, filtered_sft, and the pairs of sft and q_sft, before and after the online round.
    EXPECT_EQ(last["metrics"]["versions_checked"], 4) << last.dump();
  }
}

TEST(Run, OverTcpWithKeys) {
  const QuernProcess::Folder folder;
  const int port = 20000 + getpid() % 20000;
  const auto ended = QuernProcess::Run(
      folder, RunArguments(folder, {"network.transport=tcp", StrCat("network.coordinator_port=", port),
                                    StrCat("network.replay_port=", port + 1), "online.rounds=0"}));
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(
      std::filesystem::status(folder.File("run/keys/coordinator.secret")).permissions() & std::filesystem::perms::all,
      std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
}

TEST(Run, CtrlCStopsInOrderAndKeepsWhatWasAcknowledged) {
  const QuernProcess::Folder folder;
  QuernProcess process(folder, RunArguments(folder, kLong));
  ASSERT_TRUE(Eventually([&] { return StageReached(folder, "stage eval:sft done"); }));
  process.Signal(SIGINT);
  const auto ended = process.Wait(seconds(30));
  EXPECT_EQ(ended.code, 103) << ended.err;
  EXPECT_NE(ended.err.find("quern: cancelled"), std::string::npos) << ended.err;
  EXPECT_TRUE(ProcessesWith({folder.path()}).empty());
  EXPECT_GE(VerifiedRecords(folder), 120u + 24u);
  EXPECT_EQ(Json::parse(*ReadFile(folder.File("run/result.json")))["state"], "stopping");
}

TEST(Run, AKilledActorIsStartedAgain) {
  const QuernProcess::Folder folder;
  QuernProcess process(
      folder, RunArguments(folder, {"data.collect.0.episodes=20000", "rollout.lease_s=20", "online.rounds=0"}));
  ASSERT_TRUE(Eventually([&] { return !ProcessesWith({"quern", "actor", folder.path(), "--index"}).empty(); }));
  ASSERT_TRUE(Eventually([&] { return StageReached(folder, "stage collect:random"); }));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  for (const pid_t pid : ProcessesWith({std::string("actor") + '\0' + "--job", folder.path()})) {
    kill(pid, SIGKILL);
    break;
  }
  const auto ended = process.Wait();
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_NE(ended.err.find("died: killed by signal 9 (Killed)"), std::string::npos) << ended.err;
  EXPECT_NE(ended.err.find("starting it again (1 of 5)"), std::string::npos) << ended.err;
  const Json result = Json::parse(*ReadFile(folder.File("run/result.json")));
  EXPECT_EQ(result["table"][0]["episodes"], 20060);  // each episode once, none lost
}

TEST(Run, NothingIsLeftBehindAKilledSupervisor) {
  const QuernProcess::Folder folder;
  QuernProcess process(folder, RunArguments(folder, kLong));
  ASSERT_TRUE(Eventually([&] { return StageReached(folder, "stage sft done"); }));
  process.Signal(SIGKILL);
  EXPECT_EQ(process.Wait().code, 128 + SIGKILL);
  EXPECT_TRUE(Eventually([&] { return ProcessesWith({folder.path()}).empty(); }, 20));
  EXPECT_GE(VerifiedRecords(folder), 120u);
}

TEST(Run, ARequirementThatIsNotMetIsExitCode100) {
  const QuernProcess::Folder folder;
  const auto ended = QuernProcess::Run(
      folder, RunArguments(folder, {"online.rounds=0", "require=[{better: sft, than: 'player:best'}]"}));
  EXPECT_EQ(ended.code, 100);
  EXPECT_NE(ended.err.find("quern: job failed: not met: sft better than player:best"), std::string::npos) << ended.err;
  EXPECT_NE(ended.out.find("NOT MET"), std::string::npos) << ended.out;
}

}  // namespace
}  // namespace quern
