#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/deadline.h"

namespace quern {

// Ranges of episodes that actors play under leases. A lease that is not completed in time, or whose actor dies, is
// given out again; a task that failed too often is reported. Thread-compatible.
class TaskTable {
 public:
  struct Task {
    uint64_t id = 0;
    size_t stage = 0;
    uint64_t first_episode = 0;
    uint32_t episodes = 0;
    bool killed = false;  // an actor died of it, or fell silent: to be played one episode at a time
  };
  struct Failure {
    Task task;
    uint32_t actor = 0;
    uint32_t failures = 0;  // so far, of this task
    std::string reason;
    bool killed = false;  // the actor died or fell silent
    bool final = false;   // too many: the task is not given out again
  };

  TaskTable(Duration lease, uint32_t max_failures) : lease_(lease), max_failures_(max_failures) {}

  // Tasks of at most `chunk` episodes: [first, end). Waiting tasks are leased in the order they were added. Ids depend
  // on stage and first episode alone, so that they mean the same to a coordinator that was started again.
  void Add(size_t stage, uint64_t first, uint64_t end, uint32_t chunk);
  // One task of the actor that had it when the coordinator died.
  void AddLeased(size_t stage, uint64_t first, uint32_t episodes, uint32_t actor, Clock::time_point now);
  // The task that this actor holds already (it lost the answer), else the first that waits; none: nullopt.
  std::optional<Task> Lease(uint32_t actor, Clock::time_point now);
  // True when the task was not done before: also when the lease had expired, because its episodes are in the store.
  bool Complete(uint64_t id);
  // Nothing when the task is done or no longer this actor's.
  std::optional<Failure> Fail(uint64_t id, uint32_t actor, const std::string& reason, Clock::time_point now);
  // The actor is at work on what it holds: its lease begins anew.
  void Renew(uint32_t actor, Clock::time_point now);
  // The actor died or fell silent. `named`: it had said which episode it was at, so this does not count against the
  // task.
  std::vector<Failure> FailAll(uint32_t actor, bool named, const std::string& reason, Clock::time_point now);
  std::vector<Failure> Expire(Clock::time_point now);
  const Task* Find(uint64_t id) const;
  bool HasLeases() const;

 private:
  enum class State { kWaiting, kLeased, kDone, kGivenUp };
  struct Entry {
    Task task;
    State state = State::kWaiting;
    uint32_t actor = 0;
    uint32_t failures = 0;
    Clock::time_point until;  // leased: the lease's end; waiting: not before
  };
  Entry* FindEntry(uint64_t id);
  Failure Release(Entry& entry, bool counts, const std::string& reason, Clock::time_point now);

  Duration lease_;
  uint32_t max_failures_;
  std::vector<Entry> entries_;
  std::unordered_map<uint64_t, size_t> places_;  // in entries_, by id
  size_t first_open_ = 0;                        // everything before it is done
};

}  // namespace quern
