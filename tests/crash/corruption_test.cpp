// Bits flip and files lose their ends: nothing wrong is ever served, and what is missing is noticed.
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <map>

#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"
#include "replay/import.h"
#include "replay/store.h"
#include "replay/writer.h"
#include "tests/crash/totals.h"
#include "tests/replay/trajectories.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

namespace fs = std::filesystem;

Deadline Soon() { return Deadline::After(std::chrono::seconds(30)); }

TEST(Corruption, IsFoundOrLeavesEveryRecordAsItWas) {
  TemporaryFolder folder;
  const std::string whole = JoinPath(folder.path(), "whole");
  const std::string damaged = JoinPath(folder.path(), "damaged");
  Random random(CrashSeed(), 9);
  std::map<std::string, std::string> sent;
  uint64_t ledger = 0;
  {  // table files, blob files, a manifest, and a log that was not flushed
    auto store = Store::Open(whole);
    ASSERT_TRUE(store.ok()) << store.status().message();
    auto writer = ReplayWriter::Open(store->get(), "w", Soon());
    ASSERT_TRUE(writer.ok());
    for (int i = 0; i < 400; ++i) {
      const std::string uid = StrCat("r", i);
      const std::string bytes =
          MakeTrajectory(uid, -1, v1::SOURCE_GENERATED, i % 3 == 0 ? 400 : 16).SerializeAsString();
      sent[uid] = bytes;
      (*writer)->Append(bytes, uid);
      if (i % 10 == 9) {
        ASSERT_TRUE((*writer)->Flush(Soon()).ok());
      }
      if (i == 150 || i == 300) {
        ASSERT_TRUE((*store)->Compact().ok());
      }
    }
    ledger = (*writer)->ledger();
  }
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(whole))
    if (entry.is_regular_file() && entry.file_size() > 0) files.push_back(entry.path().filename());
  std::sort(files.begin(), files.end());
  uint64_t refused = 0, found = 0, missed_by_ledger = 0, harmless = 0, wrong = 0;
  const uint64_t rounds = CrashCount(300, 40);
  for (uint64_t round = 0; round < rounds; ++round) {
    fs::remove_all(damaged);
    fs::copy(whole, damaged);
    const std::string path = JoinPath(damaged, files[random.Below(files.size())]);
    std::string bytes = *ReadFile(path);
    const size_t place = random.Below(bytes.size());
    std::string what;
    if (random.Below(3) == 0) {
      fs::resize_file(path, place);
      what = StrCat(path, " cut at ", place);
    } else {
      const int bit = static_cast<int>(random.Below(8));
      bytes[place] = static_cast<char>(bytes[place] ^ (1 << bit));
      std::FILE* file = std::fopen(path.c_str(), "wb");
      ASSERT_NE(file, nullptr);
      ASSERT_EQ(std::fwrite(bytes.data(), 1, bytes.size(), file), bytes.size());
      ASSERT_EQ(std::fclose(file), 0);
      what = StrCat(path, " bit ", bit, " of byte ", place);
    }
    StoreOptions options;
    options.create_if_missing = false;
    auto store = Store::Open(damaged, options);
    if (!store.ok()) {
      ++refused;
      continue;
    }
    // What it serves is what was sent, or an error.
    uint64_t served = 0;
    const Status read = ForEachRecord(**store, v1::Filter(), 0, [&](uint64_t, const v1::Trajectory& trajectory) {
      const auto original = sent.find(trajectory.uid());
      if (original == sent.end() || trajectory.SerializeAsString() != original->second) ++wrong;
      ++served;
      return Status();
    });
    const auto report = (*store)->Verify();
    if (!read.ok() || !report.ok() || !report->problems.empty()) {
      ++found;
      continue;
    }
    // A log that ends early looks like one that was not written further: the writer's ledger knows better.
    const auto stats = (*store)->Stats(v1::StatsRequest());
    ASSERT_TRUE(stats.ok());
    const bool same = stats->writers_size() == 1 && stats->writers(0).ledger() == ledger;
    if (!same) {
      ++missed_by_ledger;
      EXPECT_LT(served, sent.size()) << what;
      continue;
    }
    EXPECT_EQ(served, sent.size()) << what << ": records are missing and nothing says so";
    Totals().lost += sent.size() - std::min<uint64_t>(served, sent.size());
    ++harmless;
  }
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(refused + found, 0u);
  Totals().damaged_files += rounds;
  Totals().corrupt_served += wrong;
  const auto u = [](uint64_t value) { return static_cast<unsigned long long>(value); };
  std::printf(
      "%llu damaged files: %llu stores refused to open, %llu found by verify, %llu by the writer's ledger, %llu "
      "touched no "
      "record\n",
      u(rounds), u(refused), u(found), u(missed_by_ledger), u(harmless));
}

}  // namespace
}  // namespace quern
