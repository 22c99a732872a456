#include "replay/server.h"

#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <thread>

#include "base/file.h"
#include "replay/client.h"
#include "replay/import.h"
#include "tests/replay/trajectories.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

Deadline Soon() { return Deadline::After(std::chrono::seconds(30)); }

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() : directory_(JoinPath(folder_.path(), "replay")), address_("ipc://" + folder_.path() + "/store.sock") {}
  void Start() {
    auto store = Store::Open(directory_);
    ASSERT_TRUE(store.ok()) << store.status().message();
    store_ = std::move(*store);
    server_ = std::make_unique<ReplayServer>(store_.get());
    const Status status = server_->Start(address_);
    ASSERT_TRUE(status.ok()) << status.message();
  }
  void Stop() {
    server_.reset();
    store_.reset();
  }
  TemporaryFolder folder_;
  std::string directory_;
  std::string address_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<ReplayServer> server_;
};

TEST_F(ServerTest, AllCallsAndTheirErrors) {
  Start();
  auto client = *ReplayClient::Connect(address_);
  const auto inserted = client->Insert(MakeInsert({MakeTrajectory("a"), MakeTrajectory("b")}), Soon());
  ASSERT_TRUE(inserted.ok()) << inserted.status().message();
  EXPECT_EQ(inserted->watermark(), 2u);
  v1::SampleRequest sample;
  sample.set_watermark(2);
  sample.set_count(2);
  EXPECT_EQ(client->Sample(sample, Soon())->trajectories_size(), 2);
  sample.set_watermark(3);
  EXPECT_EQ(client->Sample(sample, Soon()).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(client->Query({}, Soon())->count(), 2u);
  EXPECT_EQ(client->Stats({}, Soon())->tokens(), 16u);
  v1::ContainsRequest contains;
  contains.add_uids("b");
  contains.add_uids("c");
  const auto stored = client->Contains(contains, Soon());
  ASSERT_TRUE(stored.ok()) << stored.status().message();
  EXPECT_TRUE(stored->stored(0));
  EXPECT_FALSE(stored->stored(1));
  for (int i = 0; i < 65536; ++i) contains.add_uids("");
  EXPECT_EQ(client->Contains(contains, Soon()).status().code(), StatusCode::kInvalidArgument);

  v1::InsertRequest bad;
  bad.add_trajectories("rubbish");
  EXPECT_EQ(client->Insert(bad, Soon()).status().code(), StatusCode::kInvalidArgument);
  v1::InsertRequest many;
  for (int i = 0; i < 5000; ++i) many.add_trajectories("");
  const Status refused = client->Insert(many, Soon()).status();
  EXPECT_NE(refused.message().find("more than 4096 trajectories"), std::string::npos) << refused.message();
}

TEST_F(ServerTest, ManyClientsAndARestartInTheMiddle) {
  Start();
  constexpr int kClients = 4;
  constexpr int kInserts = 60;
  std::atomic<int> done{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c)
    clients.emplace_back([&, c] {
      auto client = *ReplayClient::Connect(address_);
      for (int i = 0; i < kInserts; ++i) {
        const auto reply = client->Insert(MakeInsert({MakeTrajectory(StrCat(c, ".", i))}), Soon());
        EXPECT_TRUE(reply.ok()) << reply.status().message();
        ++done;
      }
    });
  for (int restart = 1; restart <= 2; ++restart) {
    while (done < restart * kClients * kInserts / 3) std::this_thread::yield();
    Stop();
    Start();
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(store_->watermark(), static_cast<uint64_t>(kClients * kInserts));
  EXPECT_TRUE(store_->Verify()->problems.empty());
}

TEST_F(ServerTest, ADirectoryThatAServerHasOpenIsReachedThroughIt) {
  Start();
  {
    auto replay = OpenReplay(directory_);
    ASSERT_TRUE(replay.ok()) << replay.status().message();
    EXPECT_EQ((*replay)->Insert(MakeInsert({MakeTrajectory("a")}), Soon())->watermark(), 1u);
  }
  EXPECT_EQ((*OpenReplay(address_))->Stats({}, Soon())->records(), 1u);
  Stop();
  EXPECT_FALSE(PathExists(JoinPath(directory_, "server.address")));
  EXPECT_EQ((*OpenReplay(directory_))->Stats({}, Soon())->records(), 1u);
  EXPECT_EQ(OpenReplay(JoinPath(folder_.path(), "none")).status().code(), StatusCode::kNotFound);
}

// A reader never takes the directory from a server that is about to start.
TEST_F(ServerTest, AReaderLocksNothing) {
  Start();
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("a")})).ok());
  Stop();
  OpenReplayOptions reading;
  reading.read_only = true;
  auto reader = OpenReplay(directory_, reading);
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  EXPECT_EQ((*reader)->Insert(MakeInsert({MakeTrajectory("b")}), Soon()).status().code(),
            StatusCode::kFailedPrecondition);
  Start();
  EXPECT_EQ((*reader)->Stats({}, Soon())->records(), 1u);
  auto client = *ReplayClient::Connect(address_);
  EXPECT_EQ(client->Insert(MakeInsert({MakeTrajectory("b")}), Soon())->watermark(), 2u);
}

TEST_F(ServerTest, ACallWithoutPatienceForAServerThatIsNotThere) {
  Start();
  Stop();
  RpcClientOptions impatient;
  impatient.patience = std::chrono::milliseconds(50);
  auto client = *ReplayClient::Connect(address_, impatient);
  const auto begin = Clock::now();
  const Status status = client->Stats({}, Soon()).status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded) << status.message();
  EXPECT_NE(status.message().find("nobody listens there"), std::string::npos) << status.message();
  EXPECT_LT(SecondsSince(begin), 3);
}

TEST_F(ServerTest, ABackupIsMadeWhileItServes) {
  Start();
  auto client = *ReplayClient::Connect(address_);
  ASSERT_TRUE(client->Insert(MakeInsert({MakeTrajectory("a"), MakeTrajectory("b")}), Soon()).ok());
  const std::string to = JoinPath(folder_.path(), "copy");
  const auto backup = client->Backup(to, Soon());
  ASSERT_TRUE(backup.ok()) << backup.status().message();
  EXPECT_EQ(backup->watermark(), 2u);
  ASSERT_TRUE(client->Insert(MakeInsert({MakeTrajectory("c")}), Soon()).ok());
  EXPECT_EQ(client->Backup(to, Soon()).status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(client->Backup("relative", Soon()).status().code(), StatusCode::kInvalidArgument);
  const auto copy = Store::Open(to);
  ASSERT_TRUE(copy.ok()) << copy.status().message();
  EXPECT_EQ((*copy)->watermark(), 2u);
  EXPECT_TRUE((*copy)->Verify()->problems.empty());
}

TEST_F(ServerTest, ServesInprocToo) {
  address_ = "inproc://server_test.replay";
  Start();
  auto client = *ReplayClient::Connect(address_);
  EXPECT_EQ(client->Insert(MakeInsert({MakeTrajectory("a")}), Soon())->inserted(), 1u);
}

TEST_F(ServerTest, ForEachRecordPagesThroughEverything) {
  Start();
  auto client = *ReplayClient::Connect(address_);
  for (int b = 0; b < 5; ++b) {
    std::vector<v1::Trajectory> batch;
    for (int i = 0; i < 500; ++i) batch.push_back(MakeTrajectory(StrCat(b, ".", i)));
    ASSERT_TRUE(client->Insert(MakeInsert(batch), Soon()).ok());
  }
  for (const uint64_t limit : {0, 1, 1000, 1001, 2400, 9999}) {
    uint64_t last = 0;
    const Status status = ForEachRecord(*client, {}, limit, [&](uint64_t number, const v1::Trajectory&) {
      EXPECT_EQ(number, last + 1);
      last = number;
      return Status();
    });
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(last, limit == 0 || limit > 2500 ? 2500 : limit);
  }
}

}  // namespace
}  // namespace quern
