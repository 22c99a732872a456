#include "base/thread_pool.h"

#include <chrono>

#include "base/deadline.h"

namespace quern {

namespace {
constexpr uint64_t kIndexBits = 40;
constexpr uint64_t kIndexMask = (uint64_t{1} << kIndexBits) - 1;
constexpr auto kPollTime = std::chrono::microseconds(60);
// About the cost of sleeping and being woken; a chunk that is running ends sooner, a preempted one in milliseconds.
constexpr auto kSpinTime = std::chrono::microseconds(40);

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}
}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads <= 0) threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { WorkerLoop(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(int64_t count, const std::function<void(int64_t)>& body) {
  if (count <= 0) return;
  bool expected = false;
  if (count == 1 || workers_.empty() || !busy_.compare_exchange_strong(expected, true)) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  const uint64_t generation = (generation_.load(std::memory_order_relaxed) + 1) & (~uint64_t{0} >> kIndexBits);
  // Closed first: a late worker of the last loop that sees the new count must not find its old ticket still valid.
  next_.store((generation << kIndexBits) | kIndexMask, std::memory_order_seq_cst);
  count_ = count;
  body_ = &body;
  done_.store(0, std::memory_order_relaxed);
  next_.store(generation << kIndexBits, std::memory_order_seq_cst);
  generation_.store(generation, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  RunChunks(generation);
  AwaitDone(count);
  // A worker that read the ticket late finds the index beyond the count or another generation and takes nothing.
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::AwaitDone(int64_t count) {
  const auto begin = Clock::now();
  do {
    for (int i = 0; i < 16; ++i) {
      if (done_.load(std::memory_order_acquire) == count) return;
      Pause();
    }
  } while (Clock::now() - begin < kSpinTime);
  std::unique_lock lock(finished_mutex_);
  caller_sleeps_.store(true, std::memory_order_seq_cst);
  finished_.wait(lock, [&] { return done_.load(std::memory_order_seq_cst) == count; });
  caller_sleeps_.store(false, std::memory_order_relaxed);
}

void ThreadPool::RunChunks(uint64_t generation) {
  uint64_t ticket = next_.load(std::memory_order_acquire);
  while (true) {
    if ((ticket >> kIndexBits) != generation) return;
    const auto index = static_cast<int64_t>(ticket & kIndexMask);
    // count_ and body_ belong to this generation as long as a chunk of it is open, which the exchange below proves.
    if (index >= count_) return;
    if (!next_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
    (*body_.load(std::memory_order_relaxed))(index);
    // Read before this chunk counts as done: afterwards it may be the next loop's.
    const int64_t count = count_.load(std::memory_order_relaxed);
    if (done_.fetch_add(1, std::memory_order_seq_cst) + 1 == count && caller_sleeps_.load(std::memory_order_seq_cst)) {
      { std::lock_guard lock(finished_mutex_); }
      finished_.notify_one();
    }
    ticket = next_.load(std::memory_order_acquire);
  }
}

void ThreadPool::WorkerLoop() {
  uint64_t seen = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    const auto begin = Clock::now();
    bool fresh = false;
    while (!fresh && Clock::now() - begin < kPollTime) {
      for (int i = 0; i < 16 && !fresh; ++i) {
        fresh = generation_.load(std::memory_order_acquire) != seen;
        if (!fresh) Pause();
      }
    }
    if (!fresh) {
      std::unique_lock lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return stop_.load() || generation_.load(std::memory_order_seq_cst) != seen; });
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
      if (stop_) return;
    }
    seen = generation_.load(std::memory_order_acquire);
    RunChunks(seen);
  }
}

}  // namespace quern
