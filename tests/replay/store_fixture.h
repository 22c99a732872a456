#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "replay/store.h"
#include "tests/replay/trajectories.h"
#include "tests/transport/temporary_folder.h"

namespace quern {

inline v1::SampleRequest MakeSample(uint64_t watermark, uint32_t count, uint64_t seed = 1, uint64_t step = 0) {
  v1::SampleRequest request;
  request.set_watermark(watermark);
  request.set_count(count);
  request.set_seed(seed);
  request.set_step(step);
  return request;
}

inline std::vector<std::string> Uids(const v1::SampleReply& reply) {
  std::vector<std::string> uids;
  for (const std::string& bytes : reply.trajectories()) {
    v1::Trajectory t;
    EXPECT_TRUE(t.ParseFromString(bytes));
    uids.push_back(t.uid());
  }
  return uids;
}

// A store in a folder of its own.
class StoreTest : public ::testing::Test {
 protected:
  void SetUp() override { Open(); }
  void Open(StoreOptions options = {}) {
    store_.reset();
    auto opened = Store::Open(JoinPath(folder_.path(), "replay"), std::move(options));
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    store_ = std::move(*opened);
  }
  void ExpectSound(uint64_t records) {
    const auto report = store_->Verify();
    ASSERT_TRUE(report.ok()) << report.status().message();
    EXPECT_EQ(report->records, records);
    for (const std::string& problem : report->problems) ADD_FAILURE() << problem;
  }
  TemporaryFolder folder_;
  std::unique_ptr<Store> store_;
};

}  // namespace quern
