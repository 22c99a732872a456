#include "learner/rollout_check.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/thread_pool.h"
#include "compute/cpu/cpu_ops.h"
#include "methods/policy_log_probs.h"
#include "tests/model/small_model.h"

namespace quern {
namespace {

constexpr int32_t kReserved = 0;
const std::vector<int32_t> kIds = {5, 9, 2, 7, 7, 1};
constexpr size_t kPrompt = 2;

template <typename T>
std::string Bytes(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

class RolloutCheckTest : public ::testing::TestWithParam<Recipe> {
 protected:
  RolloutCheckTest() : pool_(2), ops_(NewCpuOps(&pool_)) {
    trainer_ = std::make_unique<Trainer>(*ops_, config_, GetParam(), 64, TrainerOptions());
    trainer_->parameters().Initialize(config_, 3);
    QUERN_CHECK(trainer_->Begin({}, std::nullopt).ok());
  }

  // Of the tokens after the prompt, NaN for those in it.
  std::vector<float> Scored() {
    TrainingBatch batch;
    batch.tokens.Add(kIds.data(), std::ssize(kIds), 0, nullptr);
    for (size_t i = kPrompt; i < kIds.size(); ++i) {
      LossRow row;
      row.row = static_cast<int64_t>(i) - 1;
      row.target = kIds[i];
      batch.rows.push_back(row);
    }
    std::vector<float> out(kPrompt, std::numeric_limits<float>::quiet_NaN());
    for (const float log_prob : trainer_->Score(batch)) out.push_back(log_prob);
    return out;
  }
  static v1::Trajectory Episode(const std::string& uid, const std::vector<float>& log_probs) {
    v1::Trajectory t;
    t.set_uid(uid);
    t.set_token_ids(Bytes(kIds));
    t.set_log_probs(Bytes(log_probs));
    return t;
  }
  static v1::Trajectory Chain(const std::string& uid, const std::vector<float>& log_probs) {
    v1::Trajectory t;
    t.set_uid(uid);
    for (int i = 0; i < 2; ++i) {
      v1::ChainStage& stage = *t.mutable_chain()->add_stages();
      stage.set_prompt_token_ids(Bytes(std::vector<int32_t>(kIds.begin(), kIds.begin() + kPrompt)));
      stage.set_token_ids(Bytes(std::vector<int32_t>(kIds.begin() + kPrompt, kIds.end())));
      stage.set_log_probs(Bytes(std::vector<float>(log_probs.begin() + kPrompt, log_probs.end())));
    }
    return t;
  }
  RolloutDifference Compare(const std::vector<v1::Trajectory>& records, const Weights* behaviour = nullptr,
                            int32_t reserved = -1) {
    return CompareRollouts(*ops_, *trainer_, behaviour, {}, reserved, records);
  }

  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  ModelConfig config_ = SmallModel(11);
  std::unique_ptr<Trainer> trainer_;
};

TEST_P(RolloutCheckTest, FindsTheLastBitAndTheRecordThatHasIt) {
  std::vector<float> log_probs = Scored();
  RolloutDifference same = Compare({Episode("a", log_probs), Chain("b", log_probs)});
  EXPECT_EQ(same.largest, 0);
  EXPECT_EQ(same.tokens, 4 + 2 * 4);
  log_probs[3] = std::nextafter(log_probs[3], 0.0f);
  for (const v1::Trajectory& other : {Episode("c", log_probs), Chain("c", log_probs)}) {
    const RolloutDifference found = Compare({Episode("a", Scored()), other});
    EXPECT_GT(found.largest, 0);
    EXPECT_LT(found.largest, 1e-6);
    EXPECT_EQ(found.worst, "c");
  }
  // Other weights, and an id that was forbidden, give other numbers.
  EXPECT_GT(Compare({Episode("a", Scored())}, nullptr, kReserved).largest, 1e-4);
  const std::vector<float> before = Scored();
  trainer_->parameters().Initialize(config_, 4);
  ASSERT_TRUE(trainer_->Begin({}, std::nullopt).ok());
  EXPECT_GT(Compare({Episode("a", before)}).largest, 1e-3);
}

TEST_P(RolloutCheckTest, OfAPairOfModelsComputesThePolicyThatBothMake) {
  Parameters other(config_);
  other.Initialize(config_, 8);
  Weights behaviour(*ops_, config_, GetParam(), false);
  ASSERT_TRUE(behaviour.Load(other.Source()).ok());
  QSftOptions q;
  q.support_epsilon = 1e-6f;
  q.support_top_p = 1;
  // The log-probability that one model gives each id after the first `length` tokens.
  const auto row = [&](const Weights& weights, int64_t length, int32_t reserved) {
    std::vector<double> out;
    const PolicyModel model = {&trainer_->transformer(), &weights};
    Arena arena;
    for (int32_t id = 0; id < config_.vocab_size; ++id) {
      TokenBatch batch;
      batch.Add(kIds.data(), length, 0, nullptr);
      const int64_t last = length - 1;
      const SingleModelHead head(reserved);
      out.push_back(
          static_cast<double>(PolicyLogProbs(*ops_, {&model, 1}, head, batch, {&last, 1}, {&id, 1}, arena).front()));
    }
    return out;
  };
  double expected = 0;
  std::vector<float> stored(kIds.size(), std::numeric_limits<float>::quiet_NaN());
  for (size_t i = kPrompt; i < kIds.size(); ++i) {
    stored[i] = 0;  // the difference is then the log-probability itself
    const std::vector<double> b = row(behaviour, static_cast<int64_t>(i), kReserved);
    const std::vector<double> v = row(trainer_->weights(), static_cast<int64_t>(i), -1);
    std::vector<double> policy;
    double total = 0;
    for (size_t id = 0; id < b.size(); ++id) {
      const double pi = std::exp(b[id]);
      policy.push_back(id == kReserved ? 0 : pi * std::exp(16 * std::min(1.0, std::exp(v[id]) / pi)));
      total += policy.back();
    }
    expected -= std::log(policy[static_cast<size_t>(kIds[i])] / total);
  }
  v1::Trajectory record = Episode("pair", stored);
  record.mutable_sampling()->set_q_sft_beta(16);
  record.mutable_sampling()->set_rule("ratio");
  const RolloutDifference pair = CompareRollouts(*ops_, *trainer_, &behaviour, q, kReserved, {record});
  EXPECT_EQ(pair.tokens, 4);
  EXPECT_NEAR(pair.sum, expected, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Recipes, RolloutCheckTest,
                         ::testing::Values(Recipe(DType::kBf16), Recipe(DType::kF32), Recipe::Fp8()),
                         [](const auto& tested) { return std::string(RecipeName(tested.param)); });

}  // namespace
}  // namespace quern
