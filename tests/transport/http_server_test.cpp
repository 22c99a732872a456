#include "transport/http_server.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <mutex>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "base/random.h"
#include "tests/resident.h"
#include "tests/transport/http_client.h"

namespace quern {
namespace {

using testing::HttpClient;

constexpr char kHost[] = "Host: localhost\r\n";

class HttpServerTest : public ::testing::Test {
 protected:
  // /echo returns method, query and body; /stream three pieces; /late answers from another thread; /never keeps the
  // reply; /drop lets go of it.
  void Start(HttpServerOptions options = {}) {
    auto started = HttpServer::Start(options, [this](HttpRequest request, std::shared_ptr<HttpReply> reply) {
      if (request.path == "/echo") {
        reply->Send(200, "text/plain", request.method + " " + request.query + " " + request.body);
      } else if (request.path == "/stream") {
        reply->Begin(200, "text/event-stream");
        for (const char* piece : {"one ", "two ", "three"}) reply->Write(piece);
        reply->End();
      } else if (request.path == "/late") {
        threads_.emplace_back([reply] {
          std::this_thread::sleep_for(std::chrono::milliseconds(20));
          reply->Send(200, "text/plain", "late");
        });
      } else if (request.path == "/never") {
        std::lock_guard lock(mutex_);
        kept_.push_back(reply);
      } else if (request.path == "/healthz") {
        reply->Send(200, "text/plain", "ok");
      } else if (request.path != "/drop") {
        reply->Send(404, "application/json", HttpErrorJson(404, "no such page"));
      }
    });
    ASSERT_TRUE(started.ok()) << started.status().ToString();
    server_ = *std::move(started);
  }
  ~HttpServerTest() override {
    for (std::thread& thread : threads_) thread.join();
  }
  std::shared_ptr<HttpReply> Kept() {
    for (int i = 0; i < 2000; ++i) {
      {
        std::lock_guard lock(mutex_);
        if (!kept_.empty()) return kept_.back();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return nullptr;
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<HttpReply>> kept_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersWholeInPiecesAndFromOtherThreads) {
  Start();
  EXPECT_EQ(HttpClient::BodyOf(HttpClient::Ask(server_->port(), "POST", "/echo?a=b", "words")), "POST a=b words");
  const std::string stream = HttpClient::Ask(server_->port(), "GET", "/stream");
  EXPECT_NE(stream.find("Transfer-Encoding: chunked"), std::string::npos);
  EXPECT_EQ(HttpClient::BodyOf(stream), "4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n");
  EXPECT_EQ(HttpClient::BodyOf(HttpClient::Ask(server_->port(), "GET", "/late")), "late");
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(server_->port(), "GET", "/nowhere")), 404);
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(server_->port(), "GET", "/drop")), 500);
  HttpClient old(server_->port());
  old.Send("GET /stream HTTP/1.0\r\n\r\n");
  EXPECT_EQ(HttpClient::BodyOf(old.ReadAll()), "one two three");
}

TEST_F(HttpServerTest, AConnectionServesManyRequestsAlsoSentAhead) {
  Start();
  HttpClient client(server_->port());
  const std::string request = std::string("POST /echo HTTP/1.1\r\n") + kHost + "Content-Length: 2\r\n\r\n";
  client.Send(request + "aa" + request + "bb");
  EXPECT_NE(client.ReadUntil("POST  bb").find("POST  aa"), std::string::npos);
  client.Send(request + "cc");
  EXPECT_NE(client.ReadUntil("POST  cc").find("200 OK"), std::string::npos);
}

TEST_F(HttpServerTest, RefusesWhatIsTooLargeOrNotHttpAndGoesOnServing) {
  Start({.max_body_bytes = 1000});
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(server_->port(), "POST", "/echo", std::string(1000, 'x'))), 200);
  const std::string large = HttpClient::Ask(server_->port(), "POST", "/echo", std::string(100000, 'x'));
  EXPECT_EQ(HttpClient::StatusOf(large), 413);
  EXPECT_NE(large.find("1000 bytes"), std::string::npos);
  const std::string start = std::string("POST /echo HTTP/1.1\r\n") + kHost;
  {
    HttpClient chunks(server_->port());
    chunks.Send(start + "Transfer-Encoding: chunked\r\n\r\n");
    const std::string chunk = "1000\r\n" + std::string(4096, 'y') + "\r\n";
    for (int i = 0; i < 50 && chunks.Send(chunk); ++i) {
    }
    EXPECT_EQ(HttpClient::StatusOf(chunks.ReadAll()), 413);
  }
  {
    HttpClient negative(server_->port());
    negative.Send(start + "Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n");
    EXPECT_EQ(HttpClient::StatusOf(negative.ReadAll()), 400);
  }
  {
    HttpClient headers(server_->port());
    std::string many = start;
    for (int i = 0; i < 3000; ++i) many += "X-" + std::to_string(i) + ": y\r\n";
    headers.Send(many + "\r\n");
    EXPECT_EQ(HttpClient::StatusOf(headers.ReadAll()), 431);
  }
  {
    HttpClient garbage(server_->port());
    garbage.Send(std::string("\x01\x02 no http \xff\r\n\r\n", 17));
    EXPECT_EQ(HttpClient::StatusOf(garbage.ReadAll()), 400);
  }
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(server_->port(), "GET", "/healthz")), 200);
}

// 300 strangers, 2,000 with QUERN_CRASH=full: every one is counted, memory stays, and who asks properly is answered.
TEST_F(HttpServerTest, StrangersAreCountedAndHoldNobodyUp) {
  const char* mode = std::getenv("QUERN_CRASH");
  const int count = mode != nullptr && std::string(mode) == "full" ? 2000 : 300;
  std::atomic<int> refused{0};
  HttpServerOptions options;
  options.token = "0123456789abcdef";
  options.refused = [&](int) { ++refused; };
  Start(options);
  Random random(1);
  std::deque<HttpClient> open;
  int64_t resident = 0;
  for (int i = 0; i < count; ++i) {
    HttpClient& client = open.emplace_back(server_->port());
    ASSERT_TRUE(client.connected());
    std::string noise = "GET ";
    for (int k = 0; k < 2000; ++k) noise.push_back(static_cast<char>(random.Below(256)));
    switch (i % 5) {
      case 0: client.Send(noise); break;
      case 1: client.Send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Le"); break;
      case 2: client.Send("GET /echo HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer wrong\r\n\r\n"); break;
      case 3: client.Send("GET / HTTP/1.1\r\nX: " + std::string(20000, 'x') + "\r\n\r\n"); break;
      default: client.Send("\x16\x03\x01 TLS, perhaps"); break;
    }
    if (open.size() < 50) continue;
    EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(server_->port(), "GET", "/healthz")), 200);
    open.clear();
    if (resident == 0) resident = testing::ResidentBytes();
  }
  open.clear();
  const Deadline deadline = Deadline::After(std::chrono::seconds(20));
  while (refused < count && !deadline.Expired()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(refused, count);
  EXPECT_LT(testing::ResidentBytes() - resident, int64_t{32} << 20);
  server_.reset();  // before `refused` goes
}

TEST_F(HttpServerTest, AsksForTheTokenAndForALocalHostName) {
  Start({.token = "0123456789abcdef"});
  const int port = server_->port();
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(port, "GET", "/echo")), 401);
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(port, "GET", "/echo", "", "Authorization: Bearer no\r\n")), 401);
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(port, "GET", "/healthz")), 200);
  EXPECT_EQ(
      HttpClient::StatusOf(HttpClient::Ask(port, "GET", "/echo", "", "Authorization: Bearer 0123456789abcdef\r\n")),
      200);
  Start();
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(server_->port(), "GET", "/echo", "", "Host: evil.example\r\n")), 403);
  const auto open = HttpServer::Start({.host = "0.0.0.0"}, [](HttpRequest, std::shared_ptr<HttpReply>) {});
  EXPECT_EQ(open.status().code(), StatusCode::kInvalidArgument);
  const auto taken = HttpServer::Start({.port = server_->port()}, [](HttpRequest, std::shared_ptr<HttpReply>) {});
  EXPECT_NE(taken.status().message().find(std::to_string(server_->port())), std::string::npos);
}

TEST_F(HttpServerTest, TellsThatAClientHasGone) {
  Start();
  std::shared_ptr<HttpReply> reply;
  {
    HttpClient client(server_->port());
    client.Send(std::string("GET /never HTTP/1.1\r\n") + kHost + "\r\n");
    reply = Kept();
    ASSERT_NE(reply, nullptr);
    EXPECT_FALSE(reply->closed());
  }
  for (int i = 0; i < 2000 && !reply->closed(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_TRUE(reply->closed());
  reply->Send(200, "text/plain", "nobody reads this");
}

TEST_F(HttpServerTest, ManyOpenStreamsHoldNobodyUpAndEndWithTheServer) {
  Start({.max_connections = 300});
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int i = 0; i < 200; ++i) {
    clients.push_back(std::make_unique<HttpClient>(server_->port()));
    clients.back()->Send(std::string("GET /never HTTP/1.1\r\n") + kHost + "\r\n");
  }
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(server_->port(), "GET", "/healthz")), 200);
  for (int i = 0; i < 2000; ++i) {
    std::lock_guard lock(mutex_);
    if (kept_.size() == 200) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  for (const auto& reply : kept_) {
    reply->Begin(200, "text/event-stream");
    reply->Write("data: 1\n\n");
  }
  for (const auto& client : clients) EXPECT_NE(client->ReadUntil("data: 1\n\n").find("data: 1"), std::string::npos);
  server_.reset();
  for (const auto& client : clients) EXPECT_EQ(client->ReadAll(), "");
  for (const auto& reply : kept_) {
    EXPECT_TRUE(reply->closed());
    reply->End();
  }
}

TEST(TokenFileTest, TakesTheFirstLineAndRefusesShortTokens) {
  const std::string path = ::testing::TempDir() + "/quern_token_" + std::to_string(getpid());
  std::ofstream(path) << "  0123456789abcdef \nmore\n";
  EXPECT_EQ(*ReadTokenFile(path), "0123456789abcdef");
  std::ofstream(path) << "short\n";
  EXPECT_EQ(ReadTokenFile(path).status().code(), StatusCode::kInvalidArgument);
  unlink(path.c_str());
  EXPECT_FALSE(ReadTokenFile(path).ok());
}

}  // namespace
}  // namespace quern
