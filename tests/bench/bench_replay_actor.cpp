// One actor of bench_replay: from --start on it stores records and prints how many were acknowledged in time and what
// each commit took, in ms.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "replay/client.h"
#include "replay/writer.h"
#include "tests/bench/replay_load.h"

namespace quern::bench {
namespace {

constexpr int kRedisPipeline = 16;
constexpr int kRedisKeys = 20000;  // so many are written over and over: its memory is bounded

Run QuernActor(const std::string& address, const Load& load, uint64_t index, double start) {
  auto client = ReplayClient::Connect(address);
  Check(client.status());
  auto writer = ReplayWriter::Open(client->get(), StrCat("actor-", index), Soon());
  Check(writer.status());
  Records records(load.bytes, index);
  return Repeat(start, load.seconds, [&] {
    for (int i = 0; i < load.batch; ++i) {
      std::string bytes = records.Next();
      (*writer)->Append(std::move(bytes), records.uid());
    }
    Check((*writer)->Flush(Soon()));
    return load.batch;
  });
}

Run RedisActor(const std::string& path, const Load& load, uint64_t index, double start) {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  std::snprintf(to.sun_path, sizeof(to.sun_path), "%s", path.c_str());
  QUERN_CHECK(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0, path);
  Records records(load.bytes, index);
  Random random(index);
  std::string request;
  return Repeat(start, load.seconds, [&] {
    request.clear();
    for (int i = 0; i < kRedisPipeline; ++i) {
      const std::string& value = records.Next();
      request += StrFormat("*3\r\n$3\r\nSET\r\n$8\r\n%08u\r\n$%zu\r\n", static_cast<unsigned>(random.Below(kRedisKeys)),
                           value.size());
      request += value;
      request += "\r\n";
    }
    for (size_t sent = 0; sent < request.size();) {
      const ssize_t n = write(fd, request.data() + sent, request.size() - sent);
      QUERN_CHECK(n > 0);
      sent += static_cast<size_t>(n);
    }
    char reply[5 * kRedisPipeline];  // "+OK\r\n" each
    for (size_t got = 0; got < sizeof(reply);) {
      const ssize_t n = read(fd, reply + got, sizeof(reply) - got);
      QUERN_CHECK(n > 0 && reply[0] == '+', "redis refuses");
      got += static_cast<size_t>(n);
    }
    return kRedisPipeline;
  });
}

int Main(int argc, char** argv) {
  const auto flag = [&](const char* name) { return Flag(argc, argv, name, "0"); };
  const Load load{.bytes = std::strtoull(flag("bytes").c_str(), nullptr, 10),
                  .actors = 1,
                  .batch = std::atoi(flag("batch").c_str()),
                  .seconds = std::atof(flag("seconds").c_str())};
  const double start = std::atof(flag("start").c_str());
  const uint64_t index = std::strtoull(flag("index").c_str(), nullptr, 10);
  const Run run =
      flag("kind") == "redis" ? RedisActor(flag("to"), load, index, start) : QuernActor(flag("to"), load, index, start);
  std::printf("%.0f", run.records);
  for (const double latency : run.latencies) std::printf(" %.3f", latency);
  std::printf("\n");
  return 0;
}

}  // namespace
}  // namespace quern::bench

int main(int argc, char** argv) { return quern::bench::Main(argc, argv); }
