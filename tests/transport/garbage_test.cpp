// Strangers at the ports: connections that send random bytes, break off, claim to be huge, or say nothing. The server
// goes on serving, its memory stays, and every one is counted.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "base/strings.h"
#include "tests/resident.h"
#include "tests/transport/garbage.h"
#include "tests/transport/temporary_folder.h"
#include "transport/rpc.h"

namespace quern {
namespace {

Deadline Soon() { return Deadline::After(std::chrono::seconds(20)); }

// Connections a server: 2,000 with QUERN_CRASH=full.
int Connections() {
  const char* mode = std::getenv("QUERN_CRASH");
  return mode != nullptr && std::string(mode) == "full" ? 2000 : 300;
}

void Harass(RpcServer& server, RpcClient& client, uint64_t seed) {
  Random random(seed);
  ASSERT_EQ(*client.Call("echo", "before", Soon()), "before");
  const uint64_t connections_before = server.counters().connections;
  const uint64_t handshakes_before = server.counters().handshakes;
  const int count = Connections();
  std::vector<int> open;
  int64_t resident = 0;
  for (int i = 0; i < count; ++i) {
    const int fd = ConnectTo(server.address());
    const std::string bytes = Garbage(static_cast<uint64_t>(i), random);
    (void)send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    open.push_back(fd);
    if (open.size() >= 100) {
      for (const int one : open) close(one);
      open.clear();
      ASSERT_EQ(*client.Call("echo", StrCat(i), Soon()), StrCat(i));
      if (resident == 0) resident = testing::ResidentBytes();  // after the first hundred: what it takes once
    }
  }
  for (const int one : open) close(one);
  ASSERT_EQ(*client.Call("echo", "after", Soon()), "after");
  const Deadline deadline = Soon();
  while (server.counters().connections < connections_before + static_cast<uint64_t>(count) && !deadline.Expired())
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(server.counters().connections, connections_before + static_cast<uint64_t>(count));
  if (server.address().starts_with("tcp://")) {
    EXPECT_EQ(server.counters().handshakes, handshakes_before);
    // Without a key nothing is heard. On ipc, where the folder's mode keeps strangers out, noise may look like frames.
    EXPECT_EQ(server.counters().malformed, 0u);
    EXPECT_EQ(server.counters().requests, static_cast<uint64_t>(2 + count / 100));
  }
  EXPECT_LT(testing::ResidentBytes() - resident, int64_t{32} << 20);
}

void AddEcho(RpcServer& server) {
  server.Handle("echo", [](std::string_view request) -> Result<std::string> { return std::string(request); });
}

TEST(Garbage, OnTcp) {
  const CurveKeys server_keys = GenerateCurveKeys(), client_keys = GenerateCurveKeys();
  RpcServer server(
      RpcServerOptions{.limits = {}, .threads = 1, .keys = server_keys, .allowed_clients = {client_keys.public_key}});
  AddEcho(server);
  ASSERT_TRUE(server.Start("tcp://127.0.0.1:*").ok());
  RpcClientOptions options{.limits = {}, .keys = client_keys, .server_key = server_keys.public_key};
  Harass(server, **RpcClient::Connect(server.address(), options), 1);
}

TEST(Garbage, OnIpcAndWithWorkers) {
  TemporaryFolder folder;
  RpcServer server(RpcServerOptions{.limits = {}, .threads = 2, .keys = {}, .allowed_clients = {}});
  AddEcho(server);
  ASSERT_TRUE(server.Start("ipc://" + folder.path() + "/s").ok());
  Harass(server, **RpcClient::Connect(server.address()), 2);
}

}  // namespace
}  // namespace quern
