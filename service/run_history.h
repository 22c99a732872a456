#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "service/run_directory.h"

namespace quern {

// The whole lines that have been appended to a file since the last call.
class LineTail {
 public:
  explicit LineTail(std::string path) : path_(std::move(path)) {}
  std::vector<std::string> Next();

 private:
  std::string path_;
  uint64_t offset_ = 0;
};

// What a run's files tell of its past: journal.jsonl, metrics.jsonl, events.jsonl and result.json. Not thread-safe.
class RunHistory {
 public:
  struct Stage {
    bool started = false, given = false, done = false;
    double begin = 0, end = 0;  // unix seconds
    uint64_t episodes_done = 0;
    uint64_t last_step = 0;  // that was logged
    std::string detail;
    std::map<std::string, double> metrics;
    std::map<uint64_t, uint64_t> tasks;  // episodes by first episode, of those not done
  };
  struct Event {
    double time = 0;
    std::string kind;  // job | stage | weights | problem
    std::string text;
  };
  // What the learner logged in one stage; NaN where a number was not logged at a step.
  struct Curve {
    std::vector<int64_t> steps;
    std::vector<double> times;  // unix seconds; NaN where the line has none
    std::map<std::string, std::vector<float>> numbers;
  };

  explicit RunHistory(const Run& run);
  // Reads what is new.
  void Refresh();

  const std::map<std::string, Stage>& stages() const { return stages_; }
  const std::vector<Event>& events() const { return events_; }
  const std::vector<std::pair<std::string, Curve>>& curves() const { return curves_; }  // in order of their beginning
  const std::string& result_json() const { return result_json_; }
  double begin() const { return begin_; }  // unix seconds; 0: nothing has happened
  double last() const { return last_; }    // when the last thing happened
  uint64_t attempts() const { return attempts_; }
  const std::string& ended() const { return ended_; }  // the state that the last coordinator left; empty: it left none
  const std::string& error() const { return error_; }

 private:
  void ApplyJournal(const std::string& line);
  void ApplyMetrics(const std::string& line);
  void ApplyEvent(const std::string& line);
  Curve& CurveOf(const std::string& stage);

  std::string result_path_;
  LineTail journal_, metrics_, problems_;
  std::map<std::string, Stage> stages_;
  std::vector<Event> events_;
  std::vector<std::pair<std::string, Curve>> curves_;
  std::string result_json_;
  double begin_ = 0, last_ = 0;
  uint64_t attempts_ = 0;
  std::string ended_, error_;
};

}  // namespace quern
