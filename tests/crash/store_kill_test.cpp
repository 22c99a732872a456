// The replay server is killed over and over while four writers send; now and then a writer dies as well.
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <map>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"
#include "replay/import.h"
#include "replay/ledger.h"
#include "replay/store.h"
#include "tests/crash/totals.h"
#include "tests/transport/temporary_folder.h"

extern char** environ;

namespace quern {
namespace {

using std::chrono::milliseconds;

constexpr int kWriters = 4;

class Child {
 public:
  Child() = default;
  explicit Child(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), QUERN_CRASH_CHILD);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    EXPECT_EQ(posix_spawn(&pid_, argv[0], nullptr, nullptr, argv.data(), environ), 0);
  }
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, 0)) {}
  Child& operator=(Child&& other) noexcept {
    Kill();
    pid_ = std::exchange(other.pid_, 0);
    return *this;
  }
  ~Child() { Kill(); }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    EXPECT_TRUE(WIFSIGNALED(status)) << "a process ended by itself, with " << WEXITSTATUS(status);
    pid_ = 0;
  }

 private:
  pid_t pid_ = 0;
};

struct Ledger {
  uint64_t count = 0;
  uint64_t hash = 0;
};

class StoreKills : public testing::Test {
 protected:
  StoreKills()
      : directory_(JoinPath(folder_.path(), "replay")), address_("ipc://" + JoinPath(folder_.path(), "store.sock")) {}

  std::string Name(int writer) const { return StrCat("w", writer); }
  std::string LedgerPath(int writer) const { return JoinPath(folder_.path(), Name(writer) + ".ledger"); }
  void StartWriter(int writer) {
    writers_[writer] = Child({"write", address_, Name(writer), LedgerPath(writer), "64"});
  }
  Ledger ReadLedger(int writer) const {
    Ledger ledger;
    const Result<std::string> text = ReadFile(LedgerPath(writer));
    unsigned long long count = 0, hash = 0;
    if (text.ok() && std::sscanf(text->c_str(), "%llu %llx", &count, &hash) == 2) ledger = {count, hash};
    return ledger;
  }
  uint64_t Acknowledged() const {
    uint64_t sum = 0;
    for (int w = 0; w < kWriters; ++w) sum += ReadLedger(w).count;
    return sum;
  }

  template <typename Condition>
  static void WaitFor(Condition condition) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition() && std::chrono::steady_clock::now() < limit) std::this_thread::sleep_for(milliseconds(5));
  }

  // Kills the server `kills` times, `pause` after each start, and goes on until `records` are acknowledged.
  void Run(uint64_t kills, uint64_t records, const std::function<milliseconds()>& pause, uint64_t progress_every) {
    for (int w = 0; w < kWriters; ++w) StartWriter(w);
    Random random(CrashSeed(), 3);
    uint64_t before = 0;
    const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(15);
    for (uint64_t k = 0; k < kills || Acknowledged() < records; ++k) {
      ASSERT_LT(std::chrono::steady_clock::now(), limit) << Acknowledged() << " records after " << k << " kills";
      Child server({"serve", directory_, address_});
      std::this_thread::sleep_for(pause());
      // On a busy machine, or with a million records to open, a kill waits until something was acknowledged; not in the
      // full loop, which is about a store that has no time.
      if (kills != CrashCount(60, 0)) WaitFor([&, start = Acknowledged()] { return Acknowledged() > start; });
      server.Kill();
      ++Totals().store_kills;
      if (random.Below(8) == 0) {  // at any moment of what it sends
        const int w = static_cast<int>(random.Below(kWriters));
        writers_[w].Kill();
        StartWriter(w);
      }
      if ((k + 1) % progress_every == 0) {
        const uint64_t now = Acknowledged();
        EXPECT_GT(now, before) << "no progress from kill " << k + 1 - progress_every << " to " << k + 1;
        before = now;
      }
    }
    // A writer that was started last has its turn as well.
    Child server({"serve", directory_, address_});
    WaitFor([&] {
      for (int w = 0; w < kWriters; ++w)
        if (ReadLedger(w).count == 0) return false;
      return true;
    });
    for (Child& writer : writers_) writer.Kill();
  }

  // What the ledgers say against what the store holds.
  void Check() {
    std::map<std::string, Ledger> ledgers;
    for (int w = 0; w < kWriters; ++w) ledgers[Name(w)] = ReadLedger(w);
    auto store = Store::Open(directory_);
    ASSERT_TRUE(store.ok()) << store.status().message();
    std::map<std::string, Ledger> stored;
    uint64_t lost = 0, duplicated = 0, corrupt = 0;
    const Status read = ForEachRecord(**store, v1::Filter(), 0, [&](uint64_t, const v1::Trajectory& trajectory) {
      const std::string& uid = trajectory.uid();
      const std::string name = uid.substr(0, uid.find('-'));
      const uint64_t number = std::strtoull(uid.c_str() + name.size() + 1, nullptr, 10);
      Ledger& so_far = stored[name];
      if (number <= so_far.count) {
        ++duplicated;
        return Status();
      }
      lost += number - so_far.count - 1;  // a hole
      so_far.count = number;
      so_far.hash = ExtendLedger(so_far.hash, uid);
      if (number == ledgers[name].count && so_far.hash != ledgers[name].hash) ++corrupt;
      return Status();
    });
    ASSERT_TRUE(read.ok()) << read.message();
    uint64_t acknowledged = 0;
    for (const auto& [name, ledger] : ledgers) {
      EXPECT_GT(ledger.count, 0u) << name;
      acknowledged += ledger.count;
      if (ledger.count > stored[name].count) lost += ledger.count - stored[name].count;
    }
    const auto stats = (*store)->Stats(v1::StatsRequest());
    ASSERT_TRUE(stats.ok());
    for (const v1::WriterState& state : stats->writers()) {
      EXPECT_EQ(state.next_sequence(), stored[state.writer()].count + 1) << state.writer();
      EXPECT_EQ(state.ledger(), stored[state.writer()].hash) << state.writer();
    }
    const auto report = (*store)->Verify();
    ASSERT_TRUE(report.ok());
    for (const std::string& problem : report->problems) ADD_FAILURE() << problem;
    EXPECT_EQ(lost, 0u);
    EXPECT_EQ(duplicated, 0u);
    EXPECT_EQ(corrupt, 0u);
    Totals().acknowledged += acknowledged;
    Totals().lost += lost;
    Totals().duplicated += duplicated;
    Totals().corrupt_served += corrupt;
    std::printf("%llu records acknowledged, %llu stored\n", static_cast<unsigned long long>(acknowledged),
                static_cast<unsigned long long>(report->records));
  }

  TemporaryFolder folder_;
  std::string directory_;
  std::string address_;
  Child writers_[kWriters];
};

TEST_F(StoreKills, Spaced) {
  Random random(CrashSeed(), 1);
  Run(
      CrashCount(100, 4), CrashCount(1'000'000, 2'000), [&] { return milliseconds(300 + random.Below(900)); },
      CrashCount(15, 4));
  Check();
}

// So close together that a store with RocksDB's own settings never finishes a compaction and stops taking writes.
TEST_F(StoreKills, InALoopStillGetOn) {
  Run(
      CrashCount(60, 6), 0, [] { return milliseconds(350); }, CrashCount(15, 6));
  Check();
}

}  // namespace
}  // namespace quern
