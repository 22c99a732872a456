// Data-parallel training in a device's memory: the emulated backend, with a stand-in for NCCL (fake_nccl.cpp).

#include <dlfcn.h>

#include <cmath>
#include <functional>
#include <numeric>

#include "compute/cpu/cpu_ops.h"
#include "compute/cuda/cuda_ops.h"
#include "learner/nccl_communicator.h"
#include "methods/sft.h"
#include "tests/cuda/backend.h"
#include "tests/cuda/fake_nccl.h"
#include "tests/learner/rank_group.h"

namespace quern {
namespace {

const char* const kLibrary = QUERN_FAKE_NCCL;

class Nccl : public testing::Test {
 protected:
  void SetUp() override {
    library_ = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(library_, nullptr) << dlerror();
    Fail(0);
    Eager(false);
    (void)TakeCount();
  }
  void TearDown() override { EXPECT_STREQ(Function<decltype(FakeNcclTakeComplaint)>("FakeNcclTakeComplaint")(), ""); }
  int TakeCount() { return Function<decltype(FakeNcclTakeCount)>("FakeNcclTakeCount")(); }
  void Eager(bool is) { Function<decltype(FakeNcclEager)>("FakeNcclEager")(is ? 1 : 0); }
  void Fail(int code) { Function<decltype(FakeNcclFail)>("FakeNcclFail")(code); }
  template <typename F>
  F* Function(const char* name) {
    auto* function = reinterpret_cast<F*>(dlsym(library_, name));
    QUERN_CHECK(function != nullptr, name);
    return function;
  }
  void* library_ = nullptr;
};

std::unique_ptr<Communicator> Join(PeerCommunicator& host, Ops& ops, Duration timeout = std::chrono::seconds(60)) {
  auto nccl = NewNcclCommunicator(host, ops, {.library = kLibrary, .timeout = timeout});
  EXPECT_TRUE(nccl.ok()) << nccl.status().ToString();
  return nccl.ok() ? std::move(*nccl) : nullptr;
}

struct Trained {
  std::vector<std::vector<uint8_t>> state;  // of rank 0: the whole
  std::vector<double> losses, norms;
};

// On the device, or on the CPU; with several ranks over NCCL, or over the host.
Trained Train(bool device, int ranks, int64_t shards, const Recipe& recipe, const OptimizerMemory& memory,
              int64_t first, int64_t last, const std::vector<std::vector<uint8_t>>* from = nullptr) {
  Trained out;
  RankGroup(ranks).Run([&](int rank, PeerCommunicator& host) {
    ThreadPool pool(1);
    const auto ops = device ? NewDeviceUnderTest() : NewCpuOps(&pool);
    std::unique_ptr<Communicator> nccl;
    if (device && ranks > 1) nccl = Join(host, *ops);
    const ModelConfig config = SmallModel();
    Trainer trainer(*ops, config, recipe, config.max_positions,
                    {.optimizer = {},
                     .memory = memory,
                     .max_micro_batch_tokens = 50,
                     .ranks = ranks == 1 ? nullptr : &host,
                     .device_ranks = nccl.get(),
                     .shards = shards});
    trainer.parameters().Initialize(config, 3);
    OptimizerOptions optimizer;
    optimizer.learning_rate = 1e-3f;
    optimizer.seed = 5;
    optimizer.max_grad_norm = 0.5f;
    ASSERT_TRUE(trainer.Begin(optimizer, std::nullopt).ok());
    if (from != nullptr) {
      size_t i = 0;
      for (const auto& [name, view] : trainer.State()) {
        const TensorView bytes{const_cast<uint8_t*>((*from)[i++].data()), view.dtype, 1, view.cols, view.cols};
        ops->Upload(bytes, view);
      }
      ASSERT_TRUE(trainer.Resume(first).ok());
    }
    for (int64_t step = first; step < last; ++step) {
      const auto report = trainer.Step(Episodes(static_cast<uint64_t>(step)), SftObjective(), nullptr);
      ASSERT_TRUE(report.ok()) << report.status().ToString();
      if (rank != 0) continue;
      out.losses.push_back(report->loss);
      out.norms.push_back(report->grad_norm);
    }
    ASSERT_TRUE(trainer.CollectState().ok());
    if (rank == 0) {
      for (const auto& [name, view] : trainer.State()) {
        std::vector<uint8_t> bytes(static_cast<size_t>(view.cols * DTypeSize(view.dtype)));
        const TensorView to{bytes.data(), view.dtype, 1, view.cols, view.cols};
        ops->Download(view, to);
        out.state.push_back(std::move(bytes));
      }
    }
    trainer.ReleaseState();
  });
  return out;
}

// What two ranks sum has no order, so that NCCL's is the host's.
TEST_F(Nccl, TwoRanksTrainAsOneDoes) {
  const OptimizerMemory memory = {.fp8_moments = true, .block = 64};
  const Trained one = Train(true, 1, 2, Recipe::Fp8(), memory, 0, 2);
  EXPECT_EQ(TakeCount(), 0);
  for (const bool eager : {false, true}) {
    Eager(eager);
    const Trained two = Train(true, 2, 2, Recipe::Fp8(), memory, 0, 2);
    // Of each step: gradients of the head, two layers, at whose border the slices meet, and the embedding; one of
    // scales, two of weights, on two ranks.
    EXPECT_EQ(TakeCount(), 2 * 2 * 7);
    EXPECT_EQ(two.losses, one.losses);
    EXPECT_EQ(two.norms, one.norms);
    EXPECT_EQ(two.state, one.state);
  }
  // Two shards on a rank: what joins their sums is done part by part, too.
  const Trained whole = Train(true, 1, 4, DType::kBf16, {}, 0, 2);
  EXPECT_EQ(Train(true, 2, 4, DType::kBf16, {}, 0, 2).state, whole.state);
}

// What a rank passes on, and when.
class Watched : public Communicator {
 public:
  explicit Watched(Communicator& inner) : inner_(inner) {}
  std::function<void(const TensorView& x)> begins;

  int rank() const override { return inner_.rank(); }
  int ranks() const override { return inner_.ranks(); }
  Status AllReduce(const TensorView& x, Reduction r) override { return inner_.AllReduce(x, r); }
  Status ReduceScatter(const TensorView& x, std::span<const int64_t> b) override { return inner_.ReduceScatter(x, b); }
  Status BeginReduceScatter(const TensorView& x, std::span<const int64_t> bounds) override {
    begins(x);
    return inner_.BeginReduceScatter(x, bounds);
  }
  Status Finish() override { return inner_.Finish(); }
  Status AllGather(const TensorView& x, std::span<const int64_t> b) override { return inner_.AllGather(x, b); }
  Status Broadcast(const TensorView& x, int root) override { return inner_.Broadcast(x, root); }
  Status Barrier() override { return inner_.Barrier(); }

 private:
  Communicator& inner_;
};

TEST_F(Nccl, ALayersGradientsAreReducedBeforeThoseBelowAreComputed) {
  RankGroup(2).Run([&](int, PeerCommunicator& host) {
    const auto ops = NewDeviceUnderTest();
    const auto nccl = Join(host, *ops);
    Watched watched(*nccl);
    const ModelConfig config = SmallModel();
    Trainer trainer(*ops, config, DType::kF32, config.max_positions,
                    {.optimizer = {}, .max_micro_batch_tokens = 1000, .ranks = &host, .device_ranks = &watched});
    trainer.parameters().Initialize(config, 3);
    ASSERT_TRUE(trainer.Begin({}, std::nullopt).ok());
    std::vector<int64_t> sizes;
    watched.begins = [&](const TensorView& x) {
      sizes.push_back(x.cols);
      EXPECT_GT(ops->SquaredNorm(x), 0);
      const ParameterLayout& layout = trainer.gradients().layout();
      const int64_t begun = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
      const int64_t first = layout.LayerOffset(0), left = layout.size() - begun;
      if (left > first) {
        EXPECT_EQ(ops->SquaredNorm(trainer.gradients().flat().Cols(first, left - first)), 0);
      }
    };
    ASSERT_TRUE(trainer.Step(Episodes(1), SftObjective(), nullptr).ok());
    const int64_t table = config.vocab_size * config.hidden_size,
                  layer = (trainer.gradients().layout().size() - 2 * table - config.hidden_size) / 2;
    EXPECT_EQ(sizes, (std::vector<int64_t>{config.hidden_size + table, layer, layer, table}));
  });
}

bool Has(const Status& status, const std::string& words) { return status.message().find(words) != std::string::npos; }

// One line, whatever was under way.
TEST_F(Nccl, AStepWhoseRanksFailSaysWhich) {
  for (const bool dies : {true, false}) {
    const Duration timeout = dies ? Duration(std::chrono::milliseconds(1500)) : Duration(std::chrono::seconds(60));
    RankGroup(3, timeout).Run([&](int rank, PeerCommunicator& host) {
      const auto ops = NewDeviceUnderTest();
      const auto nccl = Join(host, *ops);
      Watched watched(*nccl);
      const ModelConfig config = SmallModel();
      Trainer trainer(*ops, config, DType::kF32, config.max_positions,
                      {.optimizer = {}, .ranks = &host, .device_ranks = &watched});
      trainer.parameters().Initialize(config, 3);
      ASSERT_TRUE(trainer.Begin({}, std::nullopt).ok());
      int begun = 0;
      watched.begins = [&](const TensorView&) {
        if (!dies && rank == 0 && ++begun == 2) Fail(3);  // while the first is under way
      };
      if (dies && rank == 1) return;
      const auto report = trainer.Step(Episodes(1), SftObjective(), nullptr);
      ASSERT_FALSE(report.ok());
      const Status& status = report.status();
      EXPECT_TRUE(Has(status, dies ? "rank 1" : "reduce_scatter: NCCL: internal error")) << status.ToString();
      EXPECT_EQ(status.ToString().find('\n'), std::string::npos);
      EXPECT_FALSE(nccl->AllReduce(trainer.gradients().flat(), Communicator::Reduction::kSum).ok());
    });
  }
}

TEST_F(Nccl, RanksTrainAsThoseOnTheHostDo) {
  for (const int ranks : {2, 3}) {
    const Trained host = Train(false, ranks, ranks, DType::kF32, {}, 0, 3);
    const Trained device = Train(true, ranks, ranks, DType::kF32, {}, 0, 3);
    ASSERT_EQ(device.state.size(), host.state.size());
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_NEAR(device.losses[i], host.losses[i], 1e-5 * host.losses[i]);
      EXPECT_NEAR(device.norms[i], host.norms[i], 1e-4 * host.norms[i]);
    }
    // Parameters. Adam's first steps go by signs, so a gradient that is rounding may take a whole step of 1e-3; the
    // sums differ in their order, nothing else.
    const auto* a = reinterpret_cast<const float*>(host.state[0].data());
    const auto* b = reinterpret_cast<const float*>(device.state[0].data());
    double squares = 0, difference = 0;
    for (size_t i = 0; i < host.state[0].size() / sizeof(float); ++i) {
      squares += static_cast<double>(a[i]) * static_cast<double>(a[i]);
      difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
      ASSERT_NEAR(a[i], b[i], 6.1e-3) << i;
    }
    EXPECT_LT(std::sqrt(difference / squares), 1e-4) << ranks;
  }
}

TEST_F(Nccl, AnotherNumberOfRanksGoesOnFromACheckpoint) {
  const OptimizerMemory memory = {.fp8_moments = true, .block = 0, .bf16_masters = true};
  const Trained undisturbed = Train(true, 1, 2, Recipe::Fp8(), memory, 0, 4);
  const Trained half = Train(true, 2, 2, Recipe::Fp8(), memory, 0, 2);
  EXPECT_EQ(Train(true, 1, 2, Recipe::Fp8(), memory, 2, 4, &half.state).state, undisturbed.state);
  EXPECT_EQ(Train(true, 2, 2, Recipe::Fp8(), memory, 2, 4, &half.state).state, undisturbed.state);
}

TEST_F(Nccl, EveryCollective) {
  RankGroup(3).Run([&](int rank, PeerCommunicator& host) {
    const auto ops = NewDeviceUnderTest();
    const auto nccl = Join(host, *ops);
    const auto device = [&](std::vector<float> values) {
      const auto count = static_cast<int64_t>(values.size());
      return OnDevice(*ops, {values.data(), DType::kF32, 1, count, count});
    };
    const auto host_of = [&](const Tensor& x) {
      const Tensor copy = OnHost(*ops, x);
      return std::vector<float>(copy.Row<float>(0), copy.Row<float>(0) + copy.cols());
    };
    const auto r = static_cast<float>(rank);
    const std::vector<int64_t> bounds = {0, 2, 2, 3};  // rank 1 has nothing
    const Tensor x = device({r, 1, -r});
    ASSERT_TRUE(nccl->AllReduce(x, Communicator::Reduction::kSum).ok());
    EXPECT_EQ(host_of(x), (std::vector<float>{3, 3, -3}));
    const Tensor most = device({r, -r, 5});
    ASSERT_TRUE(nccl->AllReduce(most, Communicator::Reduction::kMax).ok());
    EXPECT_EQ(host_of(most), (std::vector<float>{2, 0, 5}));
    const Tensor scattered = device({r, 10 * r, 100 * r});
    ASSERT_TRUE(nccl->ReduceScatter(scattered, bounds).ok());
    const std::vector<float> sums = host_of(scattered);
    if (rank == 0) {
      EXPECT_EQ(sums[0], 3);
      EXPECT_EQ(sums[1], 30);
    }
    EXPECT_TRUE(rank != 2 || sums[2] == 300);
    ASSERT_TRUE(nccl->AllGather(scattered, bounds).ok());
    EXPECT_EQ(host_of(scattered), (std::vector<float>{3, 30, 300}));
    const Tensor word = device({r + 1});
    ASSERT_TRUE(nccl->Broadcast(word, 2).ok());
    EXPECT_EQ(host_of(word), (std::vector<float>{3}));
    EXPECT_TRUE(nccl->Barrier().ok());
  });
}

TEST_F(Nccl, ADeadRankIsNamedByTheDeadline) {
  const auto begin = Clock::now();
  RankGroup(2, std::chrono::milliseconds(300)).Run([&](int rank, PeerCommunicator& host) {
    const auto ops = NewDeviceUnderTest();
    const auto nccl = Join(host, *ops);
    const Tensor x(DType::kF32, 1, 4, ops->memory());
    ASSERT_TRUE(nccl->AllReduce(x, Communicator::Reduction::kSum).ok());
    if (rank == 1) return;
    const Status status = nccl->AllReduce(x, Communicator::Reduction::kSum);
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_TRUE(Has(status, "rank 1")) << status.ToString();
  });
  EXPECT_LT(SecondsSince(begin), 30);
}

TEST_F(Nccl, ARankThatDiesDuringACallIsNamedByTwoDeadlines) {
  RankGroup(2, std::chrono::milliseconds(300)).Run([&](int rank, PeerCommunicator& host) {
    const auto ops = NewDeviceUnderTest();
    const auto nccl = Join(host, *ops, std::chrono::milliseconds(200));
    const Tensor x(DType::kF32, 1, 4, ops->memory());
    if (rank == 1) {  // says that it comes, and does not
      ASSERT_TRUE(host.AllGatherTexts("all_reduce 4 fp32 sum").ok());
      return;
    }
    const Status status = nccl->AllReduce(x, Communicator::Reduction::kSum);
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_TRUE(Has(status, "all_reduce: not done within 0.2 s")) << status.ToString();
    EXPECT_TRUE(Has(status, "rank 1")) << status.ToString();
    EXPECT_FALSE(nccl->AllReduce(x, Communicator::Reduction::kSum).ok());
  });
}

TEST_F(Nccl, DifferentCallsAndErrorsAreNamed) {
  RankGroup(2).Run([&](int rank, PeerCommunicator& host) {
    const auto ops = NewDeviceUnderTest();
    const auto nccl = Join(host, *ops);
    const Tensor x(DType::kF32, 1, 4 + rank, ops->memory());
    const Status status = nccl->AllReduce(x, Communicator::Reduction::kSum);
    EXPECT_TRUE(Has(status, "all_reduce 4 fp32 sum") && Has(status, "all_reduce 5 fp32 sum")) << status.ToString();
  });
  RankGroup(2).Run([&](int rank, PeerCommunicator& host) {
    const auto ops = NewDeviceUnderTest();
    const auto nccl = Join(host, *ops);
    ASSERT_TRUE(nccl->Barrier().ok());
    if (rank == 0) Fail(3);
    ASSERT_TRUE(nccl->Barrier().ok());
    const Tensor x(DType::kF32, 1, 4, ops->memory());
    const Status status = nccl->Broadcast(x, 0);
    EXPECT_TRUE(Has(status, "broadcast: NCCL: internal error")) << status.ToString();
  });
}

}  // namespace
}  // namespace quern
