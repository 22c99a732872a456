#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/random.h"
#include "base/strings.h"
#include "learner/host_communicator.h"
#include "learner/trainer.h"
#include "tests/model/small_model.h"

namespace quern {

// A group of ranks, each on a thread of its own.
class RankGroup {
 public:
  explicit RankGroup(int ranks, Duration timeout = std::chrono::seconds(60)) {
    static int groups = 0;
    for (int r = 0; r < ranks; ++r) options_.addresses.push_back(StrCat("inproc://group-", groups, "-", r));
    options_.timeout = timeout;
    ++groups;
  }
  int ranks() const { return static_cast<int>(options_.addresses.size()); }
  std::unique_ptr<PeerCommunicator> Join(int rank) const {
    PeerGroupOptions options = options_;
    options.rank = rank;
    auto group = PeerGroup::Join(options);
    EXPECT_TRUE(group.ok()) << group.status().ToString();
    return std::make_unique<PeerCommunicator>(std::move(*group));
  }
  // Calls body(rank, communicator) on every rank.
  void Run(const std::function<void(int, PeerCommunicator&)>& body) const {
    std::vector<std::unique_ptr<PeerCommunicator>> joined;
    for (int r = 0; r < ranks(); ++r) joined.push_back(Join(r));
    std::vector<std::thread> threads;
    for (int r = 0; r < ranks(); ++r) threads.emplace_back([&, r] { body(r, *joined[static_cast<size_t>(r)]); });
    for (std::thread& thread : threads) thread.join();
  }

 private:
  PeerGroupOptions options_;
};

// What data-parallel tests train.
inline ModelConfig SmallModel() {
  ModelConfig config = SmallModel(40, 0.02);
  config.max_positions = 32;
  return config;
}

// Eleven episodes of different lengths.
inline TrainingBatch Episodes(uint64_t seed) {
  TrainingBatch batch;
  Random random(seed, 1);
  for (int e = 0; e < 11; ++e) {
    const auto count = static_cast<int64_t>(6 + random.Below(20));
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random.Below(40)));
    const int64_t row0 = batch.tokens.rows();
    batch.tokens.Add(ids.data(), count, 0, nullptr);
    ++batch.episodes;
    for (int64_t i = 2; i + 1 < count; ++i) {
      LossRow row;
      row.row = row0 + i;
      row.target = ids[static_cast<size_t>(i) + 1];
      batch.rows.push_back(row);
    }
  }
  return batch;
}

}  // namespace quern
