#pragma once

#include <array>
#include <future>
#include <string>
#include <vector>

#include "learner/batch_builder.h"
#include "learner/mixture.h"
#include "replay/replay.h"

namespace quern {

// Which records a stage draws from, and how its batches are made of them.
struct DrawOptions {
  Replay* replay = nullptr;
  const Tokenizer* tokenizer = nullptr;
  BatchOptions batch;
  std::vector<std::string> tags;
  std::vector<std::string> without_tags;
  uint64_t watermark = 0;
  uint64_t seed = 0;
  double top_fraction = 0;
  v1::Selector selector = v1::SELECTOR_UNIFORM;
  double priority_exponent = 0;
  uint64_t window = 0;                          // only the newest so many of each class; 0: all
  std::array<uint64_t, kDataClasses> limits{};  // only the first so many records of a class; 0: all
  Duration timeout = std::chrono::seconds(30);
};

// How many records were stored by now: beyond the watermark too, and those that retention has taken since.
Result<uint64_t> CountRecords(const DrawOptions& options);

// What there is to draw from, by class.
using DataSummary = std::array<v1::PartSummary, kDataClasses>;
Result<DataSummary> DescribeData(const DrawOptions& options);

// One batch: a pure function of the store up to the watermark, the seed and the draws.
Result<TrainingBatch> FetchBatch(const DrawOptions& options, const std::array<DrawPlan::Draw, kDataClasses>& draws);

// A stage's batches in order; fetches that of step s + 1 while step s computes.
class BatchSource {
 public:
  BatchSource(const DrawOptions& options, DrawPlan plan, int64_t steps)
      : options_(options), plan_(std::move(plan)), steps_(steps) {}
  Result<TrainingBatch> Next(int64_t step);

 private:
  std::future<Result<TrainingBatch>> Start(int64_t step);

  DrawOptions options_;
  DrawPlan plan_;
  int64_t steps_;
  std::future<Result<TrainingBatch>> pending_;  // its destructor waits
};

}  // namespace quern
