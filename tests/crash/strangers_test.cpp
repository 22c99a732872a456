// Strangers at every port of a running job, of `quern serve` and of `quern ui`: connections that send garbage and break
// off, peers without a key on the list, and peers with one that send what is too large, too deep or no message. All
// processes go on, their memory stays, and everything is counted.
#include <zmq.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/random.h"
#include "tests/crash/totals.h"
#include "tests/e2e/tiny_job.h"
#include "tests/transport/garbage.h"
#include "tests/transport/http_client.h"
#include "transport/context.h"
#include "transport/rpc.h"

namespace quern {
namespace {

using Json = nlohmann::json;
using testing::HttpClient;

// A port that somebody listens on, and the metric that counts its strangers.
struct Port {
  std::string address;  // as of ConnectTo
  pid_t pid = 0;
  int metrics_port = 0;
  std::string metric;
};

// The tcp ports and unix sockets that a process listens on, from /proc.
std::vector<std::string> Listening(pid_t pid) {
  std::set<std::string> inodes;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(StrCat("/proc/", pid, "/fd"), error)) {
    const std::string link = std::filesystem::read_symlink(entry.path(), error);
    if (link.starts_with("socket:[")) inodes.insert(link.substr(8, link.size() - 9));
  }
  std::vector<std::string> addresses;
  const auto each_line = [&](const char* table, const std::function<void(const std::vector<std::string>&)>& visit) {
    for (const std::string& line : StrSplit(*ReadFile(StrCat("/proc/", pid, "/net/", table)), '\n')) {
      std::vector<std::string> words;
      for (const std::string& word : StrSplit(line, ' '))
        if (!word.empty()) words.push_back(word);
      visit(words);
    }
  };
  each_line("tcp", [&](const std::vector<std::string>& words) {
    if (words.size() < 10 || words[3] != "0A" || !inodes.contains(words[9])) return;
    const std::string port = words[1].substr(words[1].find(':') + 1);
    addresses.push_back(StrCat("tcp://127.0.0.1:", std::strtol(port.c_str(), nullptr, 16)));
  });
  each_line("unix", [&](const std::vector<std::string>& words) {  // the flag: it takes connections
    if (words.size() == 8 && words[3] == "00010000" && inodes.contains(words[6]))
      addresses.push_back("ipc://" + words[7]);
  });
  return addresses;
}

int64_t ResidentBytes(pid_t pid) {
  long size = 0, resident = 0;
  const Result<std::string> text = ReadFile(StrCat("/proc/", pid, "/statm"));
  if (!text.ok() || std::sscanf(text->c_str(), "%ld %ld", &size, &resident) != 2) return -1;
  return resident * sysconf(_SC_PAGESIZE);
}

// A metric's value, summed over its labels.
double Metric(int port, const std::string& name) {
  const std::string text = HttpClient::BodyOf(HttpClient::Ask(port, "GET", "/metrics"));
  double sum = 0;
  for (const std::string& line : StrSplit(text, '\n')) {
    const bool is_it = line.starts_with(name + " ") || line.starts_with(name + "{");
    if (is_it) sum += std::strtod(line.c_str() + line.rfind(' '), nullptr);
  }
  return sum;
}

class Strangers : public ::testing::Test {
 protected:
  int HttpPort(const std::string& name) const {
    const Json target = Json::parse(*ReadFile(folder_.File("run/http/" + name + ".json")));
    const std::string address = target[0]["targets"][0];
    return std::atoi(address.c_str() + address.rfind(':') + 1);
  }
  // The port that `quern serve` or `quern ui` printed.
  int PrintedPort(const QuernProcess& process) const {
    int port = 0;
    EXPECT_TRUE(Eventually([&] {
      const Result<std::string> out = ReadFile(process.out());
      if (!out.ok() || !out->ends_with("\n")) return false;
      port = std::atoi(out->c_str() + std::string("http://127.0.0.1:").size());
      return port != 0;
    }));
    return port;
  }
  // Every port of the run's processes; one that is none we know is an error.
  std::vector<Port> PortsOfTheRun() {
    std::vector<Port> ports;
    const Json run = Json::parse(*ReadFile(folder_.File("run/run.json")));
    for (const std::string role : {"coordinator", "replay-server", "learner", "actor"}) {
      for (const pid_t pid : ProcessesWith({role + '\0' + "--job", folder_.path()})) {
        const std::vector<std::string> addresses = Listening(pid);
        int http = 0;
        for (int index = 0; index < 2; ++index) {
          const std::string name = StrCat(role, "-", index);
          if (!PathExists(folder_.File("run/http/" + name + ".json"))) continue;
          const int port = HttpPort(name);
          for (const std::string& address : addresses)
            if (address.ends_with(StrCat(":", port))) http = port;
        }
        EXPECT_NE(http, 0) << role << " " << pid;
        for (const std::string& address : addresses) {
          Port port{.address = address, .pid = pid, .metrics_port = http, .metric = ""};
          if (address.ends_with(StrCat(":", http)))
            port.metric = "quern_http_refused_requests_total";
          else if (address == run["coordinator_address"])
            port.metric = "quern_coordinator_connections_total";
          else if (address == run["replay_address"])
            port.metric = "quern_replay_connections_total";
          else if (role == "coordinator")
            port.metric = "quern_coordinator_weight_refused_total";
          else if (role == "learner" && address.starts_with("ipc://"))
            port.metric = "quern_learner_strangers_total";
          else
            ADD_FAILURE() << role << " listens on " << address;
          ports.push_back(std::move(port));
        }
      }
    }
    return ports;
  }
  // `count` strangers, a hundred at a time.
  void Harass(const Port& port, uint64_t count, Random& random) {
    SCOPED_TRACE(port.address + " " + port.metric);
    const double before = Metric(port.metrics_port, port.metric);
    const bool http = port.metric == "quern_http_refused_requests_total";
    int64_t resident = ResidentBytes(port.pid);
    std::vector<int> open;
    for (uint64_t i = 0; i < count; ++i) {
      open.push_back(ConnectTo(port.address));
      std::string bytes = Garbage(i, random);
      if (http && bytes.starts_with("GET / HTTP/1.1")) bytes = "GET / HTTP/9.7\r\nHost: localhost\r\n\r\n";
      (void)send(open.back(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (open.size() < 100 && i + 1 < count) continue;
      for (const int fd : open) close(fd);
      open.clear();
      if (i < 200) resident = std::max(resident, ResidentBytes(port.pid));  // what it takes once
    }
    EXPECT_TRUE(Eventually([&] {
      return Metric(port.metrics_port, port.metric) >= before + static_cast<double>(count);
    })) << Metric(port.metrics_port, port.metric) - before
        << " of " << count << " were counted";
    EXPECT_LT(ResidentBytes(port.pid) - resident, int64_t{32} << 20);
    Totals().strangers += count;
  }

  QuernProcess::Folder folder_;
};

// A peer with these keys that sends one frame.
class RawPeer {
 public:
  RawPeer(const std::string& address, const CurveKeys& keys, const std::string& server_key)
      : socket_(zmq_socket(ZmqContext(), ZMQ_DEALER)) {
    const int linger_ms = 1000;
    zmq_setsockopt(socket_, ZMQ_LINGER, &linger_ms, sizeof(linger_ms));
    zmq_setsockopt(socket_, ZMQ_CURVE_SERVERKEY, server_key.c_str(), 41);
    zmq_setsockopt(socket_, ZMQ_CURVE_PUBLICKEY, keys.public_key.c_str(), 41);
    zmq_setsockopt(socket_, ZMQ_CURVE_SECRETKEY, keys.secret_key.c_str(), 41);
    EXPECT_EQ(zmq_connect(socket_, address.c_str()), 0);
  }
  ~RawPeer() { zmq_close(socket_); }
  void Send(const std::string& frame) { EXPECT_GE(zmq_send(socket_, frame.data(), frame.size(), 0), 0); }

 private:
  void* socket_;
};

std::string Group(size_t depth) { return std::string(depth, '\x0b') + std::string(depth, '\x0c'); }

TEST_F(Strangers, AtEveryPortHoldNobodyUpAndAreCounted) {
  const uint64_t count = CrashCount(2000, 20);
  const int port = 20000 + (getpid() * 7) % 20000;
  QuernProcess process(folder_,
                       RunArguments(folder_, {"network.transport=tcp", StrCat("network.coordinator_port=", port),
                                              StrCat("network.replay_port=", port + 1), "learner.ranks=2",
                                              "qsft.max_steps=2000000", "online.rounds=0"}));
  ASSERT_TRUE(Eventually(
      [&] {
        const Result<std::string> journal = ReadFile(folder_.File("run/journal.jsonl"));
        return journal.ok() && journal->find("\"stage_given\",\"stage\":\"q_sft\"") != std::string::npos;
      },
      120))
      << *ReadFile(folder_.File("run/journal.jsonl"));
  QuernProcess::Folder ended;
  ASSERT_EQ(QuernProcess::Run(ended, RunArguments(ended)).code, 0);
  QuernProcess serve(ended, {"serve", "--model", "run/model", "--port", "0"});
  QuernProcess ui(ended, {"ui", "--run", "run"});

  std::vector<Port> ports = PortsOfTheRun();
  std::map<std::string, int> kinds;
  for (const Port& one : ports) ++kinds[one.metric];
  EXPECT_EQ(kinds, (std::map<std::string, int>{{"quern_http_refused_requests_total", 6},
                                               {"quern_coordinator_connections_total", 1},
                                               {"quern_replay_connections_total", 1},
                                               {"quern_coordinator_weight_refused_total", 1},
                                               {"quern_learner_strangers_total", 2}}));
  for (const QuernProcess* server : {&serve, &ui}) {
    const int at = PrintedPort(*server);
    ports.push_back({.address = StrCat("tcp://127.0.0.1:", at),
                     .pid = server->pid(),
                     .metrics_port = at,
                     .metric = "quern_http_refused_requests_total"});
  }
  Random random(CrashSeed(), 12);
  for (const Port& one : ports) Harass(one, count, random);

  const std::string keys_folder = folder_.File("run/keys");
  const CurveKeys actor = *LoadKeys(keys_folder, "actor");
  struct Server {
    std::string role, prefix, method;
    int port;
    size_t limit;
  };
  for (const Server& server :
       {Server{"coordinator", "quern_coordinator_", "coordinator.Heartbeat", port, size_t{4} << 20},
        Server{"replay-server", "quern_replay_", "replay.Query", port + 1, size_t{64} << 20}}) {
    SCOPED_TRACE(server.role);
    const std::string address = StrCat("tcp://127.0.0.1:", server.port);
    const std::string server_key = *LoadPublicKey(keys_folder, server.role);
    const int metrics = HttpPort(server.role + "-0");
    const auto number = [&](const char* name) { return Metric(metrics, server.prefix + name); };
    const auto grows = [&](const char* name, double before, uint64_t by) {
      EXPECT_TRUE(Eventually([&] { return number(name) >= before + static_cast<double>(by); }))
          << name << ": " << number(name) - before << " instead of " << by;
    };
    const auto connect = [&](const CurveKeys& keys, const std::string& public_key) {
      RpcClientOptions options;
      options.limits.max_message_bytes = int64_t{1} << 30;
      options.keys = keys;
      options.server_key = public_key;
      return *RpcClient::Connect(address, options);
    };
    const pid_t pid = ProcessesWith({server.role + '\0' + "--job", folder_.path()}).at(0);
    const int64_t resident = ResidentBytes(pid);
    // Keys of their own, and the right ones with a wrong idea of the server's.
    const double connections = number("connections_total"), handshakes = number("handshakes_total");
    const uint64_t wrong = CrashCount(200, 10);
    for (uint64_t i = 0; i < wrong; ++i) {
      const auto client =
          i % 2 == 0 ? connect(GenerateCurveKeys(), server_key) : connect(actor, GenerateCurveKeys().public_key);
      EXPECT_FALSE(client->Call(server.method, "", Deadline::After(std::chrono::milliseconds(30))).ok());
    }
    grows("connections_total", connections, wrong);
    EXPECT_EQ(number("handshakes_total"), handshakes);
    // A key on the list, and requests that are none.
    const uint64_t bad = CrashCount(500, 20);
    double rejected = number("rejected_messages_total");
    {
      const auto client = connect(actor, server_key);
      for (uint64_t i = 0; i < bad; ++i) {
        const std::string payload = i % 3 == 0   ? Group(1 << 17)
                                    : i % 3 == 1 ? std::string("\x0a\xff\xff\xff\xff\x07", 6)
                                                 : std::string(1 << 20, '\x0a');
        const char* method = server.role == "replay-server" && i % 2 == 0 ? "replay.Insert" : server.method.c_str();
        EXPECT_EQ(client->Call(method, payload, Deadline::After(std::chrono::seconds(10))).status().code(),
                  StatusCode::kInvalidArgument)
            << method << " " << i;
      }
      RawPeer raw(address, actor, server_key);
      for (uint64_t i = 0; i < bad; ++i) raw.Send("one frame");
      grows("rejected_messages_total", rejected, 2 * bad);
    }
    // Too large: the peer is cut off, and counted when it comes again.
    const double before = number("connections_total");
    for (int i = 0; i < 3; ++i) {
      const auto client = connect(actor, server_key);
      EXPECT_EQ(
          client
              ->Call(server.method, std::string(server.limit + 1, 'x'), Deadline::After(std::chrono::milliseconds(500)))
              .status()
              .code(),
          StatusCode::kDeadlineExceeded);
    }
    grows("connections_total", before, 3);
    EXPECT_LT(ResidentBytes(pid) - resident, int64_t{32} << 20);
    Totals().strangers += wrong + 2 * bad + 3;
  }

  // The very processes of the beginning, at work.
  const double steps = Metric(HttpPort("learner-0"), "quern_learner_steps_total");
  EXPECT_TRUE(Eventually([&] { return Metric(HttpPort("learner-0"), "quern_learner_steps_total") > steps; }));
  EXPECT_EQ(Metric(HttpPort("coordinator-0"), "quern_coordinator_restarts_total"), 0);
  std::set<pid_t> now;
  for (const Port& one : PortsOfTheRun()) now.insert(one.pid);
  for (const Port& one : ports) EXPECT_TRUE(now.contains(one.pid) || one.pid == serve.pid() || one.pid == ui.pid());
  serve.Signal(SIGTERM);
  EXPECT_EQ(serve.Wait().code, 0);
  ui.Signal(SIGINT);
  EXPECT_EQ(ui.Wait().code, 0);
  process.Signal(SIGINT);
  const auto stopped = process.Wait();
  EXPECT_EQ(stopped.code, 103) << stopped.err;
  EXPECT_EQ(stopped.err.find("starting it again"), std::string::npos) << stopped.err;
  EXPECT_EQ(QuernProcess::Run(folder_, {"replay", "verify", "--store", "run/replay"}).code, 0);
}

}  // namespace
}  // namespace quern
