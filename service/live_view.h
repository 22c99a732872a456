#pragma once

#include <cstdio>
#include <map>
#include <string>

#include "base/deadline.h"
#include "proto/coordinator.pb.h"

namespace quern {

// Shows a job's progress on stderr: a table that is drawn over itself on a terminal, otherwise a line when a stage ends
// and one every ten seconds. One thread.
class LiveView {
 public:
  LiveView(std::string title, bool terminal) : title_(std::move(title)), terminal_(terminal) {}
  void Update(const v1::StatusReply& status);
  // A line that stays, above the table.
  void Note(const std::string& line);
  // Leaves the last table standing.
  void Close() { drawn_lines_ = 0; }

 private:
  void Erase();
  std::string Table(const v1::StatusReply& status) const;
  std::string Line(const v1::StatusReply& status) const;

  std::string title_;
  bool terminal_;
  int drawn_lines_ = 0;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point last_line_ = Clock::now();
  std::map<std::string, std::string> stage_states_;
  std::string last_table_;
};

}  // namespace quern
