#include "learner/checkpoints.h"

#include <gtest/gtest.h>

#include <numeric>

#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "base/strings.h"
#include "base/thread_pool.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/trainer.h"
#include "methods/sft.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

class CheckpointsTest : public ::testing::Test {
 protected:
  CheckpointsTest() { SetLogLevel(LogLevel::kError); }
  ~CheckpointsTest() override { SetLogLevel(LogLevel::kInfo); }

  StageCheckpoints Make(const std::string& key = "key", const std::string& stage = "online-1:q_sft") {
    return StageCheckpoints({.directory = folder_.path(), .every_steps = 5, .every_seconds = 0, .keep = 2}, stage, key);
  }
  std::vector<CheckpointArray> Arrays() { return {{"weights", weights_}, {"moments", moments_}}; }
  void Fill(uint8_t value) {
    std::iota(weights_.begin(), weights_.end(), value);
    std::fill(moments_.begin(), moments_.end(), value);
  }
  Status Save(int64_t step) {
    Fill(static_cast<uint8_t>(step));
    return Make().Save({.step = step, .state = StrCat("{\"tokens\":", 10 * step, "}")}, Arrays());
  }
  // The step that is gone on from, 0 for none; what is loaded is checked.
  int64_t Loaded(const std::string& key = "key") {
    Fill(99);
    const auto mark = Make(key).Load(Arrays());
    EXPECT_TRUE(mark.ok()) << mark.status().message();
    if (!mark.ok() || !*mark) {
      EXPECT_EQ(moments_[0], 99);
      return 0;
    }
    const auto weights = weights_, moments = moments_;
    Fill(static_cast<uint8_t>((*mark)->step));
    EXPECT_EQ(weights, weights_);
    EXPECT_EQ(moments, moments_);
    EXPECT_EQ((*mark)->state, StrCat("{\"tokens\":", 10 * (*mark)->step, "}"));
    return (*mark)->step;
  }
  std::string Path(int64_t step, const std::string& file) {
    return JoinPath(folder_.path(), StrCat("online-1%3Aq_sft/step-", step, "/", file));
  }

  TemporaryFolder folder_;
  std::vector<uint8_t> weights_ = std::vector<uint8_t>(3000), moments_ = std::vector<uint8_t>(500);
};

TEST_F(CheckpointsTest, TheNewestIsLoadedAndTheLastTwoAreKept) {
  EXPECT_EQ(Loaded(), 0);
  for (const int64_t step : {5, 10, 15}) ASSERT_TRUE(Save(step).ok());
  EXPECT_EQ(Loaded(), 15);
  EXPECT_FALSE(PathExists(Path(5, "weights")));
  EXPECT_TRUE(PathExists(Path(10, "weights")));
  ASSERT_TRUE(Save(15).ok());  // again, after a resumption
  EXPECT_EQ(Loaded(), 15);
  EXPECT_EQ(Loaded("other options"), 0);
  ASSERT_TRUE(Make().Remove().ok());
  EXPECT_EQ(Loaded(), 0);
}

TEST_F(CheckpointsTest, ABitFlippedAnywhereIsFoundAndTheOneBeforeIsUsed) {
  Random random(3);
  for (const char* file : {"weights", "moments", "manifest.json"}) {
    for (int i = 0; i < 30; ++i) {
      ASSERT_TRUE(Make().Remove().ok());
      ASSERT_TRUE(Save(5).ok());
      ASSERT_TRUE(Save(10).ok());
      std::string bytes = *ReadFile(Path(10, file));
      bytes[random.Below(bytes.size())] ^= static_cast<char>(1 << random.Below(8));
      ASSERT_TRUE(WriteFileAtomic(Path(10, file), bytes).ok());
      EXPECT_EQ(Loaded(), 5) << file;
    }
  }
}

TEST_F(CheckpointsTest, CutOffMissingAndHalfWrittenOnesAreNotUsed) {
  for (const char* file : {"weights", "moments", "manifest.json"}) {
    for (const double left : {0.0, 0.5, 0.999, -1.0}) {
      ASSERT_TRUE(Make().Remove().ok());
      ASSERT_TRUE(Save(5).ok());
      ASSERT_TRUE(Save(10).ok());
      const std::string bytes = *ReadFile(Path(10, file));
      if (left < 0) {
        ASSERT_TRUE(RemoveTree(Path(10, file)).ok());
      } else {
        const auto size = static_cast<size_t>(left * static_cast<double>(bytes.size()));
        ASSERT_TRUE(WriteFileAtomic(Path(10, file), bytes.substr(0, size)).ok());
      }
      EXPECT_EQ(Loaded(), 5) << file << " " << left;
    }
  }
  // Killed while it was written: the folder never got its name.
  ASSERT_TRUE(Save(10).ok());
  ASSERT_TRUE(RenamePath(JoinPath(folder_.path(), "online-1%3Aq_sft/step-10"),
                         JoinPath(folder_.path(), "online-1%3Aq_sft/step-10.unfinished"))
                  .ok());
  EXPECT_EQ(Loaded(), 5);
  EXPECT_FALSE(PathExists(JoinPath(folder_.path(), "online-1%3Aq_sft/step-10.unfinished")));
}

TEST_F(CheckpointsTest, DueBySteps) {
  StageCheckpoints checkpoints = Make();
  EXPECT_FALSE(checkpoints.Due(4));
  EXPECT_TRUE(checkpoints.Due(5));
  ASSERT_TRUE(checkpoints.Save({.step = 5, .state = "{}"}, Arrays()).ok());
  EXPECT_FALSE(checkpoints.Due(9));
  EXPECT_TRUE(checkpoints.Due(10));
  StageCheckpoints none({.directory = ""}, "sft", "");
  EXPECT_FALSE(none.Due(1000));
}

TEST(FolderNames, HoldEveryStageName) {
  EXPECT_EQ(FolderName("filtered_sft-2.x"), "filtered_sft-2.x");
  EXPECT_EQ(FolderName("online-1:q_sft"), "online-1%3Aq_sft");
  EXPECT_EQ(FolderName("../a b"), "%2E.%2Fa%20b");
}

// A trainer that is put back to an earlier moment ends with the very bits of one that was not.
TEST(TrainerState, GoesOnToTheBit) {
  ModelConfig config;
  config.vocab_size = 31;
  config.hidden_size = 16;
  config.intermediate_size = 32;
  config.layers = 1;
  config.heads = config.kv_heads = 2;
  config.head_dim = 8;
  config.initializer_range = 0.2;
  ThreadPool pool(2);
  const std::unique_ptr<Ops> ops = NewCpuOps(&pool);
  OptimizerOptions optimizer;
  optimizer.max_steps = 8;
  const SftObjective objective;
  const auto batch = [](int64_t step) {
    TrainingBatch out;
    std::vector<int32_t> ids(12);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((7 * i + static_cast<size_t>(step)) % 31);
    out.tokens.Add(ids.data(), 12, 0, nullptr);
    out.episodes = 1;
    for (int64_t i = 0; i + 1 < 12; ++i) {
      LossRow row;
      row.row = i;
      row.target = ids[static_cast<size_t>(i) + 1];
      out.rows.push_back(row);
    }
    return out;
  };
  const auto make = [&](uint64_t seed) {
    auto trainer = std::make_unique<Trainer>(*ops, config, DType::kBf16, 64, TrainerOptions{});
    trainer->parameters().Initialize(config, seed);
    QUERN_CHECK(trainer->Begin(optimizer, 0.05f).ok());
    return trainer;
  };
  const auto bytes = [](const TensorView& view) {
    return std::string(reinterpret_cast<const char*>(view.Row<uint8_t>(0)),
                       static_cast<size_t>(view.cols * DTypeSize(view.dtype)));
  };
  const auto whole = make(1);
  std::map<std::string, std::string> middle;
  for (int64_t step = 0; step < 8; ++step) {
    if (step == 3)
      for (const auto& [name, view] : whole->State()) middle[name] = bytes(view);
    ASSERT_TRUE(whole->Step(batch(step), objective, nullptr).ok());
  }
  ASSERT_EQ(middle.size(), 4u);
  const auto resumed = make(2);
  for (const auto& [name, view] : resumed->State())
    std::memcpy(view.Row<uint8_t>(0), middle.at(name).data(), middle.at(name).size());
  ASSERT_TRUE(resumed->Resume(3).ok());
  for (int64_t step = 3; step < 8; ++step) ASSERT_TRUE(resumed->Step(batch(step), objective, nullptr).ok());
  for (size_t i = 0; i < whole->State().size(); ++i)
    EXPECT_EQ(bytes(whole->State()[i].second), bytes(resumed->State()[i].second)) << whole->State()[i].first;
}

}  // namespace
}  // namespace quern
