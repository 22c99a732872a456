// A store's files: who may open them, damage, copies, a disk that fails, and what pruning gives back.

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <atomic>
#include <filesystem>
#include <set>

#include "tests/replay/store_fixture.h"

namespace quern {
namespace {

class StoreFilesTest : public StoreTest {};

StoreOptions Reading() {
  StoreOptions options;
  options.read_only = true;
  return options;
}

TEST_F(StoreFilesTest, OneProcessAtATimeAndOnlyStoreDirectories) {
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

TEST_F(StoreFilesTest, ReadOnlyBesideAWriterItShowsWhatWasThere) {
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("a"), MakeTrajectory("b")})).ok());
  auto reader = Store::Open(store_->directory(), Reading());
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
  EXPECT_FALSE(Store::Open(JoinPath(folder_.path(), "none"), Reading()).ok());
  EXPECT_FALSE(PathExists(JoinPath(folder_.path(), "none")));
}

// What an opening for writing makes again from the log, one for reading leaves as it is and reports.
TEST_F(StoreFilesTest, AReaderThatVerifiesFindsADamagedIndexAndChangesNothing) {
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

TEST_F(StoreFilesTest, VerifyAndReadingFindAFlippedBit) {
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

TEST_F(StoreFilesTest, ABackupIsAStoreOfThatMoment) {
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

TEST_F(StoreFilesTest, ACopyOfACopyHasBytesOfItsOwn) {
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

TEST_F(StoreFilesTest, AFullOrFailingDiskLosesNothingAndIsRecoveredFrom) {
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

TEST_F(StoreFilesTest, PruningTakesTheOldestGeneratedRecordsAndGivesTheDiskBack) {
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
