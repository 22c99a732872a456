#include "replay/store.h"

#include <gtest/gtest.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <set>
#include <thread>

#include "base/file.h"
#include "tests/replay/trajectories.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

v1::SampleRequest MakeSample(uint64_t watermark, uint32_t count, uint64_t seed = 1, uint64_t step = 0) {
  v1::SampleRequest request;
  request.set_watermark(watermark);
  request.set_count(count);
  request.set_seed(seed);
  request.set_step(step);
  return request;
}

StoreOptions Reading() {
  StoreOptions options;
  options.read_only = true;
  return options;
}

std::vector<std::string> Uids(const v1::SampleReply& reply) {
  std::vector<std::string> uids;
  for (const std::string& bytes : reply.trajectories()) {
    v1::Trajectory t;
    EXPECT_TRUE(t.ParseFromString(bytes));
    uids.push_back(t.uid());
  }
  return uids;
}

class StoreTest : public ::testing::Test {
 protected:
  void SetUp() override { Open(); }
  void Open(StoreOptions options = {}) {
    store_.reset();
    auto opened = Store::Open(JoinPath(folder_.path(), "replay"), std::move(options));
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    store_ = std::move(*opened);
  }
  void ExpectSound(uint64_t records) {
    const auto report = store_->Verify();
    ASSERT_TRUE(report.ok()) << report.status().message();
    EXPECT_EQ(report->records, records);
    for (const std::string& problem : report->problems) ADD_FAILURE() << problem;
  }
  TemporaryFolder folder_;
  std::unique_ptr<Store> store_;
};

TEST_F(StoreTest, RecordsComeBackAsTheBytesSentAlsoAfterReopening) {
  std::vector<std::string> sent;
  for (int i = 0; i < 5; ++i) {
    v1::Trajectory t = MakeTrajectory(StrCat("u", i), static_cast<float>(-i), v1::SOURCE_GENERATED, 5000);
    // A field of a later version is kept too.
    t.GetReflection()->MutableUnknownFields(&t)->AddVarint(900, 7);
    sent.push_back(t.SerializeAsString());
  }
  v1::InsertRequest request;
  for (const std::string& bytes : sent) request.add_trajectories(bytes);
  const auto reply = store_->Insert(request);
  ASSERT_TRUE(reply.ok()) << reply.status().message();
  EXPECT_EQ(reply->inserted(), 5u);
  EXPECT_EQ(reply->watermark(), 5u);
  for (int pass = 0; pass < 2; ++pass) {
    const auto page = store_->Query(v1::QueryRequest());
    ASSERT_TRUE(page.ok());
    ASSERT_EQ(page->trajectories_size(), 5);
    for (int i = 0; i < 5; ++i) {
      EXPECT_EQ(page->trajectories(i), sent[static_cast<size_t>(i)]);
      EXPECT_EQ(page->numbers(i), static_cast<uint64_t>(i + 1));
    }
    EXPECT_FALSE(page->more());
    Open();
  }
  ExpectSound(5);
}

TEST_F(StoreTest, TheSameUidIsStoredOnceAndCounted) {
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("a"), MakeTrajectory("b"), MakeTrajectory("a")})).ok());
  const auto reply = *store_->Insert(MakeInsert({MakeTrajectory("b", -3), MakeTrajectory("c")}));
  EXPECT_EQ(reply.inserted(), 1u);
  EXPECT_EQ(reply.duplicates(), 1u);
  EXPECT_EQ(reply.watermark(), 3u);
  Open();
  EXPECT_EQ(store_->Stats({})->duplicates(), 2u);
  EXPECT_EQ(store_->Stats({})->records(), 3u);
  EXPECT_EQ(store_->Insert(MakeInsert({MakeTrajectory("a")}))->duplicates(), 1u);
  ExpectSound(3);
}

TEST_F(StoreTest, SaysWhichUidsItHas) {
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("a"), MakeTrajectory("b")})).ok());
  v1::ContainsRequest request;
  for (const char* uid : {"b", "c", "", "a"}) request.add_uids(uid);
  for (int i = 0; i < 2; ++i) {
    const auto reply = store_->Contains(request);
    ASSERT_TRUE(reply.ok()) << reply.status().message();
    EXPECT_EQ(std::vector<bool>(reply->stored().begin(), reply->stored().end()),
              (std::vector<bool>{true, false, false, true}));
    Open();
  }
  for (int i = 0; i < 65536; ++i) request.add_uids("a");
  EXPECT_EQ(store_->Contains(request).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(StoreTest, AMalformedRecordRefusesItsRequestAndNoOther) {
  v1::Trajectory bad = MakeTrajectory("bad");
  bad.mutable_loss_mask()->pop_back();
  const v1::InsertRequest first = MakeInsert({MakeTrajectory("a"), bad});
  const v1::InsertRequest second = MakeInsert({MakeTrajectory("b")});
  const auto replies = store_->InsertGroup({&first, &second});
  EXPECT_EQ(replies[0].status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(replies[0].status().message().find("trajectory bad: loss_mask"), std::string::npos);
  EXPECT_EQ(replies[1]->inserted(), 1u);
  EXPECT_EQ(store_->watermark(), 1u);
  ExpectSound(1);
}

TEST_F(StoreTest, FiltersQueriesPagesAndStats) {
  for (int i = 1; i <= 30; ++i) {
    v1::Trajectory t =
        MakeTrajectory(StrCat("u", i), static_cast<float>(i), i % 3 == 0 ? v1::SOURCE_REAL : v1::SOURCE_GENERATED);
    t.set_run(i <= 10 ? "one" : "two");
    if (i % 5 == 0) t.add_tags("fifth");
    if (i % 2 == 0) t.set_success(true);
    if (t.policies_size() > 0) t.mutable_policies(0)->set_version(static_cast<uint64_t>(i));
    v1::Message* message = t.add_messages();
    message->set_role("user");
    message->set_content(StrCat("question number ", i, "."));
    ASSERT_TRUE(store_->Insert(MakeInsert({t})).ok());
  }
  for (int pass = 0; pass < 2; ++pass) {
    const auto count = [&](const std::function<void(v1::Filter*)>& set) {
      v1::QueryRequest request;
      set(request.mutable_filter());
      request.set_count_only(true);
      return store_->Query(request)->count();
    };
    EXPECT_EQ(count([](auto*) {}), 30u);
    EXPECT_EQ(count([](auto* f) { f->set_run("one"); }), 10u);
    EXPECT_EQ(count([](auto* f) { f->set_run("three"); }), 0u);
    EXPECT_EQ(count([](auto* f) { f->set_source(v1::SOURCE_REAL); }), 10u);
    EXPECT_EQ(count([](auto* f) { f->set_min_return(30); }), 1u);
    EXPECT_EQ(count([](auto* f) { f->set_max_return(2.5); }), 2u);
    EXPECT_EQ(count([](auto* f) { f->set_min_version(28); }), 2u);
    EXPECT_EQ(count([](auto* f) { f->set_max_version(0); }), 10u);
    EXPECT_EQ(count([](auto* f) { f->add_tags("fifth"); }), 6u);
    EXPECT_EQ(count([](auto* f) {
                f->add_tags("fifth");
                f->add_tags("online");
              }),
              4u);
    EXPECT_EQ(count([](auto* f) { f->add_without_tags("online"); }), 10u);
    EXPECT_EQ(count([](auto* f) { f->add_without_tags("never seen"); }), 30u);
    EXPECT_EQ(count([](auto* f) { f->set_task("task-u7"); }), 1u);
    EXPECT_EQ(count([](auto* f) { f->set_prompt_contains("number 1"); }), 11u);
    EXPECT_EQ(count([](auto* f) { f->set_prompt_contains("number 1."); }), 1u);

    v1::QueryRequest page;
    page.mutable_filter()->set_prompt_contains("number 1");
    page.set_limit(4);
    std::vector<uint64_t> numbers;
    while (true) {
      const auto reply = *store_->Query(page);
      numbers.insert(numbers.end(), reply.numbers().begin(), reply.numbers().end());
      EXPECT_LE(reply.numbers_size(), 4);
      if (!reply.more()) break;
      page.set_after(numbers.back());
    }
    EXPECT_EQ(numbers, (std::vector<uint64_t>{1, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}));

    page.set_newest_first(true);
    page.set_after(0);
    std::vector<uint64_t> back;
    while (true) {
      const auto reply = *store_->Query(page);
      back.insert(back.end(), reply.numbers().begin(), reply.numbers().end());
      if (!reply.more()) break;
      page.set_after(back.back());
    }
    EXPECT_EQ(back, std::vector<uint64_t>(numbers.rbegin(), numbers.rend()));

    v1::StatsRequest request;
    request.mutable_filter()->set_run("one");
    const auto stats = *store_->Stats(request);
    EXPECT_EQ(stats.records(), 10u);
    EXPECT_EQ(stats.tokens(), 80u);
    EXPECT_EQ(stats.watermark(), 30u);
    EXPECT_DOUBLE_EQ(stats.mean_return(), 5.5);
    EXPECT_DOUBLE_EQ(stats.return_variance(), 8.25);
    EXPECT_DOUBLE_EQ(stats.min_return(), 1);
    EXPECT_DOUBLE_EQ(stats.max_return(), 10);
    EXPECT_DOUBLE_EQ(stats.success_rate(), 0.5);
    EXPECT_EQ(stats.real(), 3u);
    EXPECT_EQ(stats.generated(), 7u);
    ASSERT_EQ(stats.tags_size(), 2);
    EXPECT_EQ(stats.tags(0).tag(), "fifth");
    EXPECT_EQ(stats.tags(0).records(), 2u);
    Open();
  }
}

TEST_F(StoreTest, ReadOnlyBesideAWriterItShowsWhatWasThere) {
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("a"), MakeTrajectory("b")})).ok());
  StoreOptions options;
  options.read_only = true;
  auto reader = Store::Open(store_->directory(), options);
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  EXPECT_EQ((*reader)->watermark(), 2u);
  EXPECT_EQ((*reader)->Query(v1::QueryRequest())->trajectories_size(), 2);
  EXPECT_EQ((*reader)->Insert(MakeInsert({MakeTrajectory("c")})).status().code(), StatusCode::kFailedPrecondition);
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("c")})).ok());
  EXPECT_EQ((*reader)->watermark(), 2u);
  const StoreHealth health = store_->Health();
  EXPECT_GT(health.wal_bytes, 0u);
  EXPECT_GT(health.disk_free_bytes, 0u);
  ExpectSound(3);
  EXPECT_FALSE(Store::Open(JoinPath(folder_.path(), "none"), options).ok());
  EXPECT_FALSE(PathExists(JoinPath(folder_.path(), "none")));
}

TEST_F(StoreTest, SamplingDependsOnTheSetOfRecordsNotOnTheirOrder) {
  std::vector<v1::Trajectory> all;
  for (int i = 0; i < 50; ++i) all.push_back(MakeTrajectory(StrCat("u", i), static_cast<float>(i % 7)));
  ASSERT_TRUE(store_->Insert(MakeInsert(all)).ok());
  auto other = *Store::Open(JoinPath(folder_.path(), "other"));
  std::reverse(all.begin(), all.end());
  for (const v1::Trajectory& t : all) ASSERT_TRUE(other->Insert(MakeInsert({t})).ok());
  for (uint64_t step = 0; step < 10; ++step) {
    v1::SampleRequest request = MakeSample(50, 8, 99, step);
    request.set_top_fraction(step % 2 == 0 ? 0 : 0.3f);
    EXPECT_EQ(Uids(*store_->Sample(request)), Uids(*other->Sample(request)));
  }
}

TEST_F(StoreTest, SamplingIsPure) {
  std::vector<v1::Trajectory> first;
  for (int i = 0; i < 40; ++i)
    first.push_back(MakeTrajectory(StrCat("u", i), 0, i < 25 ? v1::SOURCE_REAL : v1::SOURCE_GENERATED));
  ASSERT_TRUE(store_->Insert(MakeInsert(first)).ok());
  std::vector<std::string> before;
  std::vector<v1::SampleRequest> requests;
  for (uint64_t step = 0; step < 6; ++step) {
    v1::SampleRequest request = MakeSample(40, 10, 7, step);
    if (step % 2 == 1) {
      request.clear_step();
      request.clear_count();
      for (const v1::DataClass data_class : {v1::DATA_CLASS_REAL, v1::DATA_CLASS_UNVERIFIED}) {
        v1::SamplePart& part = *request.add_parts();
        part.set_data_class(data_class);
        part.set_first(5 * step);
        part.set_count(5);
      }
    }
    requests.push_back(request);
    before.push_back(store_->Sample(request)->SerializeAsString());
  }
  // Later records, other requests in between, and a new process change nothing.
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory(StrCat("later", i))})).ok());
  ASSERT_TRUE(store_->Sample(MakeSample(80, 10)).ok());
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = requests.size(); i-- > 0;) EXPECT_EQ(store_->Sample(requests[i])->SerializeAsString(), before[i]);
    Open();
  }
  EXPECT_NE(Uids(*store_->Sample(MakeSample(40, 10, 7, 0))), Uids(*store_->Sample(MakeSample(40, 10, 8, 0))));
}

TEST_F(StoreTest, EpochsPassOverEveryRecord) {
  std::vector<v1::Trajectory> all;
  for (int i = 0; i < 24; ++i) all.push_back(MakeTrajectory(StrCat("u", i)));
  ASSERT_TRUE(store_->Insert(MakeInsert(all)).ok());
  std::multiset<std::string> seen;
  for (uint64_t step = 0; step < 6; ++step)
    for (const std::string& uid : Uids(*store_->Sample(MakeSample(24, 8, 3, step)))) seen.insert(uid);
  for (const v1::Trajectory& t : all) EXPECT_EQ(seen.count(t.uid()), 2u) << t.uid();
}

TEST_F(StoreTest, OneProcessAtATimeAndOnlyStoreDirectories) {
  const Status second = Store::Open(store_->directory()).status();
  EXPECT_EQ(second.code(), StatusCode::kFailedPrecondition) << second.message();
  EXPECT_NE(second.message().find("another process has this store open"), std::string::npos) << second.message();

  StoreOptions existing;
  existing.create_if_missing = false;
  const std::string nowhere = JoinPath(folder_.path(), "nowhere");
  EXPECT_EQ(Store::Open(nowhere, existing).status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(PathExists(nowhere));
  ASSERT_TRUE(MakeDirectories(nowhere).ok());
  ASSERT_TRUE(WriteFileAtomic(JoinPath(nowhere, "thesis.txt"), "mine").ok());
  EXPECT_EQ(Store::Open(nowhere).status().code(), StatusCode::kInvalidArgument);
}

// What an opening for writing makes again from the log, one for reading leaves as it is and reports.
TEST_F(StoreTest, AReaderThatVerifiesFindsADamagedIndexAndChangesNothing) {
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("a"), MakeTrajectory("b")})).ok());
  const std::string directory = store_->directory();
  store_.reset();
  const std::string rows = JoinPath(directory, "rows-000000000001.table");
  std::string bytes = *ReadFile(rows);
  bytes[bytes.size() / 2] ^= 0x10;
  ASSERT_TRUE(WriteFileAtomic(rows, bytes).ok());
  const auto before = *ListDirectory(directory);
  for (int pass = 0; pass < 2; ++pass) {
    const auto reader = Store::Open(directory, Reading());
    ASSERT_TRUE(reader.ok()) << reader.status().message();
    const auto report = (*reader)->Verify();
    EXPECT_EQ(report->records, 2u);
    ASSERT_EQ(report->problems.size(), 1u);
    EXPECT_NE(report->problems[0].find("rows-000000000001.table: is damaged"), std::string::npos)
        << report->problems[0];
  }
  EXPECT_EQ(*ListDirectory(directory), before);
  EXPECT_EQ(*ReadFile(rows), bytes);
  Open();
  ExpectSound(2);
  // RocksDB's log alone.
  store_.reset();
  const auto files = *ListDirectory(directory);
  for (const std::string& name : files) {
    if (!name.ends_with(".log")) continue;
    ASSERT_TRUE(RemoveTree(JoinPath(directory, name)).ok());
  }
  EXPECT_EQ((*Store::Open(directory, Reading()))->Verify()->problems.size(), 1u);
  Open();
  ExpectSound(2);
  // And what names all of RocksDB's files.
  store_.reset();
  ASSERT_TRUE(RemoveTree(JoinPath(directory, "CURRENT")).ok());
  const Status without = Store::Open(directory).status();
  EXPECT_EQ(without.code(), StatusCode::kDataLoss);
  EXPECT_NE(without.message().find("without its file CURRENT"), std::string::npos) << without.message();
}

TEST_F(StoreTest, ACopyOfACopyHasBytesOfItsOwn) {
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("a"), MakeTrajectory("b")})).ok());
  const std::string backup = JoinPath(folder_.path(), "backup"), copy = JoinPath(folder_.path(), "copy");
  ASSERT_TRUE(store_->Backup(backup, false).ok());
  EXPECT_EQ(store_->Health().last_backup_seconds, 0);
  EXPECT_FALSE(PathExists(store_->directory() + ".links"));
  ASSERT_TRUE(CopyStore(backup, copy).ok());
  EXPECT_EQ(CopyStore(backup, copy).code(), StatusCode::kAlreadyExists);
  const auto names = *ListDirectory(copy);
  for (const std::string& name : names) EXPECT_EQ(std::filesystem::hard_link_count(JoinPath(copy, name)), 1u) << name;
  EXPECT_EQ((*Store::Open(copy))->watermark(), 2u);
  EXPECT_EQ(store_->Backup("/no/such/folder/backup").code(), StatusCode::kNotFound);
}

TEST_F(StoreTest, PromptsAndLengthsAreFound) {
  std::vector<v1::Trajectory> all;
  for (int i = 0; i < 60; ++i) {
    v1::Trajectory t = MakeTrajectory(StrCat("u", i), 0, v1::SOURCE_REAL, i < 20 ? 8 : 16);
    if (i % 3 != 0) {
      v1::Message* system = t.add_messages();
      system->set_role("system");
      system->set_content("Be brief.");
      v1::Message* user = t.add_messages();
      user->set_role("user");
      user->set_content(StrCat("What is ", i % 2, "?\n"));
      v1::Message* answer = t.add_messages();
      answer->set_role("assistant");
      answer->set_content("One.");
    }
    all.push_back(t);
  }
  ASSERT_TRUE(store_->Insert(MakeInsert(all)).ok());
  for (int pass = 0; pass < 2; ++pass) {
    const auto count = [&](const std::function<void(v1::Filter*)>& set) {
      v1::QueryRequest request;
      request.set_count_only(true);
      set(request.mutable_filter());
      return store_->Query(request)->count();
    };
    EXPECT_EQ(count([](v1::Filter* f) { f->set_prompt("Be brief.\nWhat is 1?"); }), 20u);
    EXPECT_EQ(count([](v1::Filter* f) { f->set_prompt("Be brief.\nWhat is 0?\n\n"); }), 20u);
    EXPECT_EQ(count([](v1::Filter* f) { f->set_prompt("What is 1?"); }), 0u);
    EXPECT_EQ(count([](v1::Filter* f) { f->set_prompt("task-u3"); }), 1u) << "a record without messages has its task";
    EXPECT_EQ(count([](v1::Filter* f) { f->set_max_tokens(8); }), 20u);
    EXPECT_EQ(count([](v1::Filter* f) { f->set_min_tokens(9); }), 40u);
    EXPECT_EQ(count([](v1::Filter* f) {
                f->set_prompt("Be brief.\nWhat is 1?");
                f->set_max_tokens(8);
              }),
              7u);
    v1::SampleRequest sample = MakeSample(60, 20);
    sample.mutable_filter()->set_prompt("Be brief.\nWhat is 1?");
    const auto drawn = store_->Sample(sample);
    ASSERT_TRUE(drawn.ok()) << drawn.status().message();
    EXPECT_EQ(drawn->candidates(), 20u);
    for (const uint64_t number : drawn->numbers()) EXPECT_EQ((number - 1) % 2, 1u);
    Open();
  }
}

TEST_F(StoreTest, ABackupIsAStoreOfThatMoment) {
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("a"), MakeTrajectory("b")})).ok());
  const std::string to = JoinPath(folder_.path(), "backup");
  const Status made = store_->Backup(to);
  ASSERT_TRUE(made.ok()) << made.message();
  EXPECT_EQ(store_->Backup(to).code(), StatusCode::kAlreadyExists);
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("c")})).ok());
  EXPECT_TRUE(store_->Compact().ok());
  auto backup = *Store::Open(to);
  EXPECT_EQ(backup->watermark(), 2u);
  EXPECT_TRUE(backup->Verify()->problems.empty());
  EXPECT_EQ(store_->watermark(), 3u);
}

TEST_F(StoreTest, VerifyAndReadingFindAFlippedBit) {
  std::vector<v1::Trajectory> all;
  for (int i = 0; i < 40; ++i) all.push_back(MakeTrajectory(StrCat("u", i), 0, v1::SOURCE_REAL, 2000));
  ASSERT_TRUE(store_->Insert(MakeInsert(all)).ok());
  const std::string directory = store_->directory();
  store_.reset();
  int damaged = 0;
  const auto names = ListDirectory(directory);
  for (const std::string& name : *names) {
    if (!name.ends_with(".data")) continue;
    std::string bytes = *ReadFile(JoinPath(directory, name));
    bytes[bytes.size() / 2] ^= 0x10;
    ASSERT_TRUE(WriteFileAtomic(JoinPath(directory, name), bytes).ok());
    ++damaged;
  }
  ASSERT_EQ(damaged, 1);
  Open();
  const auto report = store_->Verify();
  ASSERT_TRUE(report.ok());
  EXPECT_FALSE(report->problems.empty());
  EXPECT_EQ(store_->Query(v1::QueryRequest()).status().code(), StatusCode::kDataLoss);
}

// A disk that can be made to refuse writes.
class FaultyFileSystem : public rocksdb::FileSystemWrapper {
 public:
  FaultyFileSystem() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "FaultyFileSystem"; }
  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override {
    if (Fails()) return Failure();
    const rocksdb::IOStatus status = target()->NewWritableFile(name, options, file, context);
    if (status.ok()) *file = std::make_unique<File>(std::move(*file), this);
    return status;
  }
  enum class Fault { kNone, kNoSpace, kIo, kSync };
  std::atomic<Fault> fault{Fault::kNone};

 private:
  bool Fails() const { return fault == Fault::kNoSpace || fault == Fault::kIo; }
  rocksdb::IOStatus Failure() const {
    return fault == Fault::kNoSpace ? rocksdb::IOStatus::NoSpace("injected") : rocksdb::IOStatus::IOError("injected");
  }
  class File : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    File(std::unique_ptr<rocksdb::FSWritableFile>&& file, FaultyFileSystem* system)
        : FSWritableFileOwnerWrapper(std::move(file)), system_(system) {}
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             rocksdb::IODebugContext* context) override {
      // A full disk takes a part of what is written.
      if (system_->Fails()) {
        (void)target()->Append(rocksdb::Slice(data.data(), data.size() / 2), options, context);
        return system_->Failure();
      }
      return target()->Append(data, options, context);
    }
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             const rocksdb::DataVerificationInfo&, rocksdb::IODebugContext* context) override {
      return Append(data, options, context);
    }
    rocksdb::IOStatus Sync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* context) override {
      if (system_->fault != Fault::kNone)
        return system_->Fails() ? system_->Failure() : rocksdb::IOStatus::IOError("injected");
      return target()->Sync(options, context);
    }

   private:
    FaultyFileSystem* system_;
  };
};

TEST_F(StoreTest, AFullOrFailingDiskLosesNothingAndIsRecoveredFrom) {
  using Fault = FaultyFileSystem::Fault;
  auto disk = std::make_shared<FaultyFileSystem>();
  StoreOptions options;
  options.env = rocksdb::NewCompositeEnv(disk);
  Open(options);
  std::vector<std::string> acknowledged;
  int next = 0;
  for (const Fault fault : {Fault::kNoSpace, Fault::kIo, Fault::kSync, Fault::kNoSpace}) {
    for (int i = 0; i < 5; ++i) {
      const std::string uid = StrCat("u", next++);
      ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory(uid, 0, v1::SOURCE_REAL, 1000)})).ok());
      acknowledged.push_back(uid);
    }
    disk->fault = fault;
    const v1::InsertRequest pending = MakeInsert({MakeTrajectory(StrCat("u", next), 0, v1::SOURCE_REAL, 1000)});
    for (int attempt = 0; attempt < 3; ++attempt) {
      const Status status = store_->Insert(pending).status();
      EXPECT_EQ(status.code(), fault == Fault::kNoSpace ? StatusCode::kResourceExhausted : StatusCode::kDataLoss)
          << status.message();
      EXPECT_FALSE(store_->read_only_reason().empty());
    }
    disk->fault = Fault::kNone;
    const auto reply = store_->Insert(pending);
    ASSERT_TRUE(reply.ok()) << reply.status().message();
    acknowledged.push_back(StrCat("u", next++));
    EXPECT_EQ(reply->watermark(), acknowledged.size());
    EXPECT_EQ(store_->read_only_reason(), "");
  }
  ExpectSound(acknowledged.size());
  Open();
  ExpectSound(acknowledged.size());
  EXPECT_EQ(Uids(*store_->Sample(MakeSample(acknowledged.size(), 24))).size(), 24u);
}

TEST_F(StoreTest, ReadersAndWritersAtOnce) {
  std::atomic<bool> stop{false};
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("first")})).ok());
  std::thread reader([&] {
    for (uint64_t step = 0; !stop; ++step) {
      EXPECT_TRUE(store_->Sample(MakeSample(store_->watermark(), 4, 1, step)).ok());
      EXPECT_TRUE(store_->Stats({}).ok());
    }
  });
  std::vector<std::thread> writers;
  for (int w = 0; w < 3; ++w)
    writers.emplace_back([&, w] {
      for (int i = 0; i < 20; ++i)
        EXPECT_TRUE(
            store_->Insert(MakeInsert({MakeTrajectory(StrCat(w, "-", i)), MakeTrajectory(StrCat("same-", i))})).ok());
    });
  for (std::thread& writer : writers) writer.join();
  stop = true;
  reader.join();
  EXPECT_EQ(store_->watermark(), 81u);
  EXPECT_EQ(store_->Stats({})->duplicates(), 40u);
  ExpectSound(81);
}

TEST_F(StoreTest, PruningTakesTheOldestGeneratedRecordsAndGivesTheDiskBack) {
  uint64_t record_bytes = 0;
  for (int i = 0; i < 60; ++i) {
    v1::Trajectory t = MakeTrajectory(StrCat("r", i), i, i % 3 == 0 ? v1::SOURCE_REAL : v1::SOURCE_GENERATED, 4000);
    t.set_created_unix_ms(1000 * (i + 1));
    record_bytes = t.ByteSizeLong();
    ASSERT_TRUE(store_->Insert(MakeInsert({t})).ok());
  }
  const auto disk_bytes = [&] {
    uint64_t sum = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_.path()))
      if (entry.is_regular_file() && entry.path().extension() == ".data") sum += entry.file_size();
    return sum;
  };
  ASSERT_TRUE(store_->Compact().ok());
  const uint64_t before = disk_bytes();
  EXPECT_GT(before, 0u);

  PruneOptions options{.before_unix_ms = 31'000, .dry_run = true};
  const auto would = store_->Prune(options);
  ASSERT_TRUE(would.ok()) << would.status().message();
  EXPECT_EQ(would->records, 20u);  // r1 .. r29 without every third
  EXPECT_EQ(would->spared_real, 10u);
  EXPECT_EQ(store_->Stats({})->records(), 60u);
  options.dry_run = false;
  const auto pruned = store_->Prune(options);
  ASSERT_TRUE(pruned.ok()) << pruned.status().message();
  EXPECT_EQ(pruned->records, 20u);
  v1::QueryRequest ever;
  ever.mutable_filter()->set_source(v1::SOURCE_GENERATED);
  ever.set_count_only(true);
  EXPECT_EQ(store_->Query(ever)->count(), 20u);
  ever.set_pruned_too(true);
  EXPECT_EQ(store_->Query(ever)->count(), 40u);
  ever.set_count_only(false);
  EXPECT_EQ(store_->Query(ever).status().code(), StatusCode::kInvalidArgument);
  EXPECT_LT(disk_bytes(), before * 3 / 4);
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(store_->Stats({})->records(), 40u);
    EXPECT_EQ(store_->watermark(), 60u);
    ExpectSound(40);
    const std::vector<std::string> drawn = Uids(*store_->Sample(MakeSample(60, 40)));
    const std::set<std::string> unique(drawn.begin(), drawn.end());
    EXPECT_EQ(unique.size(), 40u);
    EXPECT_EQ(unique.count("r1"), 0u);
    EXPECT_EQ(unique.count("r0"), 1u);
    // What was pruned does not come back.
    EXPECT_EQ(store_->Insert(MakeInsert({MakeTrajectory("r1")}))->duplicates(), 1u);
    Open();
  }
  const auto newest = store_->Prune({.max_bytes = 0, .keep_newest = 7, .dry_run = true});
  EXPECT_EQ(newest->records, 40u - 20u - 7u);  // 20 real ones, 7 generated ones stay
  const auto smaller = store_->Prune({.max_bytes = 25 * record_bytes + 100, .real_too = true});
  ASSERT_TRUE(smaller.ok()) << smaller.status().message();
  EXPECT_LE(smaller->left_bytes, 25 * record_bytes + 100);
  EXPECT_NEAR(static_cast<double>(smaller->records), 15, 1);
  const auto all = store_->Prune({.max_bytes = 0});
  ASSERT_TRUE(all.ok());
  EXPECT_EQ(store_->Stats({})->records(), all->spared_real);
  EXPECT_EQ(store_->Stats({})->generated(), 0u);
  ExpectSound(store_->Stats({})->records());
}

}  // namespace
}  // namespace quern
