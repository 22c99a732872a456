#include "learner/batch_statistics.h"

#include <cmath>

#include "base/random.h"

namespace quern {

Shares WeightRows(const Shares& shares, TrainingBatch& batch) {
  Shares tokens{};
  for (const LossRow& row : batch.rows) tokens[row.data_class] += 1;
  double present = 0;
  for (size_t q = 0; q < kDataClasses; ++q) present += tokens[q] > 0 ? shares[q] : 0;
  Shares effective{};
  std::array<float, kDataClasses> weight{};
  const auto total = static_cast<double>(batch.rows.size());
  for (size_t q = 0; q < kDataClasses; ++q) {
    if (tokens[q] <= 0) continue;
    // Nothing but classes without a share: each token counts the same.
    effective[q] = present > 0 ? shares[q] / present : tokens[q] / total;
    weight[q] = static_cast<float>(effective[q] * total / tokens[q]);
  }
  for (LossRow& row : batch.rows) row.weight = weight[row.data_class];
  return effective;
}

void BatchStatistics::Texts::Add(const LossRow* rows, size_t count) {
  ++records;
  uint64_t text = count;
  std::array<uint64_t, 2> before{};  // hashes of the last one and two tokens
  for (size_t i = 0; i < count; ++i) {
    const auto token = static_cast<uint64_t>(rows[i].target) + 1;
    text = MixSeed(text, token);
    ++tokens[rows[i].target];
    const std::array<uint64_t, 3> hashes = {token, MixSeed(before[0], token), MixSeed(before[1], token)};
    for (size_t n = 0; n < 3 && n <= i; ++n) {
      grams[n].insert(hashes[n]);
      ++gram_count[n];
    }
    before = {hashes[0], hashes[1]};
  }
  texts.insert(text);
}

void BatchStatistics::Texts::Report(const std::string& suffix, std::map<std::string, double>& out) const {
  if (records == 0) return;
  out["duplicates" + suffix] = 1 - static_cast<double>(texts.size()) / static_cast<double>(records);
  for (size_t n = 0; n < 3; ++n) {
    if (gram_count[n] == 0) continue;
    out["distinct_" + std::to_string(n + 1) + suffix] =
        static_cast<double>(grams[n].size()) / static_cast<double>(gram_count[n]);
  }
  double entropy = 0;
  for (const auto& [token, count] : tokens) {
    const double p = static_cast<double>(count) / static_cast<double>(gram_count[0]);
    entropy -= p * std::log(p);
  }
  out["token_entropy" + suffix] = entropy;
}

void BatchStatistics::Add(const TrainingBatch& batch, const Shares& effective) {
  ++batches_;
  for (size_t q = 0; q < kDataClasses; ++q) effective_[q] += effective[q];
  size_t row = 0;
  for (const SequenceRows& sequence : batch.tokens.sequences) {
    const size_t first = row;
    while (row < batch.rows.size() && batch.rows[row].row < sequence.row + sequence.count) ++row;
    if (row == first) continue;
    all_.Add(&batch.rows[first], row - first);
    if (batch.rows[first].data_class != kRealData) generated_.Add(&batch.rows[first], row - first);
  }
}

std::map<std::string, double> BatchStatistics::Report() {
  std::map<std::string, double> out;
  if (batches_ > 0) {
    Shares mean = effective_;
    for (double& share : mean) share /= static_cast<double>(batches_);
    out["effective_share"] = GeneratedShare(mean);
    for (size_t q = kVerifiedData; q < kDataClasses; ++q) {
      if (mean[q] > 0) out[std::string("share_") + kDataClassNames[q]] = mean[q];
    }
    if (all_.records > 0) {
      out["real_share"] = 1 - static_cast<double>(generated_.records) / static_cast<double>(all_.records);
    }
    all_.Report("", out);
    generated_.Report("_generated", out);
  }
  *this = BatchStatistics();
  return out;
}

}  // namespace quern
