#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/coordinator.pb.h"

namespace quern {

// What a coordinator that starts again must know of the attempts before it.
struct JournalState {
  struct Task {
    uint32_t episodes = 0;
    uint32_t actor = 0;                // that had it last
    std::vector<std::string> weights;  // train stages (or the untrained model) of the policy it was first given with
    bool done = false;
  };
  struct Stage {
    bool started = false;
    bool done = false;
    uint64_t watermark = 0;          // train
    uint64_t version = 0;            // train: the number of what it publishes; 0: the learner has not asked for it
    v1::WeightVersion published;     // train; without a path: not yet
    std::map<uint64_t, Task> tasks;  // rollout: by first episode
    std::map<std::string, double> metrics;
    std::set<uint64_t> quarantined;  // rollout: episodes
    double task_seconds = 0;
    double elapsed_seconds = 0;  // while a coordinator was up
    std::string detail;
  };
  std::map<std::string, Stage> stages;
  double elapsed_seconds = 0;
  uint64_t attempts = 0;
};

// RUN/journal.jsonl: one event a line, on disk before the event has any effect. Thread-compatible: the caller locks.
class Journal {
 public:
  // Makes the file or reads it. A torn last line, which had no effect, is cut off; damage before that is an error.
  static Result<std::unique_ptr<Journal>> Open(const std::string& path);
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;
  ~Journal();

  const JournalState& state() const { return state_; }  // as Open found it

  void StageStarted(const std::string& stage, uint64_t watermark);
  void StageGiven(const std::string& stage, uint64_t version);
  void TaskGiven(const std::string& stage, uint64_t first_episode, const JournalState::Task& task);
  void TaskDone(const std::string& stage, uint64_t first_episode, uint64_t generated_tokens, double seconds);
  void Quarantined(const std::string& stage, uint64_t episode);
  void Published(const std::string& stage, const v1::WeightVersion& weights);
  void StageDone(const std::string& stage, const std::map<std::string, double>& metrics, const std::string& detail);
  void Ended(const std::string& state, const std::string& error);

  // A full disk or the like: the first failed write. Nothing is written after it.
  const Status& status() const { return status_; }

 private:
  Journal(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  // `fields`: the event's own, a JSON object's text.
  void Append(const std::string& event, const std::string& fields);

  int fd_;
  std::string path_;
  JournalState state_;
  Status status_;
};

}  // namespace quern
