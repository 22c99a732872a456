#pragma once

#include <string>
#include <vector>

#include "replay/replay.h"
#include "service/job.h"
#include "service/plan.h"

namespace quern {

// What the store knows of one policy's episodes.
struct ResultRow {
  std::string policy;
  std::string label;
  uint64_t episodes = 0;
  double mean_return = 0;
  double std_error = 0;  // of the mean
  double success_rate = 0;
  double success_std_error = 0;
  std::string set;  // of evaluate.sets
  std::string arm;  // of rounds of chains
  int64_t round = 0;
};

struct RequirementOutcome {
  Requirement wanted;
  double difference = 0;  // better - than
  double std_error = 0;   // of the difference, the two samples independent
  bool met = false;
};

struct JobResult {
  std::vector<ResultRow> rows;
  std::vector<RequirementOutcome> requirements;
  bool AllMet() const;
  // An arm's name stands for its last round; of several sets the first, if none is named.
  const ResultRow* Find(const std::string& policy, const std::string& set = {}) const;
};

Result<ResultRow> MeasureTag(Replay& store, const PlannedRow& row, Deadline deadline);
Result<JobResult> MeasureJob(Replay& store, const Job& job, const Plan& plan, Deadline deadline);

// The "table" and "requirements" of result.json; FormatTable is the same for people, several lines.
std::string ResultToJson(const JobResult& result);
Result<JobResult> ResultFromJson(const std::string& json);
std::string FormatTable(const JobResult& result);

}  // namespace quern
