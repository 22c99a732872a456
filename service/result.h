#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "replay/replay.h"
#include "service/job.h"
#include "service/plan.h"

namespace quern {

// What the store knows of one policy's episodes, and what the learner measured of its weights.
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
  std::optional<double> heldout_loss;  // nats a token on held-out real records
  double heldout_std_error = 0;
  std::optional<double> log_prob_difference;  // that the job's compression made, an agent's token; of played policies
  // Of `collapse`.
  std::string rule;
  int64_t real_records = 0;
  double omega = 0;  // the generated part of the loss that the rule came to
};

// Of rows without episodes the held-out loss counts, and lower is better.
struct RequirementOutcome {
  Requirement wanted;
  double difference = 0;  // better - than, in the sense of better
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

// Mean of Trajectory::log_prob_difference over the tokens that the agent wrote in the first 1,000 records with `tag`;
// nothing where none was played under a compression.
Result<std::optional<double>> LogProbDifference(Replay& store, const std::string& tag, Deadline deadline);
Result<ResultRow> MeasureTag(Replay& store, const PlannedRow& row, Deadline deadline);
using StageMetrics = std::map<std::string, std::map<std::string, double>>;  // by stage
Result<JobResult> MeasureJob(Replay& store, const Job& job, const Plan& plan, const StageMetrics& stages,
                             Deadline deadline);

// The "table" and "requirements" of result.json; FormatTable is the same for people, several lines.
std::string ResultToJson(const JobResult& result);
Result<JobResult> ResultFromJson(const std::string& json);
std::string FormatTable(const JobResult& result);

}  // namespace quern
