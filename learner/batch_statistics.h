#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "learner/mixture.h"
#include "methods/training_batch.h"

namespace quern {

// Weights the rows so that each class has its share of the batch's loss, by tokens; the weights' mean is 1. What a
// class without a token in this batch would have goes to the others in proportion. Returns the shares as they came out.
Shares WeightRows(const Shares& shares, TrainingBatch& batch);

// What the batches since the last report were like. Only the agent's tokens count.
class BatchStatistics {
 public:
  void Add(const TrainingBatch& batch, const Shares& effective);
  // effective_share (of generated data in the loss), share_CLASS (of the loss), real_share (of the records), and for
  // all records and, with "_generated", those alone: duplicates (records whose text had been seen, of all),
  // distinct_1..3 (different n-grams of all), token_entropy (of the token counts, nats). Then starts afresh.
  std::map<std::string, double> Report();

 private:
  struct Texts {
    int64_t records = 0;
    std::unordered_set<uint64_t> texts;
    std::array<std::unordered_set<uint64_t>, 3> grams;
    std::array<int64_t, 3> gram_count{};
    std::unordered_map<int32_t, int64_t> tokens;

    void Add(const LossRow* rows, size_t count);
    void Report(const std::string& suffix, std::map<std::string, double>& out) const;
  };
  Texts all_;
  Texts generated_;
  Shares effective_{};
  int64_t batches_ = 0;
};

}  // namespace quern
