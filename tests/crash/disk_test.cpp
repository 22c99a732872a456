// A store on a disk that loses power or fails: what was acknowledged is there, once.
#include "tests/crash/disk.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <thread>
#include <vector>

#include "base/file.h"
#include "replay/store.h"
#include "tests/crash/totals.h"
#include "tests/replay/trajectories.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

struct Outcome {
  uint64_t acknowledged = 0;
  uint64_t lost = 0;
  uint64_t losses = 0;
  uint64_t injected = 0;
  uint64_t refused = 0;  // inserts
};

// One store and who writes to it.
class DiskRun {
 public:
  explicit DiskRun(std::string directory) : directory_(std::move(directory)) {}

  // Loses power `losses` times at a random file operation. With `lies` a record may be lost; the loss is counted and
  // what is gone is no longer expected.
  Outcome LosePower(uint64_t losses, bool lies);
  // Until `errors` operations of the disk have failed.
  Outcome FailNowAndThen(uint64_t errors, uint64_t seed);

 private:
  Result<std::unique_ptr<Store>> Open(std::shared_ptr<Disk> disk) {
    StoreOptions options;
    if (disk != nullptr) options.env = EnvOf(std::move(disk));
    return Store::Open(directory_, options);
  }
  // 1 to 8 records, some large enough for RocksDB's blob files.
  std::vector<std::string> Insert(Store& store, Random& random, bool* acknowledged) {
    std::vector<v1::Trajectory> records;
    std::vector<std::string> uids;
    for (uint64_t n = 1 + random.Below(8); n > 0; --n) {
      uids.push_back(StrCat("r", next_++));
      records.push_back(MakeTrajectory(uids.back(), -1, v1::SOURCE_GENERATED, random.Below(4) == 0 ? 400 : 16));
    }
    *acknowledged = store.Insert(MakeInsert(records)).ok();
    return uids;
  }
  static uint64_t CountMissing(Store& store, const std::vector<std::string>& uids) {
    uint64_t missing = 0;
    for (size_t begin = 0; begin < uids.size(); begin += 10000) {
      v1::ContainsRequest request;
      for (size_t i = begin; i < std::min(uids.size(), begin + 10000); ++i) request.add_uids(uids[i]);
      const auto reply = store.Contains(request);
      EXPECT_TRUE(reply.ok()) << reply.status().message();
      if (!reply.ok()) return uids.size();
      for (const bool stored : reply->stored()) missing += stored ? 0 : 1;
    }
    return missing;
  }

  std::string directory_;
  uint64_t next_ = 0;
};

Outcome DiskRun::LosePower(uint64_t losses, bool lies) {
  Outcome outcome;
  Random random(CrashSeed(), lies ? 7 : 6);
  std::vector<std::string> acknowledged;
  for (uint64_t loss = 0; loss < losses; ++loss) {
    auto disk = std::make_shared<Disk>(CrashSeed() + loss);
    if (lies) disk->LieAboutSync();
    auto store = Open(disk);
    if (!store.ok() && lies) {  // even the files that make it a store may be gone
      EXPECT_TRUE(RemoveTree(directory_).ok());
      outcome.lost += acknowledged.size();
      acknowledged.clear();
      store = Open(disk);
    }
    EXPECT_TRUE(store.ok()) << store.status().message();
    if (!store.ok()) return outcome;
    const uint64_t missing = CountMissing(**store, acknowledged);
    outcome.lost += missing;
    if (missing > 0) acknowledged.clear();
    disk->LosePowerAfter(random.Below(120));
    while (disk->has_power()) {
      bool stored = false;
      const std::vector<std::string> uids = Insert(**store, random, &stored);
      if (stored) {
        acknowledged.insert(acknowledged.end(), uids.begin(), uids.end());
        outcome.acknowledged += uids.size();
      }
      if (random.Below(40) == 0) (void)(*store)->Compact();
    }
    store->reset();
    disk->ForgetUnsynced();
    ++outcome.losses;
  }
  if (!lies) {
    auto store = Open(nullptr);
    EXPECT_TRUE(store.ok()) << store.status().message();
    outcome.lost += CountMissing(**store, acknowledged);
    const auto report = (*store)->Verify();
    EXPECT_TRUE(report.ok());
    for (const std::string& problem : report->problems) ADD_FAILURE() << problem;
  }
  return outcome;
}

Outcome DiskRun::FailNowAndThen(uint64_t errors, uint64_t seed) {
  Outcome outcome;
  auto disk = std::make_shared<Disk>(seed);
  Random random(seed, 8);
  std::vector<std::string> acknowledged;
  auto store = Open(disk);
  EXPECT_TRUE(store.ok()) << store.status().message();
  if (!store.ok()) return outcome;
  while (disk->injected() < errors) {
    disk->FailOneIn(20 + random.Below(150));
    for (uint64_t n = random.Below(30); n > 0; --n) {
      bool stored = false;
      const std::vector<std::string> uids = Insert(**store, random, &stored);
      if (stored)
        acknowledged.insert(acknowledged.end(), uids.begin(), uids.end());
      else
        ++outcome.refused;
    }
    // Now and then the disk is well: the store must take records again.
    if (random.Below(4) == 0) {
      disk->FailOneIn(0);
      bool stored = false;
      const std::vector<std::string> uids = Insert(**store, random, &stored);
      EXPECT_TRUE(stored) << "the disk works again, the store does not: " << (*store)->read_only_reason();
      if (stored) acknowledged.insert(acknowledged.end(), uids.begin(), uids.end());
    }
    if (random.Below(10) == 0) {  // also while it fails
      store->reset();
      store = Open(disk);
      for (int attempt = 0; !store.ok(); ++attempt) {
        if (attempt == 20) disk->FailOneIn(0);
        if (attempt == 1000) break;
        store = Open(disk);
      }
      EXPECT_TRUE(store.ok()) << store.status().message();
      if (!store.ok()) return outcome;
    }
  }
  disk->FailOneIn(0);
  store->reset();
  store = Open(nullptr);
  EXPECT_TRUE(store.ok()) << store.status().message();
  if (!store.ok()) return outcome;
  outcome.acknowledged = acknowledged.size();
  outcome.lost = CountMissing(**store, acknowledged);
  outcome.injected = disk->injected();
  const auto report = (*store)->Verify();  // no uid twice, every record has its index
  EXPECT_TRUE(report.ok());
  if (report.ok())
    for (const std::string& problem : report->problems) ADD_FAILURE() << problem;
  return outcome;
}

class DiskTest : public testing::Test {
 protected:
  std::string Directory(uint64_t i) const { return JoinPath(folder_.path(), StrCat("replay", i)); }
  TemporaryFolder folder_;
};

TEST_F(DiskTest, NothingAcknowledgedIsLostWhenThePowerGoes) {
  const Outcome outcome = DiskRun(Directory(0)).LosePower(CrashCount(300, 15), false);
  EXPECT_EQ(outcome.lost, 0u);
  EXPECT_GT(outcome.acknowledged, 10 * outcome.losses);
  Totals().power_losses += outcome.losses;
  Totals().acknowledged += outcome.acknowledged;
  Totals().lost += outcome.lost;
}

// Shows that the test above can fail.
TEST_F(DiskTest, ADiskThatOnlySaysThatItSyncsLosesRecords) {
  const Outcome outcome = DiskRun(Directory(0)).LosePower(CrashCount(30, 5), true);
  EXPECT_GT(outcome.lost, 0u);
  std::printf("control without syncs: %llu of %llu acknowledged records lost\n",
              static_cast<unsigned long long>(outcome.lost), static_cast<unsigned long long>(outcome.acknowledged));
}

TEST_F(DiskTest, ADiskThatFailsNowAndThenLosesNothing) {
  const uint64_t stores = CrashCount(8, 2), errors = CrashCount(1250, 100);
  std::vector<Outcome> outcomes(stores);
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < stores; ++i)
    threads.emplace_back([&, i] { outcomes[i] = DiskRun(Directory(i)).FailNowAndThen(errors, CrashSeed() + i); });
  for (std::thread& thread : threads) thread.join();
  for (const Outcome& outcome : outcomes) {
    EXPECT_GE(outcome.injected, errors);
    EXPECT_GT(outcome.refused, 0u);
    EXPECT_EQ(outcome.lost, 0u);
    Totals().injected_errors += outcome.injected;
    Totals().acknowledged += outcome.acknowledged;
    Totals().lost += outcome.lost;
  }
}

}  // namespace
}  // namespace quern
