// Jobs whose processes are killed -9, whole or one role: what comes out is what an undisturbed job gives, to the bit.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/e2e/tiny_job.h"

namespace quern {
namespace {

using Json = nlohmann::json;
using std::chrono::seconds;

// Long enough to be caught at every moment.
const std::vector<std::string> kJob = {"data.collect.0.episodes=2000", "qsft.max_steps=60",        "sft.max_steps=20",
                                       "online.episodes=96",           "checkpoint.every_steps=5", "rollout.lease_s=10",
                                       "checkpoint.every_seconds=0"};

// What a job leaves behind, without times.
struct Trace {
  Json table;
  std::map<std::string, std::string> weights;  // content hash by stage
  std::vector<std::string> records;            // sorted
  uint64_t duplicates = 0;
};

std::vector<Json> Events(const QuernProcess::Folder& folder) {
  std::vector<Json> events;
  const Result<std::string> text = ReadFile(folder.File("run/journal.jsonl"));
  if (!text.ok()) return events;
  for (const std::string& line : StrSplit(*text, '\n')) {
    Json event = Json::parse(line, nullptr, false);
    if (event.is_object()) events.push_back(std::move(event));
  }
  return events;
}

Trace TraceOf(const QuernProcess::Folder& folder) {
  Trace trace;
  const Json result = Json::parse(*ReadFile(folder.File("run/result.json")));
  EXPECT_EQ(result["state"], "succeeded");
  trace.table = result["table"];
  for (const Json& event : Events(folder))
    if (event["event"] == "published") trace.weights[event["stage"]] = event["weights"]["content_hash"];
  const auto exported =
      QuernProcess::Run(folder, {"replay", "export", "--store", "run/replay", "--to", "records.jsonl"});
  EXPECT_EQ(exported.code, 0) << exported.err;
  for (const std::string& line : StrSplit(*ReadFile(folder.File("records.jsonl")), '\n')) {
    if (line.empty()) continue;
    Json record = Json::parse(line);
    record.erase("created_unix_ms");
    trace.records.push_back(record.dump());
  }
  std::sort(trace.records.begin(), trace.records.end());
  const auto stats = QuernProcess::Run(folder, {"replay", "stats", "--store", "run/replay", "-o", "json"});
  EXPECT_EQ(stats.code, 0) << stats.err;
  trace.duplicates = Json::parse(stats.out)["duplicates"];
  return trace;
}

class Recovery : public testing::Test {
 protected:
  static const Trace& Undisturbed() {
    static const Trace trace = [] {
      const QuernProcess::Folder folder;
      const auto ended = QuernProcess::Run(folder, RunArguments(folder, kJob));
      EXPECT_EQ(ended.code, 0) << ended.err;
      return TraceOf(folder);
    }();
    return trace;
  }
  void ExpectUndisturbed() {
    const Trace trace = TraceOf(folder_);
    EXPECT_EQ(trace.table, Undisturbed().table);
    EXPECT_EQ(trace.weights, Undisturbed().weights);
    ASSERT_EQ(trace.weights.size(), 5u);
    EXPECT_EQ(trace.records.size(), Undisturbed().records.size());
    EXPECT_TRUE(trace.records == Undisturbed().records);
    EXPECT_FALSE(PathExists(folder_.File("run/checkpoints/q_sft")));
  }
  uint64_t Duplicates() { return TraceOf(folder_).duplicates; }
  bool Happened(const std::string& event, const std::string& stage, size_t times = 1) {
    size_t count = 0;
    for (const Json& e : Events(folder_)) count += e["event"] == event && e.value("stage", "") == stage ? 1 : 0;
    return count >= times;
  }
  bool Checkpointed(const std::string& stage) {
    const auto names = ListDirectory(folder_.File("run/checkpoints/" + stage));
    return (names.ok() && names->size() > 1) || Happened("published", stage);  // a busy machine may miss the moment
  }
  std::vector<pid_t> RoleProcesses(const std::string& role) {
    return ProcessesWith({role + '\0' + "--job", folder_.path()});
  }
  void KillJob(QuernProcess& process) {
    for (int i = 0; i < 2; ++i)  // once more: what was being started
      for (const pid_t pid : ProcessesWith({folder_.path()})) kill(pid, SIGKILL);
    EXPECT_EQ(process.Wait().code, 128 + SIGKILL);
    ASSERT_TRUE(Eventually([&] { return ProcessesWith({folder_.path()}).empty(); }));
  }

  QuernProcess::Folder folder_;
};

TEST_F(Recovery, AJobKilledAtManyMomentsEndsAsIfItHadNotBeen) {
  const std::vector<std::function<bool()>> moments = {
      [&] { return Happened("task_done", "collect:random", 3); },
      [&] { return Happened("stage_given", "sft"); },
      [&] { return Happened("stage_done", "sft"); },
      [&] { return Checkpointed("q_sft"); },
      [&] { return Happened("task_given", "online-1"); },
      [&] { return Happened("published", "online-1:sft"); },
  };
  std::vector<std::string> arguments = RunArguments(folder_, kJob);
  for (const auto& moment : moments) {
    QuernProcess process(folder_, arguments);
    ASSERT_TRUE(Eventually(moment));
    KillJob(process);
    arguments = {"resume", folder_.File("run")};
  }
  const auto ended = QuernProcess::Run(folder_, {"resume", "run", "--actors", "3"});
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_NE(ended.out.find("Q-SFT after the online phase"), std::string::npos) << ended.out;
  ExpectUndisturbed();
  EXPECT_EQ(Duplicates(), 0u);  // nothing that was acknowledged was played again
  bool went_on = false;
  const std::vector<std::string> logs = *ListDirectory(folder_.File("run/logs"));
  for (const std::string& name : logs)
    went_on =
        went_on || ReadFile(folder_.File("run/logs/" + name))->find("q_sft: going on after step") != std::string::npos;
  EXPECT_TRUE(went_on);

  const auto again = QuernProcess::Run(folder_, {"resume", "run"});
  EXPECT_EQ(again.code, 0);
  EXPECT_NE(again.err.find("the job has succeeded, nothing is left to do"), std::string::npos) << again.err;
  EXPECT_EQ(again.out, ended.out);
}

TEST_F(Recovery, AfterCtrlC) {
  QuernProcess process(folder_, RunArguments(folder_, kJob));
  ASSERT_TRUE(Eventually([&] { return Checkpointed("q_sft"); }));
  process.Signal(SIGINT);
  const auto stopped = process.Wait();
  EXPECT_EQ(stopped.code, 103);
  EXPECT_NE(stopped.out.find("next: quern resume run"), std::string::npos) << stopped.out;
  EXPECT_EQ(QuernProcess::Run(folder_, {"resume", "run", "--in-process"}).code, 0);
  ExpectUndisturbed();
  EXPECT_EQ(Duplicates(), 0u);
}

TEST_F(Recovery, EachRoleIsStartedAgain) {
  const std::vector<std::pair<std::string, std::function<bool()>>> deaths = {
      {"replay-server", [&] { return Happened("task_done", "collect:random", 3); }},
      {"coordinator", [&] { return Happened("stage_given", "sft"); }},
      {"learner", [&] { return Checkpointed("q_sft"); }},
      {"actor", [&] { return Happened("task_given", "online-1"); }},
  };
  QuernProcess process(folder_, RunArguments(folder_, kJob));
  for (const auto& [role, moment] : deaths) {
    ASSERT_TRUE(Eventually(moment)) << role;
    const std::vector<pid_t> pids = RoleProcesses(role);
    ASSERT_FALSE(pids.empty()) << role;
    kill(pids[0], SIGKILL);
  }
  const auto ended = process.Wait();
  EXPECT_EQ(ended.code, 0) << ended.err;
  for (const auto& [role, moment] : deaths) EXPECT_NE(ended.err.find(role), std::string::npos) << ended.err;
  EXPECT_NE(ended.err.find("starting it again (4 of 5)"), std::string::npos) << ended.err;
  ExpectUndisturbed();
}

TEST_F(Recovery, ARoleThatDiesAgainAndAgainFailsTheJobWithOneLine) {
  QuernProcess process(folder_, RunArguments(folder_, {"qsft.max_steps=200000", "online.rounds=0", "max_restarts=1"}));
  ASSERT_TRUE(Eventually([&] { return Happened("stage_given", "q_sft"); }));
  pid_t last = 0;
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(Eventually([&] {
      const auto pids = RoleProcesses("learner");
      return pids.size() == 1 && pids[0] != last;
    }));
    last = RoleProcesses("learner").at(0);
    kill(last, SIGKILL);
  }
  const auto ended = process.Wait(seconds(30));
  EXPECT_EQ(ended.code, 100);
  const size_t line = ended.err.find("quern: job failed: learner died: killed by signal 9 (Killed) (log: ");
  ASSERT_NE(line, std::string::npos) << ended.err;
  EXPECT_NE(ended.err.find("; max_restarts (1) is used up\n", line), std::string::npos) << ended.err;
  EXPECT_EQ(CountLines(ended.err.substr(line)), 1u);
  EXPECT_TRUE(ProcessesWith({folder_.path()}).empty());
}

TEST_F(Recovery, AnEpisodeThatKillsItsActorsIsLeftOutAndReported) {
  setenv("QUERN_FAULT_ACTOR_DIES", "collect:random/7", 1);
  const auto ended = QuernProcess::Run(folder_, RunArguments(folder_, {"online.rounds=0"}));
  unsetenv("QUERN_FAULT_ACTOR_DIES");
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_NE(ended.err.find("quarantined, left out: 1 of 60 episodes"), std::string::npos) << ended.err;
  EXPECT_NE(ReadFile(folder_.File("run/events.jsonl"))->find("collect:random: episode 7 killed 3 actors: quarantined"),
            std::string::npos);
  const auto result = nlohmann::json::parse(*ReadFile(folder_.File("run/result.json")));
  for (const auto& stage : result["stages"])
    EXPECT_EQ(stage["metrics"].value("quarantined", 0), stage["name"] == "collect:random" ? 1 : 0) << stage;
  EXPECT_NE(ended.out.find("data mean                      119"), std::string::npos) << ended.out;
}

TEST_F(Recovery, PublishedWeightsThatWereTamperedWithAreFoundBeforeTheyAreUsed) {
  QuernProcess process(folder_, RunArguments(folder_, {"precision=fp8", "qsft.max_steps=200000", "online.rounds=0",
                                                       "evaluate.episodes=0"}));
  ASSERT_TRUE(Eventually([&] { return Happened("stage_given", "q_sft"); }));
  process.Signal(SIGINT);
  ASSERT_EQ(process.Wait().code, 103);
  const Json published = Json::parse(*ReadFile(folder_.File("run/weights.json")));
  const std::string directory = folder_.File("run/" + published["sft"]["path"].get<std::string>());
  for (const std::string file : {"fp8_state.safetensors", "model.safetensors"}) {
    const std::string path = JoinPath(directory, file), bytes = *ReadFile(path);
    std::string flipped = bytes;
    flipped.back() ^= 1;
    ASSERT_TRUE(WriteFileAtomic(path, flipped).ok());
    const auto resumed = QuernProcess::Run(folder_, {"resume", "run"});
    EXPECT_EQ(resumed.code, 100) << resumed.err;
    EXPECT_NE(resumed.err.find("its files were changed"), std::string::npos) << resumed.err;
    const auto played = QuernProcess::Run(folder_, {"eval", "--run", "run", "--policy", "sft", "--episodes", "2"});
    EXPECT_EQ(played.code, 1) << played.err;
    EXPECT_NE(played.err.find("its files were changed"), std::string::npos) << played.err;
    ASSERT_TRUE(WriteFileAtomic(path, bytes).ok());
  }
  EXPECT_EQ(QuernProcess::Run(folder_, {"eval", "--run", "run", "--policy", "sft", "--episodes", "2"}).code, 0);
}

TEST_F(Recovery, OnlyRunsAreResumedAndOneAtATime) {
  const auto nowhere = QuernProcess::Run(folder_, {"resume", "nowhere"});
  EXPECT_EQ(nowhere.code, 102);
  EXPECT_EQ(nowhere.err, "quern: nowhere: no such run directory\n");
  EXPECT_EQ(QuernProcess::Run(folder_, {"resume", "."}).code, 102);

  QuernProcess process(folder_, RunArguments(folder_, {"qsft.max_steps=200000", "online.rounds=0"}));
  ASSERT_TRUE(Eventually([&] { return Happened("stage_given", "q_sft"); }));
  const auto second = QuernProcess(folder_, {"resume", "run"}).Wait();
  EXPECT_EQ(second.code, 1);
  EXPECT_NE(second.err.find("the run is going on"), std::string::npos) << second.err;
  const auto run = QuernProcess::Run(folder_, RunArguments(folder_));
  EXPECT_EQ(run.code, 1);
  EXPECT_NE(run.err.find("quern resume "), std::string::npos) << run.err;
  process.Signal(SIGINT);
  EXPECT_EQ(process.Wait().code, 103);
}

}  // namespace
}  // namespace quern
