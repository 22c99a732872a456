#pragma once

#include <vector>

#include "learner/batch_source.h"
#include "learner/trainer.h"

namespace quern {

struct HeldoutLoss {
  double loss = 0;       // mean negative log-likelihood of the agent's tokens, nats
  double std_error = 0;  // over records
  int64_t records = 0;
};

// Real records that no stage trains on, ready to be scored again and again.
class HeldoutSet {
 public:
  // `options.tags` names them. At most `limit` records; none is no error.
  static Result<HeldoutSet> Load(const DrawOptions& options, int64_t limit);
  bool empty() const { return batches_.empty(); }
  // Under the trainer's current weights.
  HeldoutLoss Measure(Trainer& trainer) const;

 private:
  std::vector<TrainingBatch> batches_;
};

}  // namespace quern
