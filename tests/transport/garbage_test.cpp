// Strangers at the ports: connections that send random bytes, break off, claim to be huge, or say nothing. The server
// goes on serving, its memory stays, and every one is counted.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"
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

int64_t ResidentBytes() {
  long size = 0, resident = 0;
  EXPECT_EQ(std::sscanf(ReadFile("/proc/self/statm")->c_str(), "%ld %ld", &size, &resident), 2);
  return resident * sysconf(_SC_PAGESIZE);
}

int ConnectTo(const std::string& address) {
  if (address.starts_with("ipc://")) {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::strncpy(name.sun_path, address.c_str() + 6, sizeof(name.sun_path) - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0) << std::strerror(errno);
    return fd;
  }
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(static_cast<uint16_t>(atoi(address.c_str() + address.rfind(':') + 1)));
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0) << std::strerror(errno);
  return fd;
}

// A ZMTP 3.1 greeting (rfc.zeromq.org/spec/37) of a mechanism, and what may follow.
std::string Greeting(const std::string& mechanism) {
  std::string greeting("\xff\0\0\0\0\0\0\0\1\x7f\3\1", 12);
  greeting += mechanism;
  greeting.resize(32, '\0');
  greeting.resize(64, '\0');
  return greeting;
}

std::string Garbage(int kind, Random& random) {
  std::string bytes;
  const auto noise = [&](uint64_t size) {
    for (uint64_t i = 0; i < size; ++i) bytes.push_back(static_cast<char>(random.Below(256)));
  };
  switch (kind) {
    case 0: noise(1 + random.Below(4096)); break;
    case 1: bytes = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"; break;
    case 2: bytes = Greeting("CURVE").substr(0, 1 + random.Below(63)); break;  // broken off
    case 3:
      bytes = Greeting(random.Below(2) == 0 ? "NULL" : "PLAIN");
      noise(random.Below(512));
      break;
    case 4:  // a handshake command that claims to be of 2^62 bytes
      bytes = Greeting("CURVE") + std::string("\x06\x40\0\0\0\0\0\0\0", 9);
      noise(random.Below(4096));
      break;
    case 5: {  // a bit of a right greeting is wrong
      bytes = Greeting("CURVE");
      const uint64_t bit = random.Below(8 * 32);
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
      noise(200);
      break;
    }
    default: break;  // nothing at all
  }
  return bytes;
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
    const std::string bytes = Garbage(i % 7, random);
    (void)send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    open.push_back(fd);
    if (open.size() >= 100) {
      for (const int one : open) close(one);
      open.clear();
      ASSERT_EQ(*client.Call("echo", StrCat(i), Soon()), StrCat(i));
      if (resident == 0) resident = ResidentBytes();  // after the first hundred: what it takes once
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
  EXPECT_LT(ResidentBytes() - resident, int64_t{32} << 20);
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
