#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>

namespace quern {
namespace {

TEST(ThreadPool, EveryIndexOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
      pool.ParallelFor(count, [&](int64_t i) { ++seen[static_cast<size_t>(i)]; });
      for (const auto& times : seen) ASSERT_EQ(times, 1);
    }
  }
}

// Loops of changing length back to back: a worker that is late from one loop must take nothing of the next, and no loop
// may return before its last index is done.
TEST(ThreadPool, ManyShortLoops) {
  ThreadPool pool(4);
  std::vector<int64_t> values(64);
  for (int64_t loop = 0; loop < 20000; ++loop) {
    const int64_t count = 2 + loop * 7 % 60;
    pool.ParallelFor(count, [&](int64_t i) { values[static_cast<size_t>(i)] += 1 + i; });
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(values[static_cast<size_t>(i)], 1 + i) << "loop " << loop;
      values[static_cast<size_t>(i)] = 0;
    }
  }
}

TEST(ThreadPool, WakesAfterSleep) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int64_t> sum{0};
    pool.ParallelFor(100, [&](int64_t i) { sum += i; });
    EXPECT_EQ(sum, 4950);
  }
}

// Chunks longer than the caller's patience: it sleeps and is woken by the last worker.
TEST(ThreadPool, CallerSleepsUntilTheLastChunkIsDone) {
  ThreadPool pool(3);
  for (int loop = 0; loop < 30; ++loop) {
    std::atomic<int> done{0};
    pool.ParallelFor(3, [&](int64_t i) {
      std::this_thread::sleep_for(std::chrono::microseconds(i == 0 ? 0 : 700));
      ++done;
    });
    ASSERT_EQ(done, 3);
  }
}

TEST(ThreadPool, NestedAndConcurrentCallersFinish) {
  ThreadPool pool(3);
  std::atomic<int64_t> inner{0};
  pool.ParallelFor(10, [&](int64_t) { pool.ParallelFor(10, [&](int64_t) { ++inner; }); });
  EXPECT_EQ(inner, 100);

  std::atomic<int64_t> total{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c)
    callers.emplace_back([&] {
      for (int loop = 0; loop < 200; ++loop) pool.ParallelFor(17, [&](int64_t) { ++total; });
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total, 3 * 200 * 17);
}

}  // namespace
}  // namespace quern
