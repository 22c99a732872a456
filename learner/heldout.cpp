#include "learner/heldout.h"

#include <algorithm>
#include <cmath>

namespace quern {

Result<HeldoutSet> HeldoutSet::Load(const DrawOptions& options, int64_t limit) {
  constexpr uint64_t kRecords = 64;  // a batch
  QUERN_ASSIGN_OR_RETURN(const DataSummary data, DescribeData(options));
  HeldoutSet set;
  const uint64_t records = std::min<uint64_t>(data[kRealData].records(), static_cast<uint64_t>(limit));
  for (uint64_t first = 0; first < records; first += kRecords) {
    std::array<DrawPlan::Draw, kDataClasses> draws{};
    draws[kRealData] = {.first = first, .count = static_cast<uint32_t>(std::min(kRecords, records - first))};
    QUERN_ASSIGN_OR_RETURN(TrainingBatch batch, FetchBatch(options, draws));
    if (!batch.rows.empty()) set.batches_.push_back(std::move(batch));
  }
  return set;
}

HeldoutLoss HeldoutSet::Measure(Trainer& trainer) const {
  struct Record {
    double loss = 0;
    double tokens = 0;
  };
  std::vector<Record> records;
  Record total;
  for (const TrainingBatch& batch : batches_) {
    const std::vector<float> log_probs = trainer.Score(batch);
    size_t row = 0;
    for (const SequenceRows& sequence : batch.tokens.sequences) {
      Record record;
      for (; row < batch.rows.size() && batch.rows[row].row < sequence.row + sequence.count; ++row) {
        record.loss -= static_cast<double>(log_probs[row]);
        record.tokens += 1;
      }
      records.push_back(record);
      total.loss += record.loss;
      total.tokens += record.tokens;
    }
  }
  HeldoutLoss out;
  if (total.tokens == 0) return out;
  out.records = static_cast<int64_t>(records.size());
  out.loss = total.loss / total.tokens;
  // A ratio of two sums over records: the error of the record's loss beside what its length lets expect.
  double squares = 0;
  for (const Record& record : records) squares += std::pow(record.loss - out.loss * record.tokens, 2);
  out.std_error = std::sqrt(squares) / total.tokens;
  return out;
}

}  // namespace quern
