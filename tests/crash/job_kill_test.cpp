// Roles of whole jobs are killed at random moments; every job must end as an undisturbed one, to the bit.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "tests/crash/totals.h"
#include "tests/e2e/tiny_job.h"

namespace quern {
namespace {

using Json = nlohmann::json;

const std::vector<std::string> kJob = {
    "data.collect.0.episodes=2000", "qsft.max_steps=60",          "sft.max_steps=20",   "online.episodes=96",
    "checkpoint.every_steps=5",     "checkpoint.every_seconds=0", "rollout.lease_s=30", "max_restarts=100"};

struct Trace {
  std::map<std::string, std::string> weights;  // content hash by stage
  Json table;
  uint64_t records = 0;
};

Trace TraceOf(const QuernProcess::Folder& folder) {
  Trace trace;
  trace.table = Json::parse(*ReadFile(folder.File("run/result.json")))["table"];
  for (const std::string& line : StrSplit(*ReadFile(folder.File("run/journal.jsonl")), '\n')) {
    const Json event = Json::parse(line, nullptr, false);
    if (event.is_object() && event["event"] == "published")
      trace.weights[event["stage"]] = event["weights"]["content_hash"];
  }
  const auto stats = QuernProcess::Run(folder, {"replay", "stats", "--store", "run/replay", "-o", "json"});
  EXPECT_EQ(stats.code, 0) << stats.err;
  trace.records = Json::parse(stats.out)["records"];
  const auto verified = QuernProcess::Run(folder, {"replay", "verify", "--store", "run/replay"});
  EXPECT_EQ(verified.code, 0) << verified.err;
  return trace;
}

TEST(JobKills, EveryJobEndsAsIfNothingHadHappened) {
  Trace undisturbed;
  {
    const QuernProcess::Folder folder;
    const auto ended = QuernProcess::Run(folder, RunArguments(folder, kJob));
    ASSERT_EQ(ended.code, 0) << ended.err;
    undisturbed = TraceOf(folder);
    ASSERT_EQ(undisturbed.weights.size(), 5u);
  }
  Random random(CrashSeed(), 10);
  CrashTotals& totals = Totals();
  const uint64_t actors = CrashCount(100, 2), learners = CrashCount(20, 1), coordinators = CrashCount(20, 1);
  uint64_t killed[3] = {};
  const char* const roles[3] = {"actor", "learner", "coordinator"};
  const uint64_t wanted[3] = {actors, learners, coordinators};
  for (int jobs = 0; killed[0] < actors || killed[1] < learners || killed[2] < coordinators; ++jobs) {
    ASSERT_LT(jobs, 200);
    const QuernProcess::Folder folder;
    QuernProcess process(folder, RunArguments(folder, kJob));
    const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(2);
    while (!PathExists(folder.File("run/result.json")) && std::chrono::steady_clock::now() < limit) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50 + random.Below(400)));
      const size_t pick = random.Below(7);
      const size_t r = pick < 5 ? 0 : pick - 4;
      if (killed[r] >= wanted[r]) {
        if (killed[0] >= actors && killed[1] >= learners && killed[2] >= coordinators) break;
        continue;
      }
      const std::vector<pid_t> pids = ProcessesWith({std::string(roles[r]) + '\0' + "--job", folder.path()});
      if (pids.empty()) continue;
      if (kill(pids[random.Below(pids.size())], SIGKILL) == 0) ++killed[r];
    }
    const auto ended = process.Wait(std::chrono::seconds(120));
    ASSERT_EQ(ended.code, 0) << ended.err;
    const Trace trace = TraceOf(folder);
    EXPECT_EQ(trace.weights, undisturbed.weights);
    EXPECT_EQ(trace.table, undisturbed.table);
    EXPECT_EQ(trace.records, undisturbed.records);
    totals.acknowledged += trace.records;
    if (trace.records < undisturbed.records) totals.lost += undisturbed.records - trace.records;
    if (trace.records > undisturbed.records) totals.duplicated += trace.records - undisturbed.records;
  }
  totals.actor_kills += killed[0];
  totals.learner_kills += killed[1];
  totals.coordinator_kills += killed[2];
}

// The journal's lines but for those of attempts: what moves a job.
std::vector<std::string> Progress(const QuernProcess::Folder& folder) {
  std::vector<std::string> lines;
  const Result<std::string> text = ReadFile(folder.File("run/journal.jsonl"));
  if (!text.ok()) return lines;
  for (std::string& line : StrSplit(text->substr(0, text->rfind('\n') + 1), '\n'))
    if (!line.empty() && line.find("\"event\":\"attempt\"") == std::string::npos) lines.push_back(std::move(line));
  return lines;
}

bool IsOnline(const std::string& line) { return line.find("\"stage\":\"online-") != std::string::npos; }

// The demo's job: all its processes are killed at ten random points of its work, one in each fifth of what comes before
// its online stages and of those.
TEST(JobKills, TheWordleExampleKilledTenTimesEndsWithTheSameWeights) {
  if (CrashCount(1, 0) == 0) GTEST_SKIP() << "only in make crash-test";
  const char* source = getenv("QUERN_SOURCE_DIR");
  ASSERT_NE(source, nullptr);
  const std::string job = JoinPath(source, "examples/wordle.yaml");
  const auto limit = std::chrono::minutes(15);
  Trace undisturbed;
  std::vector<double> times;  // of what moved it, seconds since it began
  double online_at = 0;
  {
    const QuernProcess::Folder folder;
    const auto ended = QuernProcess(folder, {"run", job, "output_dir=" + folder.File("run")}).Wait(limit);
    ASSERT_EQ(ended.code, 0) << ended.err;
    undisturbed = TraceOf(folder);
    const std::string journal = *ReadFile(folder.File("run/journal.jsonl"));
    const double begin = Json::parse(journal.substr(0, journal.find('\n')))["time"];
    for (const std::string& line : Progress(folder)) {
      times.push_back(Json::parse(line)["time"].get<double>() - begin);
      if (online_at == 0 && IsOnline(line)) online_at = times.back();
    }
  }
  ASSERT_GT(times.size(), 20u);
  ASSERT_GT(online_at, 0);
  const QuernProcess::Folder folder;
  Random random(CrashSeed(), 11);
  std::vector<std::string> arguments = {"run", job, "output_dir=" + folder.File("run")};
  int offline = 0, online = 0;
  for (int kills = 0; kills < 10; ++kills) {
    // After as much progress, and then the rest of the time, at most to the next step of it: a stage that is killed
    // loses what it did since its last checkpoint, so that time alone would not lead through the job.
    const double fifth = (kills % 5 + random.Uniform()) / 5;
    const double at = kills < 5 ? online_at * fifth : online_at + (times.back() - online_at) * fifth;
    const auto done = static_cast<size_t>(std::upper_bound(times.begin(), times.end(), at) - times.begin());
    QuernProcess process(folder, arguments);
    ASSERT_TRUE(Eventually([&] { return Progress(folder).size() >= done; }, 900));
    (void)Eventually([&] { return Progress(folder).size() > done; }, at - (done == 0 ? 0 : times[done - 1]));
    ASSERT_FALSE(PathExists(folder.File("run/result.json"))) << "kill " << kills << " came too late";
    const std::vector<std::string> progress = Progress(folder);
    ++(std::any_of(progress.begin(), progress.end(), IsOnline) ? online : offline);
    for (int i = 0; i < 2; ++i)  // once more: what was being started
      for (const pid_t pid : ProcessesWith({folder.path()})) kill(pid, SIGKILL);
    EXPECT_EQ(process.Wait().code, 128 + SIGKILL);
    ASSERT_TRUE(Eventually([&] { return ProcessesWith({folder.path()}).empty(); }));
    if (PathExists(folder.File("run/job.json"))) arguments = {"resume", folder.File("run")};
  }
  const auto ended = QuernProcess(folder, arguments).Wait(limit);
  ASSERT_EQ(ended.code, 0) << ended.err;
  const Trace trace = TraceOf(folder);
  EXPECT_EQ(trace.weights, undisturbed.weights);
  EXPECT_EQ(trace.table, undisturbed.table);
  EXPECT_EQ(trace.records, undisturbed.records);
  EXPECT_GE(offline, 4);
  EXPECT_GE(online, 4);
  std::printf("the wordle example: all processes killed %d times before its online stages and %d times in them\n",
              offline, online);
  Totals().job_kills += 10;
  Totals().acknowledged += trace.records;
}

}  // namespace
}  // namespace quern
