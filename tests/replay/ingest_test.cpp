// Writers, epochs and sequences: a simulation in which messages are lost, doubled, late, the store restarts, writers
// die and come back while their former selves still send.
#include <gtest/gtest.h>

#include <deque>
#include <map>

#include "base/file.h"
#include "base/random.h"
#include "replay/import.h"
#include "replay/ledger.h"
#include "replay/store.h"
#include "replay/writer.h"
#include "tests/replay/trajectories.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

Deadline Soon() { return Deadline::After(std::chrono::seconds(30)); }

std::string Bytes(const std::string& uid) { return MakeTrajectory(uid).SerializeAsString(); }

// A store behind a bad network.
class LossyReplay : public Replay {
 public:
  LossyReplay(std::string directory, uint64_t seed) : directory_(std::move(directory)), random_(seed) { Restart(); }

  void Restart() {
    store_.reset();
    auto store = Store::Open(directory_);
    ASSERT_TRUE(store.ok()) << store.status().message();
    store_ = std::move(*store);
  }
  Store& store() { return *store_; }
  int faults() const { return faults_; }

  Result<v1::InsertReply> Insert(const v1::InsertRequest& request, Deadline) override {
    if (Chance(5)) return Lost();                  // on the way there
    if (Chance(6)) late_.push_back(request);       // a copy that arrives some time later
    if (Chance(8)) (void)store_->Insert(request);  // twice
    while (!late_.empty() && Chance(3)) {
      (void)store_->Insert(late_.front());
      late_.pop_front();
    }
    Result<v1::InsertReply> reply = store_->Insert(request);
    if (Chance(50)) Restart();
    if (Chance(5)) return Lost();  // on the way back
    return reply;
  }
  Result<v1::OpenWriterReply> OpenWriter(const v1::OpenWriterRequest& request, Deadline) override {
    return store_->OpenWriter(request);
  }
  Result<v1::ContainsReply> Contains(const v1::ContainsRequest& request, Deadline) override {
    return store_->Contains(request);
  }
  Result<v1::SampleReply> Sample(const v1::SampleRequest& request, Deadline) override {
    return store_->Sample(request);
  }
  Result<v1::QueryReply> Query(const v1::QueryRequest& request, Deadline) override { return store_->Query(request); }
  Result<v1::StatsReply> Stats(const v1::StatsRequest& request, Deadline) override { return store_->Stats(request); }

 private:
  bool Chance(uint64_t one_in) {
    const bool hit = random_.Below(one_in) == 0;
    faults_ += hit ? 1 : 0;
    return hit;
  }
  static Status Lost() { return Unavailable("lost"); }

  std::string directory_;
  Random random_;
  std::unique_ptr<Store> store_;
  std::deque<v1::InsertRequest> late_;
  int faults_ = 0;
};

class IngestTest : public ::testing::TestWithParam<uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Seeds, IngestTest, ::testing::Range<uint64_t>(0, 6));

TEST_P(IngestTest, EveryAcknowledgedRecordIsStoredOnceAndInOrder) {
  TemporaryFolder folder;
  LossyReplay replay(JoinPath(folder.path(), "replay"), GetParam());
  Random random(GetParam(), 1);
  struct Worker {
    std::unique_ptr<ReplayWriter> writer;
    uint64_t made = 0;  // records in the writer's sequence, acknowledged or in its spool
    std::vector<std::string> acknowledged;
    std::vector<std::string> spool;
    int life = 0;
  };
  std::map<std::string, Worker> workers;
  std::vector<std::unique_ptr<ReplayWriter>> zombies;
  const auto start = [&](const std::string& name, Worker& worker) {
    auto opened = ReplayWriter::Open(&replay, name, Soon());
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    worker.writer = std::move(*opened);
    ++worker.life;
    worker.spool.clear();
  };
  const auto flush = [&](Worker& worker, int attempts) {
    for (int attempt = 0; attempt < attempts; ++attempt) {
      const Status status = worker.writer->Flush(Soon());
      if (status.ok()) {
        worker.acknowledged.insert(worker.acknowledged.end(), worker.spool.begin(), worker.spool.end());
        worker.spool.clear();
        return;
      }
      ASSERT_EQ(status.code(), StatusCode::kUnavailable) << status.message();
    }
  };
  for (int event = 0; event < 150; ++event) {
    const std::string name = StrCat("w", random.Below(3));
    Worker& worker = workers[name];
    if (worker.writer == nullptr) start(name, worker);
    for (uint64_t n = random.Below(4); n > 0; --n) {
      const std::string uid = StrCat(name, "-", worker.life, "-", worker.made++);
      worker.writer->Append(Bytes(uid), uid);
      worker.spool.push_back(uid);
    }
    flush(worker, 1);
    if (random.Below(25) == 0) {  // it dies, and perhaps not quite
      zombies.push_back(std::move(worker.writer));
      start(name, worker);
    }
    if (!zombies.empty() && random.Below(6) == 0) {
      zombies.back()->Append(Bytes(StrCat("zombie-", event)), StrCat("zombie-", event));
      Status status;
      do {
        status = zombies.back()->Flush(Soon());
      } while (status.code() == StatusCode::kUnavailable);
      EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.message();
      EXPECT_NE(status.message().find("is fenced"), std::string::npos) << status.message();
    }
  }
  EXPECT_GT(replay.faults(), 50);
  for (auto& [name, worker] : workers) flush(worker, 1000);
  replay.Restart();

  std::map<std::string, std::vector<std::string>> stored;
  std::map<std::string, int> times;
  const Status read = ForEachRecord(replay.store(), v1::Filter(), 0, [&](uint64_t, const v1::Trajectory& trajectory) {
    EXPECT_EQ(++times[trajectory.uid()], 1) << trajectory.uid();
    stored[trajectory.uid().substr(0, 2)].push_back(trajectory.uid());
    return Status();
  });
  ASSERT_TRUE(read.ok()) << read.message();
  EXPECT_EQ(stored.count("zo"), 0u) << "a fenced writer's record was stored";
  const auto stats = replay.store().Stats(v1::StatsRequest());
  ASSERT_TRUE(stats.ok());
  ASSERT_EQ(static_cast<size_t>(stats->writers_size()), workers.size());
  for (const v1::WriterState& state : stats->writers()) {
    const Worker& worker = workers[state.writer()];
    // What a dead life had sent and never heard of may be there as well, in its place.
    const std::vector<std::string>& all = stored[state.writer()];
    size_t next = 0;
    for (const std::string& uid : all)
      if (next < worker.acknowledged.size() && uid == worker.acknowledged[next]) ++next;
    EXPECT_EQ(next, worker.acknowledged.size()) << state.writer() << ": lost or out of order";
    EXPECT_EQ(state.next_sequence(), all.size() + 1);
    EXPECT_EQ(state.next_sequence(), worker.writer->acknowledged() + 1);
    uint64_t ledger = 0;
    for (const std::string& uid : all) ledger = ExtendLedger(ledger, uid);
    EXPECT_EQ(ledger, state.ledger());
    EXPECT_EQ(ledger, worker.writer->ledger());
  }
  const auto report = replay.store().Verify();
  ASSERT_TRUE(report.ok());
  for (const std::string& problem : report->problems) ADD_FAILURE() << problem;
}

TEST(Ingest, RefusesAGapAnUnknownWriterAndAnEpochNobodyWasGiven) {
  TemporaryFolder folder;
  auto store = *Store::Open(JoinPath(folder.path(), "replay"));
  v1::InsertRequest request = MakeInsert({MakeTrajectory("a")});
  request.set_writer("w");
  request.set_epoch(1);
  request.set_first_sequence(1);
  EXPECT_EQ(store->Insert(request).status().code(), StatusCode::kFailedPrecondition);
  v1::OpenWriterRequest open;
  EXPECT_EQ(store->OpenWriter(open).status().code(), StatusCode::kInvalidArgument);
  open.set_writer("w");
  ASSERT_EQ(store->OpenWriter(open)->epoch(), 1u);
  request.set_first_sequence(3);
  const auto gap = store->Insert(request);
  ASSERT_TRUE(gap.ok());
  EXPECT_TRUE(gap->gap());
  EXPECT_EQ(gap->next_sequence(), 1u);
  EXPECT_EQ(store->watermark(), 0u);
  request.set_first_sequence(0);
  EXPECT_EQ(store->Insert(request).status().code(), StatusCode::kInvalidArgument);
  request.set_first_sequence(1);
  request.set_epoch(2);
  EXPECT_EQ(store->Insert(request).status().code(), StatusCode::kInvalidArgument);
  request.set_epoch(1);
  EXPECT_EQ(store->Insert(request)->inserted(), 1u);
  EXPECT_EQ(store->Insert(request)->duplicates(), 1u);
  EXPECT_EQ(store->watermark(), 1u);
}

TEST(Ingest, RequestsOfOneWriterInOneGroupFollowEachOther) {
  TemporaryFolder folder;
  auto store = *Store::Open(JoinPath(folder.path(), "replay"));
  v1::OpenWriterRequest open;
  open.set_writer("w");
  ASSERT_TRUE(store->OpenWriter(open).ok());
  std::vector<v1::InsertRequest> requests;
  for (const auto& [first, uids] : std::vector<std::pair<uint64_t, std::vector<std::string>>>{
           {1, {"a", "b"}}, {3, {"c"}}, {2, {"b", "c", "d"}}, {6, {"x"}}, {5, {"e"}}}) {
    requests.emplace_back();
    for (const std::string& uid : uids) requests.back().add_trajectories(Bytes(uid));
    requests.back().set_writer("w");
    requests.back().set_epoch(1);
    requests.back().set_first_sequence(first);
  }
  std::vector<const v1::InsertRequest*> group;
  for (const v1::InsertRequest& request : requests) group.push_back(&request);
  const auto replies = store->InsertGroup(group);
  const std::vector<uint64_t> next = {3, 4, 5, 5, 6};
  for (size_t i = 0; i < replies.size(); ++i) {
    ASSERT_TRUE(replies[i].ok()) << replies[i].status().message();
    EXPECT_EQ(replies[i]->next_sequence(), next[i]) << i;
    EXPECT_EQ(replies[i]->gap(), i == 3) << i;
  }
  EXPECT_EQ(store->watermark(), 5u);
}

}  // namespace
}  // namespace quern
