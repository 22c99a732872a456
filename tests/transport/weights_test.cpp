// Weight versions over the wire: whole or not there, enciphered once for all readers, gone on with after a cut.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <thread>

#include "base/random.h"
#include "base/strings.h"
#include "tests/transport/temporary_folder.h"
#include "transport/aes_gcm.h"
#include "transport/weight_fetch.h"
#include "transport/weight_server.h"

namespace quern {
namespace {

constexpr size_t kSealedChunk = (512 << 10) + kGcmTagBytes;

std::string Noise(size_t size, uint64_t seed) {
  Random random(seed);
  std::string bytes(size, '\0');
  for (size_t i = 0; i + 8 <= size; i += 8) {
    const uint64_t value = random.NextU64();
    std::memcpy(bytes.data() + i, &value, 8);
  }
  return bytes;
}

// A version of 5 MB in four files, of which one is empty, beside one that is not of it.
struct Version {
  Version() {
    EXPECT_TRUE(MakeDirectories(directory).ok());
    for (const auto& [name, contents] : files) EXPECT_TRUE(WriteFileAtomic(JoinPath(directory, name), contents).ok());
    EXPECT_TRUE(WriteFileAtomic(JoinPath(directory, "secret.txt"), "not of the model").ok());
  }
  Status Verify(const std::string& where) const {
    for (const auto& [name, contents] : files) {
      const Result<std::string> there = ReadFile(JoinPath(where, name));
      if (!there.ok()) return there.status();
      if (*there != contents) return DataLoss(StrCat(where, "/", name, ": other bytes"));
    }
    if (PathExists(JoinPath(where, "secret.txt"))) return DataLoss("a file too many");
    return {};
  }
  TemporaryFolder folder;
  std::string directory = folder.path() + "/version";
  std::map<std::string, std::string> files = {{"config.json", "{}"},
                                              {"merges.txt", ""},
                                              {"model-1.safetensors", Noise(3'000'001, 1)},
                                              {"model-2.safetensors", Noise(2'000'000, 2)}};
  uint64_t bytes = 5'000'003;
};

std::unique_ptr<WeightServer> StartServer(WeightServerOptions options = {}) {
  Result<std::unique_ptr<WeightServer>> server = WeightServer::Start(options);
  EXPECT_TRUE(server.ok()) << server.status().ToString();
  return std::move(*server);
}

WeightFetchOptions Options(const Version& version, const std::string& directory,
                           std::function<Result<v1::OpenWeightsReply>()> ticket) {
  return {.host = "127.0.0.1",
          .ticket = std::move(ticket),
          .directory = directory,
          .verify = [&version](const std::string& where) { return version.Verify(where); },
          .alive = nullptr,
          .patience = std::chrono::seconds(10)};
}

int ConnectTo(int port) {
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(static_cast<uint16_t>(port));
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0) << std::strerror(errno);
  return fd;
}

// Stands between readers and the server. Of the i-th connection it passes the request and so many bytes of the answer,
// and cuts; of the first one it changes the byte at `damage`.
class Middleman {
 public:
  Middleman(int server_port, std::vector<size_t> pass, size_t damage = SIZE_MAX) : pass_(std::move(pass)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0);
    EXPECT_EQ(listen(listener_, 8), 0);
    socklen_t size = sizeof(name);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&name), &size);
    port_ = ntohs(name.sin_port);
    thread_ = std::thread([this, server_port, damage] {
      for (size_t i = 0; i < pass_.size(); ++i) {
        const int reader = accept(listener_, nullptr, nullptr);
        if (reader < 0) return;
        Pass(reader, ConnectTo(server_port), pass_[i], i == 0 ? damage : SIZE_MAX);
      }
    });
  }
  ~Middleman() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
  }
  int port() const { return port_; }

 private:
  static void Pass(int reader, int server, size_t bytes, size_t damage) {
    char request[kWeightRequestBytes];
    EXPECT_EQ(recv(reader, request, sizeof(request), MSG_WAITALL), static_cast<ssize_t>(sizeof(request)));
    EXPECT_EQ(send(server, request, sizeof(request), MSG_NOSIGNAL), static_cast<ssize_t>(sizeof(request)));
    std::vector<char> buffer(1 << 16);
    for (size_t at = 0; at < bytes;) {
      const ssize_t got = recv(server, buffer.data(), std::min(bytes - at, buffer.size()), 0);
      if (got <= 0) break;
      const auto count = static_cast<size_t>(got);
      if (damage >= at && damage < at + count) buffer[damage - at] ^= 1;
      if (send(reader, buffer.data(), count, MSG_NOSIGNAL) != got) break;
      at += count;
    }
    close(server);
    close(reader);
  }

  std::vector<size_t> pass_;
  int listener_ = -1;
  int port_ = 0;
  std::thread thread_;
};

TEST(ChunkCipher, KnownAnswerAndEveryKindOfChange) {
  // The GCM specification's test case 14: key, nonce and text of zeros. Additional data changes the tag, not the text.
  const std::string zero(kGcmKeyBytes, '\0');
  std::vector<uint8_t> plain(16, 0), sealed(32);
  ChunkCipher(zero, true).Seal(0, 0, plain, sealed.data());
  std::string hex;
  for (size_t i = 0; i < 16; ++i) hex += StrFormat("%02x", sealed[i]);
  EXPECT_EQ(hex, "cea7403d4d606b6e074ec5d3baf39d18");

  const std::string key = RandomBytes(kGcmKeyBytes);
  const std::string text = Noise(1000, 3);
  std::vector<uint8_t> good(text.size() + kGcmTagBytes);
  ChunkCipher(key, true).Seal(7, 99, {reinterpret_cast<const uint8_t*>(text.data()), text.size()}, good.data());
  ChunkCipher opener(key, false);
  auto copy = good;
  EXPECT_TRUE(opener.Open(7, 99, copy));
  EXPECT_EQ(std::memcmp(copy.data(), text.data(), text.size()), 0);
  for (const size_t at : {size_t{0}, text.size() - 1, text.size(), good.size() - 1}) {
    copy = good;
    copy[at] ^= 0x80;
    EXPECT_FALSE(opener.Open(7, 99, copy)) << at;
  }
  copy = good;
  EXPECT_FALSE(opener.Open(8, 99, copy));
  copy = good;
  EXPECT_FALSE(opener.Open(7, 98, copy));
  copy.resize(10);
  EXPECT_FALSE(opener.Open(7, 99, copy));
  copy = good;
  EXPECT_FALSE(ChunkCipher(RandomBytes(kGcmKeyBytes), false).Open(7, 99, copy));
}

TEST(Weights, FourReadersGetTheVersionEncipheredOnce) {
  const Version version;
  const auto server = StartServer();
  TemporaryFolder folder;
  std::vector<std::thread> readers;
  for (int i = 0; i < 4; ++i) {
    readers.emplace_back([&, i] {
      const std::string to = StrCat(folder.path(), "/", i, "/cache/v1");
      const Status status = FetchWeights(Options(version, to, [&] { return server->Offer("v1", version.directory); }));
      EXPECT_TRUE(status.ok()) << status.ToString();
      EXPECT_TRUE(version.Verify(to).ok());
    });
  }
  for (std::thread& reader : readers) reader.join();
  const WeightServerCounters counters = server->counters();
  EXPECT_GE(counters.sent_bytes, 4 * version.bytes);
  EXPECT_LT(counters.sealed_bytes, version.bytes + 100 * kGcmTagBytes);
  EXPECT_EQ(counters.refused, 0u);
}

TEST(Weights, ReadersOfOneDirectoryFetchItOnce) {
  const Version version;
  const auto server = StartServer();
  TemporaryFolder folder;
  const std::string to = folder.path() + "/v1";
  std::vector<std::thread> readers;
  for (int i = 0; i < 4; ++i)
    readers.emplace_back([&] {
      EXPECT_TRUE(FetchWeights(Options(version, to, [&] { return server->Offer("v1", version.directory); })).ok());
    });
  for (std::thread& reader : readers) reader.join();
  EXPECT_LT(server->counters().sent_bytes, version.bytes + 100 * kGcmTagBytes);
  // What is there is verified, and fetched again where it is not what was published.
  ASSERT_TRUE(WriteFileAtomic(to + "/model-1.safetensors", "damaged").ok());
  EXPECT_TRUE(FetchWeights(Options(version, to, [&] { return server->Offer("v1", version.directory); })).ok());
  EXPECT_TRUE(version.Verify(to).ok());
}

TEST(Weights, ASmallCacheSealsAgainTheSame) {
  const Version version;
  WeightServerOptions options;
  options.cache_bytes = 1;
  const auto server = StartServer(options);
  TemporaryFolder folder;
  for (int i = 0; i < 2; ++i)
    EXPECT_TRUE(FetchWeights(Options(version, StrCat(folder.path(), "/", i), [&] {
                  return server->Offer("v1", version.directory);
                })).ok());
  EXPECT_GE(server->counters().sealed_bytes, 2 * version.bytes);
}

TEST(Weights, AfterCutsOnlyWhatIsMissingComes) {
  const Version version;
  const auto server = StartServer();
  TemporaryFolder folder;
  const std::string to = folder.path() + "/v1";
  // Cut in the first chunk, in the tag of a second one, late; then all of it.
  Middleman middle(server->port(), {1000, 2 * kSealedChunk - 8, 2'500'000, SIZE_MAX});
  bool seen_half = false;
  const auto ticket = [&]() -> Result<v1::OpenWeightsReply> {
    seen_half = seen_half || PathExists(to);
    Result<v1::OpenWeightsReply> reply = server->Offer("v1", version.directory);
    reply->set_port(static_cast<uint32_t>(middle.port()));
    return reply;
  };
  WeightFetchCounters counters;
  const Status status = FetchWeights(Options(version, to, ticket), &counters);
  ASSERT_TRUE(status.ok()) << status.ToString();
  EXPECT_TRUE(version.Verify(to).ok());
  EXPECT_FALSE(seen_half);
  EXPECT_EQ(counters.connections, 4);
  EXPECT_LT(counters.received_bytes, version.bytes + 3 * kSealedChunk + 100 * kGcmTagBytes);
}

TEST(Weights, AChangedByteIsNoticedAndTheChunkComesAgain) {
  const Version version;
  const auto server = StartServer();
  TemporaryFolder folder;
  const std::string to = folder.path() + "/v1";
  Middleman middle(server->port(), {SIZE_MAX, SIZE_MAX}, 1'000'000);
  const auto ticket = [&]() -> Result<v1::OpenWeightsReply> {
    auto reply = server->Offer("v1", version.directory);
    reply->set_port(static_cast<uint32_t>(middle.port()));
    return reply;
  };
  WeightFetchCounters counters;
  const Status status = FetchWeights(Options(version, to, ticket), &counters);
  ASSERT_TRUE(status.ok()) << status.ToString();
  EXPECT_TRUE(version.Verify(to).ok());
  EXPECT_EQ(counters.connections, 2);
}

TEST(Weights, PartsThatAreDamagedOnDiskAreFetchedAgain) {
  const Version version;
  const auto server = StartServer();
  TemporaryFolder folder;
  const std::string to = folder.path() + "/v1";
  ASSERT_TRUE(MakeDirectories(to + ".part").ok());
  ASSERT_TRUE(WriteFileAtomic(to + ".part/config.json", "{}").ok());
  ASSERT_TRUE(WriteFileAtomic(to + ".part/model-1.safetensors", Noise(2'900'000, 9)).ok());
  const Status status = FetchWeights(Options(version, to, [&] { return server->Offer("v1", version.directory); }));
  ASSERT_TRUE(status.ok()) << status.ToString();
  EXPECT_TRUE(version.Verify(to).ok());
  EXPECT_FALSE(PathExists(to + ".part"));
}

// A process that serves a version.
struct Serving {
  explicit Serving(const Version& version) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    pid = fork();
    if (pid == 0) {
      const auto server = StartServer();
      const std::string bytes = server->Offer("v1", version.directory)->SerializeAsString();
      (void)!write(ends[1], bytes.data(), bytes.size());
      close(ends[1]);
      while (true) pause();
    }
    close(ends[1]);
    std::string bytes(65536, '\0');
    size_t have = 0;
    for (ssize_t got; (got = read(ends[0], bytes.data() + have, bytes.size() - have)) > 0;)
      have += static_cast<size_t>(got);
    close(ends[0]);
    EXPECT_TRUE(ticket.ParseFromArray(bytes.data(), static_cast<int>(have)));
  }
  ~Serving() { Kill(); }
  void Kill() {
    if (pid <= 0) return;
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    pid = 0;
  }
  pid_t pid = -1;
  v1::OpenWeightsReply ticket;
};

TEST(Weights, AServerKilledInMidTransfer) {
  const Version version;
  TemporaryFolder folder;
  const std::string to = folder.path() + "/v1";
  auto serving = std::make_unique<Serving>(version);
  const Middleman middle(static_cast<int>(serving->ticket.port()), {3'000'000});
  int tickets = 0;
  WeightFetchCounters counters;
  const auto ticket = [&]() -> Result<v1::OpenWeightsReply> {
    ++tickets;
    v1::OpenWeightsReply reply = serving->ticket;
    if (tickets == 1) reply.set_port(static_cast<uint32_t>(middle.port()));
    if (tickets == 2) {
      EXPECT_FALSE(PathExists(to));
      EXPECT_TRUE(PathExists(to + ".part"));
      serving->Kill();  // the ticket is that of the dead one: nobody listens
    }
    if (tickets == 3) {
      serving = std::make_unique<Serving>(version);  // another key, another port
      reply = serving->ticket;
    }
    return reply;
  };
  const Status status = FetchWeights(Options(version, to, ticket), &counters);
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_TRUE(version.Verify(to).ok());
  EXPECT_EQ(tickets, 3);
  EXPECT_LT(counters.received_bytes, version.bytes + kSealedChunk + 100 * kGcmTagBytes);
}

TEST(Weights, WhatIsNotPublishedAndWhoIsNotOfTheRun) {
  const Version version;
  const auto server = StartServer();
  TemporaryFolder folder;
  // Never the right bytes: an error, and nothing is left that looks like a version.
  WeightFetchOptions options =
      Options(version, folder.path() + "/v1", [&] { return server->Offer("v1", version.directory); });
  options.verify = [](const std::string&) { return DataLoss("content hash of another version"); };
  EXPECT_EQ(FetchWeights(options).code(), StatusCode::kDataLoss);
  EXPECT_FALSE(PathExists(options.directory));
  EXPECT_FALSE(PathExists(options.directory + ".part"));
  const auto with = [&](std::function<void(v1::OpenWeightsReply&)> change) {
    options.patience = std::chrono::milliseconds(50);
    options.ticket = [&server, &version, change]() -> Result<v1::OpenWeightsReply> {
      auto ticket = server->Offer("v1", version.directory);
      change(*ticket);
      return ticket;
    };
    return FetchWeights(options).code();
  };
  EXPECT_EQ(with([](auto& ticket) { ticket.set_secret(std::string(kWeightSecretBytes, 'x')); }),
            StatusCode::kDeadlineExceeded);
  EXPECT_GT(server->counters().refused, 0u);
  EXPECT_EQ(with([](auto& ticket) { ticket.set_key(std::string(kGcmKeyBytes, 'x')); }), StatusCode::kDeadlineExceeded);
  // Tickets that would write elsewhere, or for ever.
  for (const std::string name : {"../escaped", "", ".hidden", "a/b"})
    EXPECT_EQ(with([&](auto& ticket) { ticket.mutable_files(0)->set_name(name); }), StatusCode::kDataLoss) << name;
  EXPECT_EQ(with([](auto& ticket) { ticket.mutable_files(0)->set_bytes(UINT64_MAX); }), StatusCode::kDataLoss);
  EXPECT_EQ(with([](auto& ticket) { ticket.set_chunk_bytes(UINT32_MAX); }), StatusCode::kDataLoss);
  EXPECT_FALSE(server->Offer("v2", folder.path() + "/nothing").ok());
}

TEST(Weights, StrangersAtTheDataPort) {
  const Version version;
  WeightServerOptions server_options;
  server_options.max_connections = 32;
  const auto server = StartServer(server_options);
  Random random(5);
  std::vector<int> open;
  const char* mode = std::getenv("QUERN_CRASH");
  const int count = mode != nullptr && std::string(mode) == "full" ? 2000 : 300;
  for (int i = 0; i < count; ++i) {
    const int fd = ConnectTo(server->port());
    std::string bytes;
    if (i % 4 == 0) bytes = Noise(64, random.NextU64());
    if (i % 4 == 1) bytes = "GET / HTTP/1.1\r\n\r\n";
    if (i % 4 == 2) bytes = std::string(kWeightMagic, 8) + Noise(24, random.NextU64());
    if (!bytes.empty()) (void)send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    open.push_back(fd);
  }
  // Beside 75 that say nothing a reader gets its version.
  TemporaryFolder folder;
  const Status status =
      FetchWeights(Options(version, folder.path() + "/v1", [&] { return server->Offer("v1", version.directory); }));
  EXPECT_TRUE(status.ok()) << status.ToString();
  for (const int fd : open) close(fd);
  const Deadline deadline = Deadline::After(std::chrono::seconds(20));
  while (server->counters().refused < static_cast<uint64_t>(count) && !deadline.Expired())
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(server->counters().refused, static_cast<uint64_t>(count));
}

}  // namespace
}  // namespace quern
