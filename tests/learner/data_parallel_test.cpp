#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <future>
#include <thread>

#include "base/random.h"
#include "base/strings.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/nccl_communicator.h"
#include "learner/trainer.h"
#include "methods/sft.h"
#include "tests/learner/rank_group.h"

namespace quern {
namespace {

class Collectives : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, Collectives, testing::Values(1, 2, 3, 4));

// More than one message's worth, of which no order but the tree's gives the same sums.
TEST_P(Collectives, SumInTheOrderOfTheTree) {
  const int ranks = GetParam();
  constexpr int64_t kCount = 300'001;
  const auto value = [](int rank, int64_t i) {
    return static_cast<float>(Random(static_cast<uint64_t>(rank), static_cast<uint64_t>(i)).Normal());
  };
  std::vector<std::vector<float>> inputs(static_cast<size_t>(ranks));
  for (int r = 0; r < ranks; ++r)
    for (int64_t i = 0; i < kCount; ++i) inputs[static_cast<size_t>(r)].push_back(value(r, i));
  const std::function<float(int64_t, int64_t, int64_t)> tree = [&](int64_t lo, int64_t hi, int64_t i) -> float {
    if (hi - lo == 1) return inputs[static_cast<size_t>(lo)][static_cast<size_t>(i)];
    const int64_t split = TreeSplit(lo, hi);
    return tree(lo, split, i) + tree(split, hi, i);
  };
  std::vector<int64_t> bounds = {0};  // slices of all kinds: an empty one as well
  for (int r = 1; r < ranks; ++r) bounds.push_back(r == 1 ? 0 : kCount * r / ranks);
  bounds.push_back(kCount);
  RankGroup(ranks).Run([&](int rank, PeerCommunicator& group) {
    const auto own = static_cast<size_t>(rank);
    Tensor x(DType::kF32, 1, kCount);
    std::copy(inputs[own].begin(), inputs[own].end(), x.Row<float>(0));
    ASSERT_TRUE(group.AllReduce(x, Communicator::Reduction::kSum).ok());
    for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(x.Row<float>(0)[i], tree(0, ranks, i)) << i;

    std::copy(inputs[own].begin(), inputs[own].end(), x.Row<float>(0));
    ASSERT_TRUE(group.ReduceScatter(x, bounds).ok());
    for (int64_t i = bounds[own]; i < bounds[own + 1]; ++i) ASSERT_EQ(x.Row<float>(0)[i], tree(0, ranks, i)) << i;
    ASSERT_TRUE(group.AllGather(x, bounds).ok());
    for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(x.Row<float>(0)[i], tree(0, ranks, i)) << i;

    std::copy(inputs[own].begin(), inputs[own].end(), x.Row<float>(0));
    ASSERT_TRUE(group.AllReduce(x, Communicator::Reduction::kMax).ok());
    for (int64_t i = 0; i < kCount; ++i) {
      float most = inputs[0][static_cast<size_t>(i)];
      for (const auto& input : inputs) most = std::max(most, input[static_cast<size_t>(i)]);
      ASSERT_EQ(x.Row<float>(0)[i], most);
    }
  });
}

TEST_P(Collectives, BroadcastGatherTextsAndBarrier) {
  const int ranks = GetParam(), root = ranks - 1;
  RankGroup(ranks).Run([&](int rank, PeerCommunicator& group) {
    Tensor x(DType::kU8, 1, 3'000'000);
    if (rank == root) std::memset(x.Row<uint8_t>(0), 7, 3'000'000);
    ASSERT_TRUE(group.Broadcast(x, root).ok());
    EXPECT_EQ(x.Row<uint8_t>(0)[0], 7);
    EXPECT_EQ(x.Row<uint8_t>(0)[2'999'999], 7);
    std::vector<int64_t> bounds;
    for (int r = 0; r <= ranks; ++r) bounds.push_back(r * 5);
    Tensor slice(DType::kF32, 1, 5), whole(DType::kF32, 1, 5 * ranks);
    for (int i = 0; i < 5; ++i) slice.Row<float>(0)[i] = static_cast<float>(10 * rank + i);
    ASSERT_TRUE(group.Gather(slice, whole, bounds, 0).ok());
    for (int i = 0; rank == 0 && i < 5 * ranks; ++i)
      EXPECT_EQ(whole.Row<float>(0)[i], static_cast<float>(i / 5 * 10 + i % 5));
    const auto texts = group.AllGatherTexts(StrCat("rank ", rank));
    ASSERT_TRUE(texts.ok());
    for (int r = 0; r < ranks; ++r) EXPECT_EQ((*texts)[static_cast<size_t>(r)], StrCat("rank ", r));
    std::string text = rank == root ? "from the root" : "";
    ASSERT_TRUE(group.BroadcastText(text, root).ok());
    EXPECT_EQ(text, "from the root");
    EXPECT_TRUE(group.Barrier().ok());
  });
}

TEST(Collectives, ASilentPeerIsNamed) {
  const RankGroup group(2, std::chrono::milliseconds(200));
  const auto first = group.Join(0), second = group.Join(1);
  const Status status = first->Barrier();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_NE(status.message().find("barrier"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("rank 1"), std::string::npos) << status.message();
}

TEST(Collectives, DifferentCallsAndSizesAreNoticed) {
  RankGroup(2).Run([](int rank, PeerCommunicator& group) {
    Tensor x(DType::kF32, 1, 8);
    std::string text = "x";
    const Status status =
        rank == 0 ? group.AllReduce(x, Communicator::Reduction::kSum) : group.AllGatherTexts(text).status();
    EXPECT_EQ(status.code(), StatusCode::kInternal) << status.ToString();
    EXPECT_NE(status.message().find("different ways"), std::string::npos) << status.message();
  });
  RankGroup(2).Run([](int rank, PeerCommunicator& group) {
    Tensor x(DType::kF32, 1, rank == 0 ? 8 : 12);
    const Status status = group.Broadcast(x, 0);
    EXPECT_EQ(status.ok(), rank == 0);
    if (rank == 1) {
      EXPECT_NE(status.message().find("expected 48"), std::string::npos) << status.message();
    }
  });
}

TEST(Collectives, WaitingEndsWhenAskedTo) {
  std::atomic<bool> stop{true};
  PeerGroupOptions options{.rank = 0, .addresses = {"inproc://stop-0", "inproc://stop-1"}};
  options.stop = &stop;
  options.patience = std::chrono::milliseconds(10);
  auto group = PeerGroup::Join(options);
  ASSERT_TRUE(group.ok());
  EXPECT_EQ((*group)->Receive(1, "x").status().code(), StatusCode::kCancelled);
}

TEST(Nccl, IsLookedForWhenItIsWantedAndSaysWhatIsMissing) {
  RankGroup(1).Run([](int, PeerCommunicator& group) {
    ThreadPool pool(1);
    const auto ops = NewCpuOps(&pool);
    const auto missing = NewNcclCommunicator(group, *ops, {.library = "libno-such-nccl.so.2"});
    EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
    EXPECT_NE(missing.status().message().find("libno-such-nccl.so.2"), std::string::npos);
    const auto other = NewNcclCommunicator(group, *ops, {.library = "libm.so.6"});
    EXPECT_NE(other.status().message().find("not NCCL 2"), std::string::npos) << other.status().ToString();
  });
}

struct Trained {
  std::vector<std::vector<uint8_t>> state;  // of rank 0: the whole
  std::vector<double> losses, norms;
  int64_t moments = 0;  // of rank 0
};

std::vector<std::vector<uint8_t>> Copy(Trainer& trainer) {
  std::vector<std::vector<uint8_t>> out;
  for (const auto& [name, view] : trainer.State())
    out.emplace_back(view.Row<uint8_t>(0), view.Row<uint8_t>(0) + view.cols * DTypeSize(view.dtype));
  return out;
}

// `steps` after what `from` is, if anything.
Trained Train(int ranks, int64_t shards, const Recipe& recipe, const OptimizerMemory& memory, int64_t first,
              int64_t last, const std::vector<std::vector<uint8_t>>* from = nullptr) {
  Trained out;
  RankGroup(ranks).Run([&](int rank, PeerCommunicator& group) {
    ThreadPool pool(1);
    const auto ops = NewCpuOps(&pool);
    const ModelConfig config = SmallModel();
    Trainer trainer(*ops, config, recipe, config.max_positions,
                    {.optimizer = {},
                     .memory = memory,
                     .max_micro_batch_tokens = 50,
                     .ranks = ranks == 1 ? nullptr : &group,
                     .shards = shards});
    trainer.parameters().Initialize(config, 3);
    OptimizerOptions optimizer;
    optimizer.learning_rate = 1e-2f;
    optimizer.seed = 5;
    optimizer.max_grad_norm = 0.5f;
    ASSERT_TRUE(trainer.Begin(optimizer, std::nullopt).ok());
    if (from != nullptr) {
      size_t i = 0;
      for (const auto& [name, view] : trainer.State()) {
        ASSERT_EQ((*from)[i].size(), static_cast<size_t>(view.cols * DTypeSize(view.dtype))) << name;
        std::memcpy(view.data, (*from)[i].data(), (*from)[i].size());
        ++i;
      }
      ASSERT_TRUE(trainer.Resume(first).ok());
    }
    const SftObjective objective;
    for (int64_t step = first; step < last; ++step) {
      const auto report = trainer.Step(Episodes(static_cast<uint64_t>(step)), objective, nullptr);
      ASSERT_TRUE(report.ok()) << report.status().ToString();
      if (rank != 0) continue;
      out.losses.push_back(report->loss);
      out.norms.push_back(report->grad_norm);
    }
    ASSERT_TRUE(trainer.CollectState().ok());
    if (rank == 0) {
      out.moments = trainer.Memory().moments;
      out.state = Copy(trainer);
    }
    trainer.ReleaseState();
  });
  return out;
}

struct Case {
  const char* name;
  Recipe recipe;
  OptimizerMemory memory;
};

class DataParallel : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(
    Recipes, DataParallel,
    testing::Values(Case{"fp32", DType::kF32, {}}, Case{"bf16", DType::kBf16, {}},
                    Case{"fp8", Recipe::Fp8(), {.fp8_moments = true, .block = 64}},
                    Case{"fp8_matrix", Recipe::Fp8(), {.fp8_moments = true, .block = 0, .bf16_masters = true}},
                    Case{"fp8_delayed", Recipe::Fp8Delayed(), {.fp8_moments = true}}),
    [](const auto& test) { return std::string(test.param.name); });

TEST_P(DataParallel, OneTwoAndFourRanksAreEqualToTheBit) {
  const Case& c = GetParam();
  const Trained one = Train(1, 4, c.recipe, c.memory, 0, 4);
  ASSERT_EQ(one.losses.size(), 4u);
  for (const int ranks : {2, 4}) {
    const Trained several = Train(ranks, 4, c.recipe, c.memory, 0, 4);
    EXPECT_EQ(several.losses, one.losses) << ranks;
    EXPECT_EQ(several.norms, one.norms) << ranks;
    EXPECT_EQ(several.state, one.state) << ranks;
    // The embedding is a third of this small model and stays whole.
    EXPECT_LT(several.moments, one.moments * (ranks == 2 ? 65 : 45) / 100) << ranks;
  }
}

TEST_P(DataParallel, AnotherNumberOfRanksGoesOnFromACheckpoint) {
  const Case& c = GetParam();
  const Trained undisturbed = Train(1, 4, c.recipe, c.memory, 0, 4);
  const Trained half = Train(4, 4, c.recipe, c.memory, 0, 2);
  EXPECT_EQ(Train(2, 4, c.recipe, c.memory, 2, 4, &half.state).state, undisturbed.state);
  EXPECT_EQ(Train(1, 4, c.recipe, c.memory, 2, 4, &half.state).state, undisturbed.state);
}

TEST(DataParallel, ThreeRanksAndNearlyTheSameAsUndivided) {
  const Trained whole = Train(1, 1, DType::kF32, {}, 0, 3), three = Train(3, 3, DType::kF32, {}, 0, 3);
  EXPECT_EQ(three.state, Train(1, 3, DType::kF32, {}, 0, 3).state);
  for (size_t i = 0; i < whole.losses.size(); ++i) {
    EXPECT_NEAR(three.losses[i], whole.losses[i], 1e-5);
    EXPECT_NEAR(three.norms[i], whole.norms[i], 1e-4 * whole.norms[i]);
  }
}

}  // namespace
}  // namespace quern
