#include "service/task_table.h"

#include <algorithm>

#include "base/check.h"
#include "base/strings.h"

namespace quern {

void TaskTable::Add(size_t stage, uint64_t episodes, uint32_t chunk) {
  QUERN_CHECK(chunk > 0);
  for (uint64_t first = 0; first < episodes; first += chunk) {
    Entry& entry = entries_.emplace_back();
    entry.task.id = entries_.size();
    entry.task.stage = stage;
    entry.task.first_episode = first;
    entry.task.episodes = static_cast<uint32_t>(std::min<uint64_t>(chunk, episodes - first));
  }
}

std::optional<TaskTable::Task> TaskTable::Lease(uint32_t actor, Clock::time_point now) {
  while (first_open_ < entries_.size() && entries_[first_open_].state == State::kDone) ++first_open_;
  Entry* waiting = nullptr;
  for (size_t i = first_open_; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    if (entry.state == State::kLeased && entry.actor == actor) {
      entry.until = now + lease_;
      return entry.task;
    }
    if (waiting == nullptr && entry.state == State::kWaiting && entry.until <= now) waiting = &entry;
  }
  if (waiting == nullptr) return std::nullopt;
  waiting->state = State::kLeased;
  waiting->actor = actor;
  waiting->until = now + lease_;
  return waiting->task;
}

bool TaskTable::Complete(uint64_t id) {
  if (id == 0 || id > entries_.size()) return false;
  Entry& entry = entries_[id - 1];
  if (entry.state == State::kDone) return false;
  entry.state = State::kDone;
  return true;
}

TaskTable::Failure TaskTable::Release(Entry& entry, const std::string& reason, Clock::time_point now) {
  ++entry.failures;
  const bool final = entry.failures >= max_failures_;
  entry.state = final ? State::kGivenUp : State::kWaiting;
  entry.until = now + std::chrono::milliseconds(500) * (entry.failures - 1);
  return {.task = entry.task, .actor = entry.actor, .failures = entry.failures, .reason = reason, .final = final};
}

std::optional<TaskTable::Failure> TaskTable::Fail(uint64_t id, uint32_t actor, const std::string& reason,
                                                  Clock::time_point now) {
  if (id == 0 || id > entries_.size()) return std::nullopt;
  Entry& entry = entries_[id - 1];
  if (entry.state != State::kLeased || entry.actor != actor) return std::nullopt;
  return Release(entry, reason, now);
}

void TaskTable::Renew(uint32_t actor, Clock::time_point now) {
  for (size_t i = first_open_; i < entries_.size(); ++i)
    if (entries_[i].state == State::kLeased && entries_[i].actor == actor) entries_[i].until = now + lease_;
}

std::vector<TaskTable::Failure> TaskTable::FailAll(uint32_t actor, const std::string& reason, Clock::time_point now) {
  std::vector<Failure> out;
  for (Entry& entry : entries_)
    if (entry.state == State::kLeased && entry.actor == actor) out.push_back(Release(entry, reason, now));
  return out;
}

std::vector<TaskTable::Failure> TaskTable::Expire(Clock::time_point now) {
  std::vector<Failure> out;
  for (size_t i = first_open_; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    if (entry.state == State::kLeased && entry.until <= now) {
      const double seconds = std::chrono::duration<double>(lease_).count();
      out.push_back(Release(entry, StrCat("not completed within its lease of ", seconds, " s"), now));
    }
  }
  return out;
}

const TaskTable::Task* TaskTable::Find(uint64_t id) const {
  return id == 0 || id > entries_.size() ? nullptr : &entries_[id - 1].task;
}

bool TaskTable::HasLeases() const {
  return std::any_of(entries_.begin(), entries_.end(), [](const Entry& e) { return e.state == State::kLeased; });
}

}  // namespace quern
