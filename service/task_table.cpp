#include "service/task_table.h"

#include <algorithm>

#include "base/check.h"
#include "base/strings.h"

namespace quern {

namespace {
constexpr int kEpisodeBits = 40;
}  // namespace

void TaskTable::Add(size_t stage, uint64_t first, uint64_t end, uint32_t chunk) {
  QUERN_CHECK(chunk > 0);
  for (; first < end; first += chunk) {
    Entry& entry = entries_.emplace_back();
    entry.task.id = (static_cast<uint64_t>(stage) + 1) << kEpisodeBits | first;
    entry.task.stage = stage;
    entry.task.first_episode = first;
    entry.task.episodes = static_cast<uint32_t>(std::min<uint64_t>(chunk, end - first));
    QUERN_CHECK(places_.emplace(entry.task.id, entries_.size() - 1).second);
  }
}

void TaskTable::AddLeased(size_t stage, uint64_t first, uint32_t episodes, uint32_t actor, Clock::time_point now) {
  Add(stage, first, first + episodes, episodes);
  entries_.back().state = State::kLeased;
  entries_.back().actor = actor;
  entries_.back().until = now + lease_;
}

TaskTable::Entry* TaskTable::FindEntry(uint64_t id) {
  const auto place = places_.find(id);
  return place == places_.end() ? nullptr : &entries_[place->second];
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
  Entry* entry = FindEntry(id);
  if (entry == nullptr || entry->state == State::kDone) return false;
  entry->state = State::kDone;
  return true;
}

TaskTable::Failure TaskTable::Release(Entry& entry, bool counts, const std::string& reason, Clock::time_point now) {
  if (counts) ++entry.failures;
  const bool final = entry.failures >= max_failures_;
  entry.state = final ? State::kGivenUp : State::kWaiting;
  entry.until = now + std::chrono::milliseconds(500) * std::max<int64_t>(0, int64_t{entry.failures} - 1);
  return {.task = entry.task,
          .actor = entry.actor,
          .failures = entry.failures,
          .reason = reason,
          .killed = false,
          .final = final};
}

std::optional<TaskTable::Failure> TaskTable::Fail(uint64_t id, uint32_t actor, const std::string& reason,
                                                  Clock::time_point now) {
  Entry* entry = FindEntry(id);
  if (entry == nullptr || entry->state != State::kLeased || entry->actor != actor) return std::nullopt;
  return Release(*entry, true, reason, now);
}

void TaskTable::Renew(uint32_t actor, Clock::time_point now) {
  for (size_t i = first_open_; i < entries_.size(); ++i)
    if (entries_[i].state == State::kLeased && entries_[i].actor == actor) entries_[i].until = now + lease_;
}

std::vector<TaskTable::Failure> TaskTable::FailAll(uint32_t actor, bool named, const std::string& reason,
                                                   Clock::time_point now) {
  std::vector<Failure> out;
  for (Entry& entry : entries_) {
    if (entry.state != State::kLeased || entry.actor != actor) continue;
    out.push_back(Release(entry, !named, reason, now));
    out.back().killed = true;
    entry.task.killed = true;
  }
  return out;
}

std::vector<TaskTable::Failure> TaskTable::Expire(Clock::time_point now) {
  std::vector<Failure> out;
  for (size_t i = first_open_; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    if (entry.state == State::kLeased && entry.until <= now) {
      const double seconds = std::chrono::duration<double>(lease_).count();
      out.push_back(Release(entry, true, StrCat("not completed within its lease of ", seconds, " s"), now));
    }
  }
  return out;
}

const TaskTable::Task* TaskTable::Find(uint64_t id) const {
  const auto place = places_.find(id);
  return place == places_.end() ? nullptr : &entries_[place->second].task;
}

bool TaskTable::HasLeases() const {
  return std::any_of(entries_.begin(), entries_.end(), [](const Entry& e) { return e.state == State::kLeased; });
}

}  // namespace quern
