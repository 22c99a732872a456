#include "learner/batch_source.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "learner/batch_statistics.h"
#include "learner/train_stage.h"
#include "methods/sft.h"
#include "model/tokenizer/char_tokenizer.h"
#include "replay/replay.h"
#include "tests/replay/trajectories.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

class BatchSourceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteTokenizer(folder_.path(), {"a"}, {"<pad>", "</s>", "<unk>"},
                               {.bos = {}, .eos = "</s>", .unk = "<unk>", .pad = "<pad>"})
                    .ok());
    tokenizer_ = *Tokenizer::Load(folder_.path());
    OpenReplayOptions create;
    create.create_if_missing = true;
    store_ = *OpenReplay(JoinPath(folder_.path(), "replay"), create);
    // 60 real records of two agent tokens, 40 generated ones of many more, 10 to be scored only.
    for (int i = 0; i < 110; ++i) {
      const bool real = i < 60 || i >= 100;
      v1::Trajectory t = MakeTrajectory(StrCat("u", i), 0, real ? v1::SOURCE_REAL : v1::SOURCE_GENERATED, 24);
      if (!real) {
        t.mutable_turns(1)->set_begin(12);
        for (size_t k = 12; k < 24; ++k) (*t.mutable_loss_mask())[k] = 1;
        const float log_prob = -1;
        for (size_t k = 12; k < 24; ++k)
          t.mutable_log_probs()->replace(4 * k, 4, reinterpret_cast<const char*>(&log_prob), 4);
        t.set_verdict(i % 2 == 0 ? v1::VERDICT_VERIFIED : v1::VERDICT_UNVERIFIED);
      }
      t.mutable_token_ids()->back() = static_cast<char>(i % 50);  // of real records ten texts are there twice
      t.mutable_token_ids()->at(4 * 23) = static_cast<char>(i % 50);
      if (i >= 100) t.add_tags(kHeldoutTag);
      const auto inserted = store_->Insert(MakeInsert({t}), Soon());
      ASSERT_TRUE(inserted.ok()) << inserted.status().ToString();
    }
    options_.replay = store_.get();
    options_.tokenizer = tokenizer_.get();
    options_.without_tags = {kHeldoutTag};
    options_.watermark = 110;
    options_.seed = 7;
  }
  static Deadline Soon() { return Deadline::After(std::chrono::seconds(20)); }

  DrawPlan PlanOf(double share, int64_t batch, int64_t steps) {
    MixtureState state;
    const DataSummary data = *DescribeData(options_);
    for (size_t q = 0; q < kDataClasses; ++q) state.n[q] = static_cast<double>(data[q].unique());
    MixtureOptions options;
    options.share = share;
    return DrawPlan(Mixture(options, state), batch, steps);
  }

  TemporaryFolder folder_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<Replay> store_;
  DrawOptions options_;
};

TEST_F(BatchSourceTest, WhatThereIsIsCountedByClassAndText) {
  const DataSummary data = *DescribeData(options_);
  EXPECT_EQ(data[kRealData].records(), 60u);
  EXPECT_EQ(data[kRealData].unique(), 50u);
  EXPECT_EQ(data[kVerifiedData].records(), 20u);
  EXPECT_EQ(data[kHintedData].records(), 0u);
  EXPECT_EQ(data[kUnverifiedData].records(), 20u);
  EXPECT_EQ(data[kUnverifiedData].depths().at(1), 20u);
}

TEST_F(BatchSourceTest, ABatchIsAPureFunctionOfItsStep) {
  const auto contents = [](const TrainingBatch& batch) {
    std::vector<std::pair<int32_t, int>> rows;
    for (const LossRow& row : batch.rows) rows.emplace_back(row.target, row.data_class);
    return std::make_pair(batch.tokens.ids, rows);
  };
  const DrawPlan plan = PlanOf(0.3, 8, 20);
  BatchSource source(options_, plan, 20);
  std::vector<decltype(contents(TrainingBatch()))> first;
  for (int64_t step = 0; step < 20; ++step) first.push_back(contents(*source.Next(step)));
  // Later records, other requests in between, another order.
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("later")}), Soon()).ok());
  for (int64_t step = 19; step >= 0; --step) {
    const auto batch = FetchBatch(options_, plan.At(step));
    ASSERT_TRUE(batch.ok()) << batch.status().ToString();
    EXPECT_EQ(contents(*batch), first[static_cast<size_t>(step)]) << step;
  }
  DrawOptions other = options_;
  other.seed = 8;
  EXPECT_NE(contents(*FetchBatch(other, plan.At(0))), first[0]);
}

TEST_F(BatchSourceTest, TheShareOfTheLossIsExactWhateverTheLengths) {
  for (const double omega : {0.02, 0.1, 0.5}) {
    BatchSource source(options_, PlanOf(omega, 8, 30), 30);
    BatchStatistics statistics;
    for (int64_t step = 0; step < 30; ++step) {
      TrainingBatch batch = *source.Next(step);
      const Shares wanted = {1 - omega, omega / 2, 0, omega / 2};
      statistics.Add(batch, WeightRows(wanted, batch));
      double generated = 0, total = 0;
      for (const LossRow& row : batch.rows) {
        total += static_cast<double>(row.weight);
        if (row.data_class != kRealData) generated += static_cast<double>(row.weight);
      }
      EXPECT_NEAR(generated / total, omega, 1e-5);
      // And so in the gradient: a is the loss's derivative by each token's log-probability.
      RowCoefficients coefficients;
      MethodMetrics metrics;
      SftObjective().Coefficients(batch.rows, {}, static_cast<double>(batch.rows.size()), coefficients, metrics);
      double of_generated = 0;
      for (size_t i = 0; i < batch.rows.size(); ++i) {
        if (batch.rows[i].data_class != kRealData) of_generated -= static_cast<double>(coefficients.a[i]);
      }
      EXPECT_NEAR(of_generated, omega, 1e-5);
      EXPECT_NEAR(total, static_cast<double>(batch.rows.size()), 1e-3) << "the learning rate keeps its meaning";
    }
    const auto report = statistics.Report();
    EXPECT_NEAR(report.at("effective_share"), omega, 1e-9);
    EXPECT_NEAR(report.at("share_verified"), omega / 2, 1e-9);
    EXPECT_LE(report.at("real_share"), 0.75) << "by count there is more of it than by loss";
  }
}

TEST_F(BatchSourceTest, AClassThatIsMissingGivesItsShareToTheOthers) {
  std::array<DrawPlan::Draw, kDataClasses> draws{};
  draws[kRealData].count = 4;
  TrainingBatch batch = *FetchBatch(options_, draws);
  const Shares effective = WeightRows({0.5, 0, 0, 0.5}, batch);
  EXPECT_EQ(effective[kRealData], 1);
  for (const LossRow& row : batch.rows) EXPECT_EQ(row.weight, 1);
}

TEST(BatchStatistics, CountsDuplicatesAndDifferentNGrams) {
  // Texts 1 2 3, 1 2 3, 1 1 1 of class real, real, unverified.
  TrainingBatch batch;
  for (const std::vector<int32_t>& text : {std::vector<int32_t>{1, 2, 3}, {1, 2, 3}, {1, 1, 1}}) {
    const int64_t row0 = batch.tokens.rows();
    const std::vector<int32_t> ids = {0, text[0], text[1], text[2]};
    batch.tokens.Add(ids.data(), 4, 0, nullptr);
    for (int64_t i = 0; i < 3; ++i) {
      LossRow row;
      row.row = row0 + i;
      row.target = text[static_cast<size_t>(i)];
      row.data_class = batch.tokens.sequences.size() == 3 ? kUnverifiedData : kRealData;
      batch.rows.push_back(row);
    }
  }
  BatchStatistics statistics;
  statistics.Add(batch, WeightRows({0.75, 0, 0, 0.25}, batch));
  const auto report = statistics.Report();
  EXPECT_NEAR(report.at("duplicates"), 1.0 / 3, 1e-12);
  EXPECT_EQ(report.at("duplicates_generated"), 0);
  EXPECT_NEAR(report.at("distinct_1"), 3.0 / 9, 1e-12);
  EXPECT_NEAR(report.at("distinct_2"), 3.0 / 6, 1e-12);
  EXPECT_NEAR(report.at("distinct_3"), 2.0 / 3, 1e-12);
  EXPECT_NEAR(report.at("distinct_1_generated"), 1.0 / 3, 1e-12);
  EXPECT_EQ(report.at("token_entropy_generated"), 0);
  EXPECT_NEAR(report.at("real_share"), 2.0 / 3, 1e-12);
  EXPECT_NEAR(report.at("effective_share"), 0.25, 1e-12);
  EXPECT_TRUE(statistics.Report().empty()) << "it starts afresh";
}

}  // namespace
}  // namespace quern
