// Jobs that are submitted: queue, slots, cancellation, and what survives a killed launcher.
#include <nlohmann/json.hpp>

#include "tests/e2e/tiny_job.h"

namespace quern {
namespace {

using Json = nlohmann::json;

class Queue : public testing::Test {
 protected:
  Queue() {
    setenv("QUERN_HOME", folder_.File("home").c_str(), 1);
    job_ = WriteTinyJob(folder_);
  }
  ~Queue() override {
    for (int i = 0; i < 3; ++i) {  // once more: what was being started
      for (const pid_t pid : ProcessesWith({folder_.path()})) kill(pid, SIGKILL);
      for (const pid_t pid : Launchers()) kill(pid, SIGKILL);
    }
    unsetenv("QUERN_HOME");
  }
  QuernProcess::Ended Quern(const std::vector<std::string>& arguments) { return QuernProcess::Run(folder_, arguments); }
  std::string Submit(std::vector<std::string> overrides = {}) {
    overrides.insert(overrides.begin(), {"submit", job_});
    const auto ended = Quern(overrides);
    EXPECT_EQ(ended.code, 0) << ended.err;
    return ended.out.substr(0, ended.out.find('\n'));
  }
  std::string State(const std::string& id) {
    const auto ended = Quern({"status", id, "-o", "json"});
    EXPECT_EQ(ended.code, 0) << ended.err;
    return Json::parse(ended.out)["state"];
  }
  // Launchers of this test's queue: their command line is only "quern launcher".
  std::vector<pid_t> Launchers() {
    std::vector<pid_t> found;
    for (const pid_t pid : ProcessesWith({std::string("quern\0launcher", 14)})) {
      const Result<std::string> environment = ReadFile(StrCat("/proc/", pid, "/environ"));
      if (environment.ok() && environment->find(folder_.path()) != std::string::npos) found.push_back(pid);
    }
    return found;
  }

  QuernProcess::Folder folder_;
  std::string job_;
};

const std::vector<std::string> kEndless = {"qsft.max_steps=200000", "online.rounds=0"};

TEST_F(Queue, ThreeJobsOnTwoSlots) {
  EXPECT_EQ(Quern({"slots", "2"}).out, "2\n");
  const std::string first = Submit(kEndless);
  const std::string second = Submit(kEndless);
  const std::string third = Submit();
  EXPECT_EQ(first, "tiny-1");
  EXPECT_EQ(third, "tiny-3");
  ASSERT_TRUE(Eventually([&] { return State(first) == "running" && State(second) == "running"; }));
  EXPECT_EQ(State(third), "queued");
  EXPECT_TRUE(Eventually([&] {
    const std::string page = Json::parse(Quern({"status", first, "-o", "json"}).out)["page"];
    return page.starts_with("http://127.0.0.1:");
  }));
  EXPECT_EQ(Json::parse(Quern({"status", third, "-o", "json"}).out)["page"], "");
  EXPECT_EQ(Quern({"status", third, "--exit-code"}).code, 101);
  EXPECT_EQ(Quern({"wait", third, "--timeout", "0.3"}).code, 101);
  EXPECT_EQ(Quern({"delete", first}).code, 1);

  ASSERT_EQ(Quern({"cancel", first}).code, 0);
  const auto cancelled = Quern({"wait", first});
  EXPECT_EQ(cancelled.code, 103) << cancelled.err;
  EXPECT_EQ(cancelled.out, "cancelled\n");
  const auto waited = Quern({"wait", third});
  EXPECT_EQ(waited.code, 0) << waited.err << Quern({"logs", third}).out;
  EXPECT_EQ(waited.out, "succeeded\n");
  const auto logs = Quern({"logs", third});
  EXPECT_NE(logs.out.find("Q-SFT"), std::string::npos) << logs.out;
  const auto tail = Quern({"logs", third, "--tail", "2"});
  EXPECT_EQ(CountLines(tail.out), 2u) << tail.out;
  const auto role = Quern({"logs", third, "--role", "replay-server", "--since", "2h"});
  EXPECT_EQ(role.code, 0) << role.err;
  EXPECT_NE(role.out, "");
  EXPECT_EQ(Quern({"logs", third, "--role", "replay-server-0"}).out, role.out);

  const auto list = Quern({"list", "-o", "json"});
  EXPECT_EQ(CountLines(list.out), 3u) << list.out;
  EXPECT_EQ(Quern({"cancel", second, "--now"}).code, 0);
  EXPECT_EQ(Quern({"wait", second}).code, 103);
  EXPECT_EQ(Quern({"delete", third}).code, 0);
  EXPECT_EQ(Quern({"status", third}).code, 102);
  EXPECT_FALSE(PathExists(folder_.File("home/jobs/" + third)));
}

// Three jobs at once: one is followed while its coordinator is killed, one is cancelled, the third waits for its slot.
TEST_F(Queue, AFollowedJobWhoseCoordinatorIsKilledAndTheOthersEnd) {
  ASSERT_EQ(Quern({"slots", "2"}).code, 0);
  const std::vector<std::string> arguments = {
      "submit", job_, "data.collect.0.episodes=1000", "qsft.max_steps=300", "--submission-id", "mine"};
  const auto submitted = Quern(arguments);
  ASSERT_EQ(submitted.code, 0) << submitted.err;
  const std::string first = submitted.out.substr(0, submitted.out.find('\n'));
  const std::string second = Submit(kEndless), third = Submit();
  EXPECT_EQ(Quern(arguments).out, submitted.out) << "the same submission is one job";
  std::vector<std::string> other = arguments;
  other[3] = "qsft.max_steps=301";
  EXPECT_EQ(Quern(other).code, 1) << "another job under the same id";
  EXPECT_EQ(CountLines(Quern({"list", "-o", "json"}).out), 3u);

  QuernProcess follow(folder_, {"logs", first, "--follow"});
  const std::string run = folder_.File("home/jobs/" + first + "/run");
  ASSERT_TRUE(Eventually([&] {
    const Result<std::string> journal = ReadFile(JoinPath(run, "journal.jsonl"));
    return journal.ok() && journal->find("\"task_given\"") != std::string::npos;
  }));
  const std::vector<pid_t> coordinators = ProcessesWith({std::string("coordinator") + '\0' + "--job", run});
  ASSERT_EQ(coordinators.size(), 1u);
  kill(coordinators[0], SIGKILL);
  ASSERT_EQ(Quern({"cancel", second}).code, 0);
  EXPECT_EQ(Quern({"wait", second}).code, 103);
  const auto waited = Quern({"wait", third});
  EXPECT_EQ(waited.code, 0) << waited.err << Quern({"logs", third}).out;
  const auto first_waited = Quern({"wait", first});
  EXPECT_EQ(first_waited.code, 0) << first_waited.err << Quern({"logs", first}).out;
  EXPECT_EQ(Json::parse(Quern({"status", first, "-o", "json"}).out)["attempts"], 1) << "the supervisor mended it";
  const auto followed = follow.Wait();
  EXPECT_EQ(followed.code, 0) << followed.err;
  EXPECT_NE(followed.out.find("coordinator died: killed by signal 9"), std::string::npos) << followed.out;
  EXPECT_NE(followed.out.find("Q-SFT after the online phase"), std::string::npos) << followed.out;
  EXPECT_EQ(followed.out, Quern({"logs", first}).out);
}

// At every moment of a job's start: before it has its run's lock, and while nobody knows yet who holds it.
TEST_F(Queue, ACancelIsHeardWhileAJobStarts) {
  ASSERT_EQ(Quern({"slots", "4"}).code, 0);
  std::vector<std::string> ids;
  for (int i = 0; i < 24; ++i) {
    ids.push_back(Submit(kEndless));
    std::this_thread::sleep_for(std::chrono::milliseconds(15 * i));
    ASSERT_EQ(Quern({"cancel", ids.back()}).code, 0);
  }
  for (const std::string& id : ids) {
    const auto waited = Quern({"wait", id, "--timeout", "30"});
    EXPECT_EQ(waited.code, 103) << id << " " << waited.err << Quern({"logs", id, "--tail", "3"}).out;
  }
}

TEST_F(Queue, AKilledLauncherAndAKilledJobGoOn) {
  const std::string first = Submit({"qsft.max_steps=400", "data.collect.0.episodes=1000"});
  const std::string second = Submit();
  ASSERT_TRUE(Eventually([&] { return State(first) == "running"; }));
  // Each of the commands started one; those that came second go.
  ASSERT_TRUE(Eventually([&] { return Launchers().size() == 1; }));
  kill(Launchers()[0], SIGKILL);
  ASSERT_TRUE(Eventually([&] { return Launchers().empty(); }));
  EXPECT_EQ(State(first), "running");  // and this command has started another launcher
  ASSERT_TRUE(Eventually([&] { return Launchers().size() == 1; }));
  // The whole job dies: it is taken up again.
  for (const pid_t pid : ProcessesWith({folder_.File("home/jobs/" + first)})) kill(pid, SIGKILL);
  const auto waited = Quern({"wait", first});
  EXPECT_EQ(waited.code, 0) << waited.err << Quern({"logs", first}).out;
  EXPECT_GE(Json::parse(Quern({"status", first, "-o", "json"}).out)["attempts"], 2);
  EXPECT_EQ(Quern({"wait", second}).code, 0);
}

TEST_F(Queue, AJobThatFailsSaysWhyAndOneThatIsUnknownIsNotFound) {
  const std::string id = Submit({"require=[{better: q_sft, than: sft, by_standard_errors: 1000}]"});
  const auto waited = Quern({"wait", id});
  EXPECT_EQ(waited.code, 100) << waited.err;
  EXPECT_EQ(CountLines(waited.err), 1u) << waited.err;
  EXPECT_EQ(Quern({"status", id, "--exit-code"}).code, 100);
  for (const char* command : {"status", "wait", "logs", "cancel", "delete"}) {
    const auto ended = Quern({command, "nothing"});
    EXPECT_EQ(ended.code, 102) << command;
    EXPECT_EQ(ended.err, "quern: nothing: no such job; see quern list\n");
  }
  EXPECT_EQ(Quern({"submit", "nowhere.yaml"}).code, 1);
  EXPECT_EQ(Quern({"submit", job_, "--on", "slurm"}).code, 1);
}

TEST_F(Queue, ACancelledJobIsResumedById) {
  const std::string id = Submit({"qsft.max_steps=400", "checkpoint.every_steps=10"});
  ASSERT_TRUE(Eventually([&] { return PathExists(folder_.File("home/jobs/" + id + "/run/journal.jsonl")); }));
  ASSERT_EQ(Quern({"cancel", id}).code, 0);
  const auto cancelled = Quern({"wait", id});
  ASSERT_EQ(cancelled.code, 103) << cancelled.out << cancelled.err;
  ASSERT_EQ(Quern({"resume", id}).code, 0);
  EXPECT_EQ(Quern({"wait", id}).code, 0);
  EXPECT_EQ(Quern({"resume", id}).code, 1);
}

}  // namespace
}  // namespace quern
