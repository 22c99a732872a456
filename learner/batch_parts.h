#pragma once

#include <cstdint>
#include <vector>

#include "methods/training_batch.h"

namespace quern {

// Cuts by whole episodes into `count` batches of about as many rows, some of which may be empty.
std::vector<TrainingBatch> CutBatch(const TrainingBatch& batch, int64_t count);

// Splits by whole episodes into batches of at most max_tokens rows (an episode longer than that stands alone).
std::vector<TrainingBatch> SplitBatch(const TrainingBatch& batch, int64_t max_tokens);

}  // namespace quern
