#include "learner/batch_parts.h"

#include <functional>

namespace quern {

namespace {

// Episode after episode into the last batch, after `next(batches, rows of the episode)` has had its say.
std::vector<TrainingBatch> Regroup(const TrainingBatch& batch,
                                   const std::function<void(std::vector<TrainingBatch>&, const SequenceRows&)>& next) {
  std::vector<TrainingBatch> out;
  size_t row = 0;
  for (const SequenceRows& sequence : batch.tokens.sequences) {
    next(out, sequence);
    TrainingBatch& part = out.back();
    const int64_t row_shift = part.tokens.rows() - sequence.row;
    const int64_t index_shift = static_cast<int64_t>(part.rows.size()) - static_cast<int64_t>(row);
    part.tokens.Add(batch.tokens.ids.data() + sequence.row, sequence.count, 0, nullptr);
    ++part.episodes;
    for (; row < batch.rows.size() && batch.rows[row].row < sequence.row + sequence.count; ++row) {
      LossRow moved = batch.rows[row];
      moved.row += row_shift;
      if (moved.next >= 0) moved.next += index_shift;
      part.rows.push_back(moved);
    }
  }
  return out;
}

}  // namespace

std::vector<TrainingBatch> SplitBatch(const TrainingBatch& batch, int64_t max_tokens) {
  return Regroup(batch, [max_tokens](std::vector<TrainingBatch>& out, const SequenceRows& sequence) {
    if (out.empty() || out.back().tokens.rows() + sequence.count > max_tokens) out.emplace_back();
  });
}

std::vector<TrainingBatch> CutBatch(const TrainingBatch& batch, int64_t count) {
  std::vector<TrainingBatch> out = Regroup(batch, [&](std::vector<TrainingBatch>& parts, const SequenceRows& sequence) {
    const int64_t middle = sequence.row + sequence.count / 2;
    const auto part = static_cast<size_t>(middle * count / batch.tokens.rows());
    if (parts.size() <= part) parts.resize(part + 1);
  });
  out.resize(static_cast<size_t>(count));
  return out;
}

}  // namespace quern
