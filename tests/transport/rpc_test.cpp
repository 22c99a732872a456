#include "transport/rpc.h"

#include <gtest/gtest.h>
#include <zmq.h>

#include <mutex>
#include <set>
#include <thread>

#include "base/strings.h"
#include "proto/replay.pb.h"
#include "tests/transport/temporary_folder.h"
#include "transport/context.h"

namespace quern {
namespace {

using std::chrono::milliseconds;

Deadline Soon() { return Deadline::After(std::chrono::seconds(20)); }

void AddEcho(RpcServer& server) {
  server.Handle("echo",
                [](std::string_view request) -> Result<std::string> { return "<" + std::string(request) + ">"; });
  server.Handle("fail", [](std::string_view) -> Result<std::string> { return NotFound("no such thing: x"); });
  server.Handle("throw", [](std::string_view) -> Result<std::string> { throw std::runtime_error("oops"); });
}

class RpcOverIpc : public ::testing::Test {
 protected:
  std::string Address(const std::string& name) { return "ipc://" + folder_.path() + "/" + name; }
  TemporaryFolder folder_;
};

void ExpectRoundTrips(RpcClient& client) {
  EXPECT_EQ(*client.Call("echo", "hi", Soon()), "<hi>");
  EXPECT_EQ(*client.Call("echo", "", Soon()), "<>");
  const std::string large(3 << 20, 'x');
  EXPECT_EQ(client.Call("echo", large, Soon())->size(), large.size() + 2);
  const Status failed = client.Call("fail", "", Soon()).status();
  EXPECT_EQ(failed.code(), StatusCode::kNotFound);
  EXPECT_EQ(failed.message(), "no such thing: x");
  EXPECT_EQ(client.Call("throw", "", Soon()).status().code(), StatusCode::kInternal);
  const Status unknown = client.Call("nothing", "", Soon()).status();
  EXPECT_EQ(unknown.code(), StatusCode::kUnimplemented);
  EXPECT_NE(unknown.message().find("'nothing'"), std::string::npos);
}

TEST_F(RpcOverIpc, RoundTrips) {
  RpcServer server;
  AddEcho(server);
  ASSERT_TRUE(server.Start(Address("a")).ok());
  ExpectRoundTrips(**RpcClient::Connect(server.address()));
}

TEST_F(RpcOverIpc, TypedCalls) {
  RpcServer server;
  server.Handle("stats", TypedHandler<v1::StatsRequest, v1::StatsReply>([](const v1::StatsRequest& request) {
                  v1::StatsReply reply;
                  reply.set_records(request.filter().run().size());
                  return Result<v1::StatsReply>(reply);
                }));
  ASSERT_TRUE(server.Start(Address("a")).ok());
  auto client = *RpcClient::Connect(server.address());
  v1::StatsRequest request;
  request.mutable_filter()->set_run("seven77");
  EXPECT_EQ(client->Call<v1::StatsReply>("stats", request, Soon())->records(), 7u);
  EXPECT_EQ(client->Call("stats", "\xff\xff\xff", Soon()).status().code(), StatusCode::kInvalidArgument);
}

TEST(RpcOverInproc, RoundTripsAndTheServerMayComeLater) {
  auto client = *RpcClient::Connect("inproc://rpc_test.echo");
  RpcServer server;
  AddEcho(server);
  ASSERT_TRUE(server.Start("inproc://rpc_test.echo").ok());
  ExpectRoundTrips(*client);
}

TEST_F(RpcOverIpc, TheServerMayComeLater) {
  auto client = *RpcClient::Connect(Address("late"));
  RpcServer server;
  AddEcho(server);
  std::thread starter([&] {
    std::this_thread::sleep_for(milliseconds(100));
    ASSERT_TRUE(server.Start(Address("late")).ok());
  });
  EXPECT_EQ(*client->Call("echo", "hi", Soon()), "<hi>");
  starter.join();
}

TEST_F(RpcOverIpc, ADeadlineNamesPeerMethodAndTime) {
  auto lonely = *RpcClient::Connect(Address("nobody"));
  const Status absent = lonely->Call("replay.Insert", "", Deadline::After(milliseconds(200))).status();
  EXPECT_EQ(absent.code(), StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(absent.message().starts_with("replay.Insert to " + Address("nobody") + ": no answer within 0."))
      << absent.message();
  EXPECT_TRUE(absent.message().ends_with(" s (nobody listens there)")) << absent.message();

  RpcServer server;
  server.Handle("slow", [](std::string_view) -> Result<std::string> {
    std::this_thread::sleep_for(milliseconds(400));
    return std::string("late");
  });
  AddEcho(server);
  ASSERT_TRUE(server.Start(Address("slow")).ok());
  auto client = *RpcClient::Connect(server.address());
  const Status slow = client->Call("slow", "", Deadline::After(milliseconds(200))).status();
  // On a loaded machine the wait may end later than asked; it says how long it was.
  EXPECT_TRUE(slow.message().starts_with("slow to " + Address("slow") + ": no answer within 0.")) << slow.message();
  EXPECT_TRUE(slow.message().ends_with(" s (the server has not answered)")) << slow.message();
  // The late answer is not taken for that of the next call.
  EXPECT_EQ(*client->Call("echo", "next", Soon()), "<next>");
}

TEST_F(RpcOverIpc, RequestsSurviveAServerRestart) {
  std::atomic<int> calls{0};
  auto first = std::make_unique<RpcServer>();
  std::atomic<bool> first_got_it{false};
  first->Handle("work", [&](std::string_view) -> Result<std::string> {
    first_got_it = true;
    return std::string("first");
  });
  ASSERT_TRUE(first->Start(Address("r")).ok());
  auto client = *RpcClient::Connect(Address("r"));
  EXPECT_EQ(*client->Call("work", "", Soon()), "first");
  first.reset();

  RpcServer second;
  second.Handle("work", [&](std::string_view request) -> Result<std::string> {
    ++calls;
    return "second " + std::string(request);
  });
  std::thread starter([&] {
    std::this_thread::sleep_for(milliseconds(150));
    ASSERT_TRUE(second.Start(Address("r")).ok());
  });
  EXPECT_EQ(*client->Call("work", "a", Soon()), "second a");
  starter.join();
  EXPECT_EQ(calls, 1);
}

// A raw ROUTER stands for a server that is killed after it took the request and before it answered.
TEST_F(RpcOverIpc, ARequestTakenByADyingServerIsSentAgain) {
  const std::string address = Address("dying");
  void* dying = zmq_socket(ZmqContext(), ZMQ_ROUTER);
  ASSERT_EQ(zmq_bind(dying, address.c_str()), 0);
  Result<std::string> answer = Internal("none");
  std::thread caller([&] {
    auto client = *RpcClient::Connect(address);
    answer = client->Call("echo", "again", Soon());
  });
  zmq_pollitem_t item{dying, 0, ZMQ_POLLIN, 0};
  ASSERT_EQ(zmq_poll(&item, 1, 10000), 1);
  const int linger = 0;
  zmq_setsockopt(dying, ZMQ_LINGER, &linger, sizeof(linger));
  zmq_close(dying);
  std::this_thread::sleep_for(milliseconds(50));
  RpcServer server;
  AddEcho(server);
  ASSERT_TRUE(server.Start(address).ok());
  caller.join();
  ASSERT_TRUE(answer.ok()) << answer.status().message();
  EXPECT_EQ(*answer, "<again>");
}

TEST_F(RpcOverIpc, AddressInUse) {
  RpcServer first;
  AddEcho(first);
  ASSERT_TRUE(first.Start(Address("taken")).ok());
  RpcServer second;
  const Status status = second.Start(Address("taken"));
  EXPECT_EQ(status.code(), StatusCode::kAlreadyExists);
  EXPECT_NE(status.message().find(Address("taken") + ": in use"), std::string::npos) << status.message();
  // The first one is unharmed.
  auto client = *RpcClient::Connect(first.address());
  EXPECT_EQ(*client->Call("echo", "still", Soon()), "<still>");
}

TEST_F(RpcOverIpc, MalformedMessagesAreDroppedAndCounted) {
  RpcServer server;
  AddEcho(server);
  ASSERT_TRUE(server.Start(Address("m")).ok());
  void* raw = zmq_socket(ZmqContext(), ZMQ_DEALER);
  ASSERT_EQ(zmq_connect(raw, server.address().c_str()), 0);
  ASSERT_GE(zmq_send(raw, "one frame", 9, 0), 0);
  ASSERT_GE(zmq_send(raw, "short", 5, ZMQ_SNDMORE), 0);
  ASSERT_GE(zmq_send(raw, "echo", 4, ZMQ_SNDMORE), 0);
  ASSERT_GE(zmq_send(raw, "x", 1, 0), 0);
  auto client = *RpcClient::Connect(server.address());
  for (int i = 0; i < 100 && server.counters().malformed < 2; ++i) EXPECT_TRUE(client->Call("echo", "x", Soon()).ok());
  EXPECT_EQ(server.counters().malformed, 2u);
  const int linger = 0;
  zmq_setsockopt(raw, ZMQ_LINGER, &linger, sizeof(linger));
  zmq_close(raw);
}

TEST_F(RpcOverIpc, OversizeMessages) {
  RpcServerOptions options;
  options.limits.max_message_bytes = 1 << 20;
  RpcServer server(options);
  AddEcho(server);
  server.Handle("large", [](std::string_view) -> Result<std::string> { return std::string(2 << 20, 'y'); });
  ASSERT_TRUE(server.Start(Address("o")).ok());
  const std::string two_mib(2 << 20, 'x');

  RpcClientOptions same;
  same.limits = options.limits;
  auto client = *RpcClient::Connect(server.address(), same);
  const Status refused = client->Call("echo", two_mib, Soon()).status();
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(refused.message().find("2.0 MiB is over the limit of 1.0 MiB"), std::string::npos) << refused.message();
  EXPECT_EQ(client->Call("large", "", Soon()).status().code(), StatusCode::kResourceExhausted);
  // A client that does not keep to it is cut off; others go on.
  auto rude = *RpcClient::Connect(server.address());
  EXPECT_EQ(rude->Call("echo", two_mib, Deadline::After(milliseconds(300))).status().code(),
            StatusCode::kDeadlineExceeded);
  EXPECT_EQ(*client->Call("echo", "ok", Soon()), "<ok>");
}

TEST_F(RpcOverIpc, OneThreadByDefaultSeveralWhenAsked) {
  for (const int threads : {1, 3}) {
    RpcServerOptions options;
    options.threads = threads;
    RpcServer server(options);
    std::mutex mutex;
    std::set<std::thread::id> seen;
    std::atomic<int> inside{0};
    std::atomic<int> most_inside{0};
    server.Handle("work", [&](std::string_view request) -> Result<std::string> {
      const int now = ++inside;
      int most = most_inside;
      while (now > most && !most_inside.compare_exchange_weak(most, now)) {
      }
      std::this_thread::sleep_for(milliseconds(5));
      {
        std::lock_guard lock(mutex);
        seen.insert(std::this_thread::get_id());
      }
      --inside;
      return std::string(request);
    });
    ASSERT_TRUE(server.Start(Address(StrCat("t", threads))).ok());
    std::vector<std::thread> clients;
    for (int c = 0; c < 4; ++c) {
      clients.emplace_back([&, c] {
        auto client = *RpcClient::Connect(server.address());
        for (int i = 0; i < 10; ++i) EXPECT_EQ(*client->Call("work", StrCat(c, ".", i), Soon()), StrCat(c, ".", i));
      });
    }
    for (std::thread& client : clients) client.join();
    server.Stop();
    EXPECT_LE(most_inside, threads);
    EXPECT_LE(static_cast<int>(seen.size()), threads);
    if (threads > 1) {
      EXPECT_GT(most_inside, 1);
    }
    EXPECT_EQ(server.counters().requests, 40u);
  }
}

TEST_F(RpcOverIpc, WaitingRequestsOfABatchMethodAreHandledTogether) {
  RpcServer server;
  std::atomic<size_t> largest{0};
  std::atomic<size_t> total{0};
  server.HandleBatch("group", [&](const std::vector<std::string_view>& requests) {
    largest = std::max<size_t>(largest, requests.size());
    total += requests.size();
    std::this_thread::sleep_for(milliseconds(10));
    std::vector<Result<std::string>> results;
    for (const std::string_view request : requests) {
      if (request == "bad")
        results.push_back(InvalidArgument("bad one"));
      else
        results.push_back(std::string(request));
    }
    return results;
  });
  ASSERT_TRUE(server.Start(Address("g")).ok());
  std::vector<std::thread> clients;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      auto client = *RpcClient::Connect(server.address());
      for (int i = 0; i < 8; ++i) {
        const auto answer = client->Call("group", c == 0 ? "bad" : StrCat(c, ".", i), Soon());
        if (c == 0)
          EXPECT_EQ(answer.status().message(), "bad one");
        else
          EXPECT_EQ(*answer, StrCat(c, ".", i));
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(total, 32u);
  EXPECT_GT(largest, 1u);
}

struct TcpFixture {
  CurveKeys server_keys = GenerateCurveKeys();
  CurveKeys client_keys = GenerateCurveKeys();
  RpcServer server{
      RpcServerOptions{.limits = {}, .threads = 1, .keys = server_keys, .allowed_clients = {client_keys.public_key}}};
  TcpFixture() {
    AddEcho(server);
    const Status status = server.Start("tcp://127.0.0.1:*");
    EXPECT_TRUE(status.ok()) << status.message();
  }
};

TEST(RpcOverTcp, RoundTripsWithKeysOnAFreePort) {
  TcpFixture fixture;
  EXPECT_EQ(fixture.server.address().find('*'), std::string::npos) << fixture.server.address();
  RpcClientOptions options{.limits = {}, .keys = fixture.client_keys, .server_key = fixture.server_keys.public_key};
  ExpectRoundTrips(**RpcClient::Connect(fixture.server.address(), options));
}

TEST(RpcOverTcp, NoKeysNoTcp) {
  RpcServer server;
  const Status bind = server.Start("tcp://127.0.0.1:*");
  EXPECT_EQ(bind.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(bind.message().find("CURVE"), std::string::npos);
  const Status connect = RpcClient::Connect("tcp://127.0.0.1:9").status();
  EXPECT_EQ(connect.code(), StatusCode::kFailedPrecondition);
}

TEST(RpcOverTcp, AKeyThatIsNotOnTheListIsRefused) {
  TcpFixture fixture;
  RpcClientOptions options{.limits = {}, .keys = GenerateCurveKeys(), .server_key = fixture.server_keys.public_key};
  auto client = *RpcClient::Connect(fixture.server.address(), options);
  const Clock::time_point begin = Clock::now();
  const Status status = client->Call("echo", "let me in", Soon()).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.message();
  EXPECT_NE(status.message().find("refused this client's key"), std::string::npos);
  EXPECT_LT(SecondsSince(begin), 5.0);
  EXPECT_EQ(fixture.server.counters().requests, 0u);
}

TEST(RpcOverTcp, AWrongServerKeyNeverConnects) {
  TcpFixture fixture;
  RpcClientOptions options{.limits = {}, .keys = fixture.client_keys, .server_key = GenerateCurveKeys().public_key};
  auto client = *RpcClient::Connect(fixture.server.address(), options);
  const Status status = client->Call("echo", "x", Deadline::After(milliseconds(300))).status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded) << status.message();
  EXPECT_EQ(fixture.server.counters().requests, 0u);
}

TEST(RpcOverTcp, APlainClientIsNeverHeard) {
  TcpFixture fixture;
  void* plain = zmq_socket(ZmqContext(), ZMQ_DEALER);
  const int linger = 0;
  zmq_setsockopt(plain, ZMQ_LINGER, &linger, sizeof(linger));
  ASSERT_EQ(zmq_connect(plain, fixture.server.address().c_str()), 0);
  const uint64_t id = 1;
  ASSERT_GE(zmq_send(plain, &id, sizeof(id), ZMQ_SNDMORE), 0);
  ASSERT_GE(zmq_send(plain, "echo", 4, ZMQ_SNDMORE), 0);
  ASSERT_GE(zmq_send(plain, "x", 1, 0), 0);
  zmq_pollitem_t item{plain, 0, ZMQ_POLLIN, 0};
  EXPECT_EQ(zmq_poll(&item, 1, 300), 0);
  EXPECT_EQ(fixture.server.counters().requests + fixture.server.counters().malformed, 0u);
  zmq_close(plain);
}

TEST(RpcOverTcp, PortInUse) {
  TcpFixture fixture;
  RpcServer second(RpcServerOptions{.limits = {}, .threads = 1, .keys = fixture.server_keys, .allowed_clients = {}});
  const Status status = second.Start(fixture.server.address());
  EXPECT_EQ(status.code(), StatusCode::kAlreadyExists);
  EXPECT_NE(status.message().find(fixture.server.address() + ": in use"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace quern
