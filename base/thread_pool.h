#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace quern {

// Runs loops over small chunks that any thread may take; the caller works too and never waits for a worker that has not
// taken a chunk, so a busy neighbour process costs its share and no more. Workers poll for some tens of microseconds
// after a loop and then sleep; a caller whose last chunk is in the hands of a preempted worker sleeps too, which gives
// the worker the caller's core. One caller at a time (a nested or concurrent ParallelFor runs on its own thread alone).
class ThreadPool {
 public:
  // threads: total including the caller; 0 takes the machine's number of cores.
  explicit ThreadPool(int threads = 0);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // Calls body(i) once for every i in [0, count), in no particular order, and returns when all are done. `body` must
  // not throw. What it computes must not depend on which thread ran it.
  void ParallelFor(int64_t count, const std::function<void(int64_t)>& body);

 private:
  void WorkerLoop();
  void RunChunks(uint64_t generation);
  void AwaitDone(int64_t count);

  std::vector<std::thread> workers_;
  std::mutex mutex_;  // guards sleeping workers and the start of a loop
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};  // number of the newest loop
  std::atomic<uint64_t> next_{0};        // (generation << 40) | next index
  std::atomic<int64_t> done_{0};
  std::atomic<int64_t> count_{0};
  std::atomic<const std::function<void(int64_t)>*> body_{nullptr};
  std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  std::mutex finished_mutex_;  // guards the caller's sleep
  std::condition_variable finished_;
  std::atomic<bool> caller_sleeps_{false};
};

}  // namespace quern
