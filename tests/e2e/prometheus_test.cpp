#include <nlohmann/json.hpp>
#include <set>

#include "tests/e2e/tiny_job.h"
#include "tests/transport/http_client.h"
#include "transport/metric_list.h"

namespace quern {
namespace {

using Json = nlohmann::json;
using testing::HttpClient;

// Debian's Prometheus, on a free port, until the end.
class PrometheusProcess {
 public:
  PrometheusProcess(const QuernProcess::Folder& folder, const std::string& binary)
      : log_(folder.File("prometheus.log")) {
    const std::string command = StrCat("exec ", binary, " --config.file=", folder.File("prometheus.yml"),
                                       " --storage.tsdb.path=", folder.File("tsdb"),
                                       " --web.listen-address=127.0.0.1:0 > ", log_, " 2>&1 < /dev/null");
    const char* argv[] = {"sh", "-c", command.c_str(), nullptr};
    EXPECT_EQ(posix_spawn(&pid_, "/bin/sh", nullptr, nullptr, const_cast<char* const*>(argv), environ), 0);
  }
  ~PrometheusProcess() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  // 0 until it listens.
  int Port() const {
    const Result<std::string> log = ReadFile(log_);
    if (!log.ok()) return 0;
    const size_t line = log->find("msg=\"Listening on\" address=127.0.0.1:");
    return line == std::string::npos ? 0 : std::atoi(log->c_str() + line + 37);
  }
  std::string Log() const { return *ReadFile(log_); }

 private:
  std::string log_;
  pid_t pid_ = 0;
};

TEST(Prometheus, ScrapesEveryMetricOfARunningJobAndItsServer) {
  std::string binary = "/usr/bin/prometheus";
  if (!PathExists(binary)) binary = JoinPath(getenv("QUERN_SOURCE_DIR"), "build/tools/prometheus");
  if (!PathExists(binary)) GTEST_SKIP() << "no Prometheus (Debian's package, or scripts/install-deps.sh test)";
  const QuernProcess::Folder folder;
  const std::string root = JoinPath(getenv("QUERN_SOURCE_DIR"), "deploy/prometheus");
  ASSERT_TRUE(WriteFileAtomic(folder.File("alerts.yml"), *ReadFile(JoinPath(root, "alerts.yml"))).ok());
  // As the example, at this run.
  std::string config = *ReadFile(JoinPath(root, "prometheus.yml"));
  const auto replace = [&](const std::string& what, const std::string& with) {
    const size_t at = config.find(what);
    ASSERT_NE(at, std::string::npos) << what;
    config.replace(at, what.size(), with);
  };
  replace("/var/lib/quern/runs/wordle-1", folder.File("run"));
  replace("scrape_interval: 5s", "scrape_interval: 1s");
  replace("evaluation_interval: 5s", "evaluation_interval: 1s");
  ASSERT_TRUE(WriteFileAtomic(folder.File("prometheus.yml"), config).ok());
  // FP8, so that its metrics are there too.
  QuernProcess process(folder,
                       RunArguments(folder, {"qsft.max_steps=200000", "online.rounds=0", "checkpoint.every_steps=20",
                                             "checkpoint.every_seconds=0", "precision=fp8"}));
  ASSERT_TRUE(Eventually([&] { return PathExists(folder.File("run/job.json")); }));
  QuernProcess server(folder, {"serve", "--model", "run/model", "--port", "0"});
  ASSERT_TRUE(Eventually([&] { return ReadFile(server.out())->ends_with("\n"); }));
  const std::string url = *ReadFile(server.out());
  const std::string server_port = url.substr(url.rfind(':') + 1, url.size() - url.rfind(':') - 2);
  const Json server_target = {
      {{"targets", {"127.0.0.1:" + server_port}}, {"labels", {{"run", "run"}, {"role", "server"}, {"index", "0"}}}}};
  ASSERT_TRUE(WriteFileAtomic(folder.File("run/http/server-0.json"), server_target.dump()).ok());
  const std::string completion = HttpClient::Ask(std::atoi(server_port.c_str()), "POST", "/v1/completions",
                                                 R"({"prompt": "Wordle:\n", "max_tokens": 3})");
  ASSERT_EQ(HttpClient::StatusOf(completion), 200) << completion;
  const PrometheusProcess prometheus(folder, binary);
  ASSERT_TRUE(Eventually([&] { return prometheus.Port() != 0; }, 60)) << prometheus.Log();
  const int port = prometheus.Port();
  const auto ask = [&](const std::string& path) {
    HttpClient client(port);
    client.Send("GET " + path + " HTTP/1.0\r\nHost: localhost\r\n\r\n");  // 1.0: the answer comes in one piece
    return Json::parse(HttpClient::BodyOf(client.ReadAll()), nullptr, false);
  };
  // Every process, also the one that came last, is found and answers.
  std::string targets;
  ASSERT_TRUE(Eventually(
      [&] {
        const Json reply = ask("/api/v1/targets?state=active");
        targets = reply.dump(1);
        if (!reply.is_object() || reply["data"]["activeTargets"].size() != 6) return false;
        for (const Json& target : reply["data"]["activeTargets"])
          if (target["health"] != "up") return false;
        return true;
      },
      90))
      << targets;
  std::set<std::string> roles;
  const Json active = Json::parse(targets)["data"]["activeTargets"];
  for (const Json& target : active) {
    EXPECT_EQ(target["lastError"], "") << target.dump(1);
    EXPECT_EQ(target["labels"]["run"], "run");
    roles.insert(target["labels"]["role"].get<std::string>() + target["labels"]["index"].get<std::string>());
  }
  EXPECT_EQ(roles,
            (std::set<std::string>{"actor0", "actor1", "coordinator0", "learner0", "replay-server0", "server0"}));
  std::set<std::string> missing;
  EXPECT_TRUE(Eventually(
      [&] {
        const Json reply = ask("/api/v1/label/__name__/values");
        if (!reply.is_object() || !reply.contains("data")) return false;
        const auto there = reply["data"].get<std::set<std::string>>();
        missing.clear();
        for (const Metric* metric : AllMetrics()) {
          const bool histogram = metric->kind != Metric::kCounter && metric->kind != Metric::kGauge;
          const std::string name = StrCat("quern_", metric->name, histogram ? "_count" : "");
          if (!there.contains(name)) missing.insert(name);
        }
        return missing.empty();
      },
      60))
      << StrJoin({missing.begin(), missing.end()}, ", ");
  // The rules are evaluated without an error, and none says that this run is sick.
  const Json rules = ask("/api/v1/rules");
  ASSERT_EQ(rules["data"]["groups"].size(), 1u);
  for (const Json& rule : rules["data"]["groups"][0]["rules"]) {
    EXPECT_NE(rule["health"], "err") << rule.dump(1);
    EXPECT_NE(rule["state"], "firing") << rule.dump(1);
  }
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait().code, 0);
  process.Signal(SIGINT);
  EXPECT_EQ(process.Wait().code, 103);
}

}  // namespace
}  // namespace quern
