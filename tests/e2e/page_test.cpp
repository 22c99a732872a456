#include <nlohmann/json.hpp>

#include "tests/e2e/tiny_job.h"
#include "tests/transport/http_client.h"

namespace quern {
namespace {

using Json = nlohmann::json;
using testing::HttpClient;

// The port in RUN/http/NAME.json; 0: it is not there.
int PortOf(const QuernProcess::Folder& folder, const std::string& name) {
  const Result<std::string> text = ReadFile(folder.File("run/http/" + name + ".json"));
  if (!text.ok()) return 0;
  const std::string target = Json::parse(*text)[0]["targets"][0];
  return std::atoi(target.substr(target.rfind(':') + 1).c_str());
}

std::string Get(int port, const std::string& path) { return HttpClient::Ask(port, "GET", path); }
Json GetJson(int port, const std::string& path) {
  const std::string answer = Get(port, path);
  EXPECT_EQ(HttpClient::StatusOf(answer), 200) << path << "\n" << answer;
  return Json::parse(HttpClient::BodyOf(answer), nullptr, false);
}

double Number(const std::string& metrics, const std::string& name) {
  const size_t at = metrics.find("\n" + name + " ");
  EXPECT_NE(at, std::string::npos) << name << " in\n" << metrics;
  return at == std::string::npos ? 0 : std::strtod(metrics.c_str() + at + name.size() + 2, nullptr);
}

TEST(Page, EveryProcessOfARunHasMetricsAndTheCoordinatorThePage) {
  const QuernProcess::Folder folder;
  QuernProcess process(folder, RunArguments(folder, {"qsft.max_steps=200000", "online.rounds=0"}));
  const std::vector<std::string> roles = {"coordinator-0", "replay-server-0", "learner-0", "actor-0", "actor-1"};
  for (const std::string& role : roles)
    ASSERT_TRUE(Eventually(
        [&] {
          const int port = PortOf(folder, role);
          return port != 0 && HttpClient::StatusOf(Get(port, "/readyz")) == 200;
        },
        60))
        << role;
  const int port = PortOf(folder, "coordinator-0");
  // The learner is at its last stage.
  ASSERT_TRUE(Eventually(
      [&] {
        const Json run = GetJson(port, "/api/run");
        for (const Json& stage : run["stages"])
          if (stage["name"] == "q_sft" && stage["state"] == "running" && stage["done"] > 0) return true;
        return false;
      },
      120));
  for (const std::string& role : roles) {
    const int at = PortOf(folder, role);
    EXPECT_EQ(HttpClient::StatusOf(Get(at, "/healthz")), 200) << role;
    const std::string metrics = Get(at, "/metrics");
    EXPECT_EQ(HttpClient::StatusOf(metrics), 200);
    EXPECT_NE(metrics.find("Content-Type: text/plain; version=0.0.4"), std::string::npos) << metrics;
    EXPECT_NE(metrics.find("quern_build_info{"), std::string::npos) << role;
    EXPECT_GT(Number(metrics, "process_resident_memory_bytes"), 0);
    EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(at, "POST", "/metrics", "{}")), 405) << role;
    EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(at, "GET", "/metrics", "", "Host: evil.example\r\n")), 403) << role;
    EXPECT_EQ(HttpClient::StatusOf(Get(at, "/nothing/here")), 404) << role;
  }
  const std::string store = Get(PortOf(folder, "replay-server-0"), "/metrics");
  EXPECT_GE(Number(store, "quern_replay_records_committed_total"), 120);
  EXPECT_GE(Number(store, "quern_replay_commit_duration_seconds_count"), 1);
  EXPECT_GT(Number(store, "quern_replay_disk_free_bytes"), 1e6);
  EXPECT_EQ(Number(store, "quern_replay_write_stalled"), 0);
  const std::string learner = Get(PortOf(folder, "learner-0"), "/metrics");
  EXPECT_GE(Number(learner, "quern_learner_steps_total"), 11);
  EXPECT_EQ(Number(learner, "quern_learner_training"), 1);
  EXPECT_GT(Number(learner, "quern_learner_loss{term=\"total\"}"), -1e3);
  // The actors may still be evaluating what was trained before.
  EXPECT_TRUE(Eventually([&] {
    double episodes = 0, unacknowledged = 0;
    for (const char* role : {"actor-0", "actor-1"}) {
      const std::string actor = Get(PortOf(folder, role), "/metrics");
      unacknowledged += Number(actor, "quern_actor_unacked_records");
      // One of them may have come when there was nothing left to play.
      const std::string count = "quern_actor_reward_count{env=\"wordle\"}";
      if (actor.find(count) != std::string::npos) episodes += Number(actor, count);
    }
    return episodes >= 120 + 24 && unacknowledged == 0;
  }));
  EXPECT_TRUE(Eventually([&] {
    const std::string metrics = Get(port, "/metrics");
    return metrics.find("quern_coordinator_members{role=\"actor\",state=\"alive\"} 2\n") != std::string::npos &&
           metrics.find("quern_coordinator_job_state{state=\"running\"} 1\n") != std::string::npos;
  }));

  const std::string page = Get(port, "/");
  EXPECT_NE(page.find("<!doctype html>"), std::string::npos);
  EXPECT_NE(page.find("</html>"), std::string::npos);
  EXPECT_GE(GetJson(port, "/api/replay")["records"], 120);
  EXPECT_EQ(GetJson(port, "/api/samples?limit=3")["samples"].size(), 3u);
  EXPECT_EQ(GetJson(port, "/api/curves")["stages"][0]["stage"], "sft");
  EXPECT_EQ(GetJson(port, "/api/job")["name"], "tiny");
  EXPECT_TRUE(Eventually([&] { return !GetJson(port, "/api/returns")["policies"].empty(); }));
  EXPECT_FALSE(GetJson(port, "/api/events")["events"].empty());
  const auto going_on = QuernProcess::Run(folder, {"ui", "--run", "run"});
  EXPECT_EQ(going_on.code, 0) << going_on.err;
  EXPECT_NE(going_on.out.find(StrCat("its page: http://127.0.0.1:", port, "/")), std::string::npos) << going_on.out;

  process.Signal(SIGINT);
  const auto ended = process.Wait();
  EXPECT_EQ(ended.code, 103) << ended.err;
  EXPECT_NE(ended.err.find("page: http://127.0.0.1:"), std::string::npos) << ended.err;
  EXPECT_TRUE(ListDirectory(folder.File("run/http"))->empty()) << "an address of a process that has left";
  EXPECT_FALSE(ListDirectory(folder.File("run/tensorboard/sft"))->empty());

  // The same after the end.
  QuernProcess ui(folder, {"ui", "--run", "run"});
  int ui_port = 0;
  ASSERT_TRUE(Eventually([&] {
    const std::vector<std::string> names = *ListDirectory(folder.path());
    for (const std::string& name : names) {
      const std::string text = name.starts_with("out-") ? *ReadFile(folder.File(name)) : std::string();
      if (text.starts_with("http://127.0.0.1:")) ui_port = std::atoi(text.c_str() + 17);
    }
    return ui_port != 0;
  }));
  const Json run = GetJson(ui_port, "/api/run");
  EXPECT_EQ(run["live"], false);
  EXPECT_EQ(run["state"], "stopping");
  EXPECT_EQ(run["members"].size(), 0u);
  EXPECT_GE(GetJson(ui_port, "/api/replay")["records"], 120);
  EXPECT_EQ(GetJson(ui_port, "/api/samples?limit=1")["samples"][0]["messages"][0]["role"], "user");
  EXPECT_NE(Get(ui_port, "/").find("<!doctype html>"), std::string::npos);
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(ui_port, "DELETE", "/api/run")), 405);
  // It holds no lock that others need.
  EXPECT_EQ(QuernProcess::Run(folder, {"replay", "verify", "--store", "run/replay"}).code, 0);
  ui.Signal(SIGINT);
  EXPECT_EQ(ui.Wait().code, 0);
  EXPECT_EQ(QuernProcess::Run(folder, {"ui", "--run", "nowhere"}).code, 102);
}

TEST(Page, BeyondThisMachineItNeedsAToken) {
  const QuernProcess::Folder folder;
  const auto refused = QuernProcess::Run(folder, RunArguments(folder, {"network.http_host=0.0.0.0"}));
  EXPECT_EQ(refused.code, 1);
  EXPECT_NE(refused.err.find("network.http_token_file"), std::string::npos) << refused.err;
  ASSERT_TRUE(WriteFileAtomic(folder.File("token"), "0123456789abcdef-secret\n").ok());
  QuernProcess process(folder, RunArguments(folder, {"network.http_host=0.0.0.0", "network.http_token_file=token",
                                                     "qsft.max_steps=200000", "online.rounds=0"}));
  ASSERT_TRUE(Eventually([&] { return PortOf(folder, "coordinator-0") != 0; }));
  const int port = PortOf(folder, "coordinator-0");
  EXPECT_EQ(HttpClient::StatusOf(Get(port, "/")), 200) << "the page has no data of its own";
  EXPECT_EQ(HttpClient::StatusOf(Get(port, "/healthz")), 200);
  for (const char* path : {"/metrics", "/api/run", "/api/samples"}) {
    EXPECT_EQ(HttpClient::StatusOf(Get(port, path)), 401) << path;
    const std::string wrong = "Host: localhost\r\nAuthorization: Bearer 0123456789abcdef-secreT\r\n";
    EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(port, "GET", path, "", wrong)), 401) << path;
  }
  const std::string right = "Host: elsewhere.example\r\nAuthorization: Bearer 0123456789abcdef-secret\r\n";
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(port, "GET", "/api/run", "", right)), 200);
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(port, "GET", "/metrics", "", right)), 200);
  process.Signal(SIGINT);
  EXPECT_EQ(process.Wait().code, 103);
}

}  // namespace
}  // namespace quern
