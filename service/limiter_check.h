#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "service/plan.h"

namespace quern {

// Records that the rate limiter of a train stage wants stored before its last step; 0: it has none.
uint64_t RecordsNeeded(const PlannedStage& train);

// The stages whose records it may wait for: training data, played or imported by stages that do not wait for it.
std::vector<const PlannedStage*> StagesThatFeed(const Plan& plan, const PlannedStage& train);

// "needs 640 records, but only 320 can be stored before it is done": the stage and the play that waits for it would
// wait for each other.
std::string Starved(uint64_t needed, uint64_t most);

// Whether a job can starve, as far as is known before imports are read. Empty: it cannot; else the text and the key of
// the job that is to blame.
std::string FindStarvation(const Plan& plan, std::string& key);

}  // namespace quern
