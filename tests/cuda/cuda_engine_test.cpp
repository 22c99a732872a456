// Generation on the GPU's backend, with keys and values in the device's memory: a token's log-probability is the same
// number in decoding, in chunked and shared prompts, after a preemption and in the trainer, to the bit; and near the
// CPU's.

#include <algorithm>
#include <cmath>
#include <map>

#include "actors/engine.h"
#include "compute/cpu/cpu_ops.h"
#include "compute/cuda/cuda_ops.h"
#include "learner/trainer.h"
#include "methods/policy_log_probs.h"
#include "tests/actors/same_completion.h"
#include "tests/compute/test_tensors.h"
#include "tests/cuda/backend.h"
#include "tests/model/small_model.h"

namespace quern {
namespace {

constexpr int64_t kPositions = 160;
constexpr int32_t kVocabulary = 48;
constexpr int64_t kNewTokens = 4;
constexpr int32_t kNever = 7;

// Heads of 64: those that tensor cores attend with.
ModelConfig EngineModel(bool selective) {
  ModelConfig config = SmallModel(kVocabulary, 0.1);
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 64;
  config.selective_attention = selective;
  config.selection_gain = selective;
  return config;
}

struct Case {
  const char* name;
  Recipe recipe;
  bool selective = false;
  double tolerance = 0;  // of a log-probability, between the backends
};

class CudaEngineTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    device_ = NewDeviceUnderTest();
    if (device_ == nullptr) GTEST_SKIP() << WhyNoBackend();
    config_ = EngineModel(GetParam().selective);
  }

  std::shared_ptr<const ServedModel> Model(Ops& ops, uint64_t seed) const {
    Parameters parameters(config_);
    parameters.Initialize(config_, seed);
    for (int64_t layer = 0; config_.selection_gain && layer < config_.layers; ++layer)
      *parameters.View(SelectionGainName(layer)).Row<float>(0) = 0.5f;
    auto model = std::make_shared<ServedModel>(ops, config_, GetParam().recipe, kPositions);
    QUERN_CHECK(model->weights.Load(parameters.Source()).ok());
    return model;
  }

  std::shared_ptr<const Policy> OneModel(Ops& ops, uint64_t seed, int32_t never = -1) const {
    auto policy = std::make_shared<Policy>();
    policy->label = "test";
    policy->models = {Model(ops, seed)};
    policy->head = std::make_shared<SingleModelHead>(never);
    return policy;
  }

  // One whose first page becomes full while it is continued, and two that begin alike for more than a page.
  static std::vector<std::vector<int32_t>> Prompts() {
    Random random(3);
    const auto draw = [&](size_t count) {
      std::vector<int32_t> ids(count);
      for (int32_t& id : ids) id = static_cast<int32_t>(random.Below(kVocabulary));
      return ids;
    };
    const std::vector<int32_t> beginning = draw(66);
    std::vector<std::vector<int32_t>> prompts = {draw(62), beginning, beginning};
    prompts[1].insert(prompts[1].end(), {2, 3, 4, 6});
    prompts[2].push_back(11);
    return prompts;
  }

  static GenerateOptions Options(size_t index) {
    GenerateOptions options;
    options.max_new_tokens = kNewTokens;
    options.seed = index;
    options.sampling.temperature = index == 0 ? 0.0f : 1.0f;
    options.top_log_probs = 2;
    options.sampling_masks = true;
    return options;
  }

  // The others come when the first has been read.
  static std::vector<Completion> Run(Engine& engine, const std::vector<std::vector<int32_t>>& prompts) {
    std::map<int64_t, size_t> index;
    std::vector<Completion> out(prompts.size());
    const auto begin = [&](size_t i) {
      const int64_t id = engine.Open();
      index[id] = i;
      engine.Extend(id, prompts[i]);
      engine.Generate(id, Options(i));
    };
    begin(0);
    for (bool first = true; engine.HasWork(); first = false) {
      auto step = engine.Step();
      QUERN_CHECK(step.ok(), step.status().ToString());
      for (size_t i = 1; first && i < prompts.size(); ++i) begin(i);
      for (Completion& c : *step) {
        engine.Close(c.sequence);
        out[index.at(c.sequence)] = std::move(c);
      }
    }
    return out;
  }

  // What the trainer says of the generated tokens; of a policy that never takes `never`.
  std::vector<float> Scored(Trainer& trainer, const std::vector<int32_t>& prompt, const Completion& completion,
                            int32_t never = -1) const {
    std::vector<int32_t> ids = prompt;
    TrainingBatch batch;
    std::vector<int64_t> rows;
    for (const int32_t id : completion.tokens) {
      rows.push_back(static_cast<int64_t>(ids.size()) - 1);
      batch.rows.push_back({.row = rows.back(), .target = id});
      ids.push_back(id);
    }
    batch.tokens.Add(ids.data(), static_cast<int64_t>(ids.size()), 0, nullptr);
    if (never < 0) return trainer.Score(batch);
    Arena arena(device_->memory());
    const PolicyModel model{.transformer = &trainer.transformer(), .weights = &trainer.weights()};
    return PolicyLogProbs(*device_, {&model, 1}, SingleModelHead(never), batch.tokens, rows, completion.tokens, arena);
  }

  std::unique_ptr<Trainer> NewTrainer(uint64_t seed) {
    auto trainer = std::make_unique<Trainer>(*device_, config_, GetParam().recipe, kPositions, TrainerOptions{});
    Parameters parameters(config_);
    parameters.Initialize(config_, seed);
    for (int64_t layer = 0; config_.selection_gain && layer < config_.layers; ++layer)
      *parameters.View(SelectionGainName(layer)).Row<float>(0) = 0.5f;
    QUERN_CHECK(trainer->CopyFrom(parameters.Source()).ok());
    QUERN_CHECK(trainer->Begin({}, std::nullopt).ok());
    return trainer;
  }

  std::unique_ptr<Ops> device_;
  ModelConfig config_;
};

TEST_P(CudaEngineTest, ATokenHasOneLogProbabilityHoweverItIsComputed) {
  const auto policy = OneModel(*device_, 1);
  const int64_t page = policy->models[0]->transformer.kv_layout().page_bytes();
  const std::vector<std::vector<int32_t>> prompts = Prompts();
  std::vector<std::vector<Completion>> runs;
  int64_t shared = 0, preempted = 0;
  for (const EngineOptions& options :
       {EngineOptions{.share_prefixes = false}, EngineOptions{.max_step_tokens = 48, .kv_bytes = 64 * page},
        EngineOptions{.kv_bytes = 10 * page / 3}}) {
    Engine engine(*device_, options);
    engine.SetPolicy(policy);
    runs.push_back(Run(engine, prompts));
    EXPECT_EQ(engine.used_pages(), 0);
    shared += engine.shared_tokens();
    preempted += engine.preemptions();
  }
  EXPECT_GE(shared, 64);
  EXPECT_GT(preempted, 0);
  // Steps of decoding were graphs.
  EXPECT_GT(static_cast<CudaOps&>(*device_).recorder().replayed(), 0);
  const auto trainer = NewTrainer(1);
  for (size_t i = 0; i < prompts.size(); ++i) {
    SCOPED_TRACE(i);
    const Completion& expected = runs[0][i];
    ASSERT_EQ(expected.tokens.size(), static_cast<size_t>(kNewTokens));
    for (size_t r = 1; r < runs.size(); ++r) ExpectSame(runs[r][i], expected);
    EXPECT_EQ(Scored(*trainer, prompts[i], expected), expected.log_probs);
    for (size_t t = 0; t < expected.tokens.size(); ++t) {
      ASSERT_EQ(expected.top[t].size(), 2u);
      EXPECT_GE(expected.top[t][0].log_prob, expected.log_probs[t]);
      // The first is greedy; of the others nothing is cut.
      const std::vector<int32_t> drawable =
          i == 0 ? std::vector<int32_t>{expected.top[t][0].id} : std::vector<int32_t>();
      EXPECT_EQ(expected.masks[t], drawable);
      EXPECT_TRUE(i != 0 || expected.tokens[t] == drawable[0]);
    }
  }
}

TEST_P(CudaEngineTest, LogProbabilitiesAreNearTheCpus) {
  ThreadPool pool(1);
  const auto cpu = NewCpuOps(&pool);
  const std::vector<int32_t> text = Prompts()[1];
  std::vector<std::vector<float>> log_probs;
  for (Ops* ops : {device_.get(), cpu.get()}) {
    Engine engine(*ops, {});
    engine.SetPolicy(OneModel(*ops, 1));
    log_probs.push_back(engine.WholeLogProbs(text));
  }
  ASSERT_EQ(log_probs[0].size(), text.size() - 1);
  for (size_t i = 0; i < log_probs[0].size(); ++i)
    EXPECT_NEAR(log_probs[0][i], log_probs[1][i], GetParam().tolerance) << i;
}

INSTANTIATE_TEST_SUITE_P(Cuda, CudaEngineTest,
                         ::testing::Values(Case{"fp32", DType::kF32, false, 2e-4},
                                           Case{"bf16", DType::kBf16, false, 4e-2},
                                           Case{"fp8", Recipe::Fp8(), false, 0.2},
                                           Case{"bf16_selective", DType::kBf16, true, 4e-2}),
                         [](const auto& test) { return test.param.name; });

// Heads that do more than copy: an id that is never taken, and two models.
class CudaHeadTest : public CudaEngineTest {};

TEST_P(CudaHeadTest, WhatTheHeadNeverTakesIsLeftOutAsInTheTrainer) {
  const auto policy = OneModel(*device_, 1, kNever);
  Engine engine(*device_, {});
  engine.SetPolicy(policy);
  const std::vector<std::vector<int32_t>> prompts = {{1, 2, 3}, {4}};
  const std::vector<Completion> completions = Run(engine, prompts);
  const auto trainer = NewTrainer(1);
  for (size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(std::count(completions[i].tokens.begin(), completions[i].tokens.end(), kNever), 0);
    EXPECT_EQ(Scored(*trainer, prompts[i], completions[i], kNever), completions[i].log_probs);
    EXPECT_NE(Scored(*trainer, prompts[i], completions[i]), completions[i].log_probs);
  }
}

TEST_P(CudaHeadTest, TwoModelsMakeOnePolicyInOneStep) {
  QSftOptions q;
  q.reserved_token = kNever;
  q.beta = 4;
  auto policy = std::make_shared<Policy>();
  policy->label = "q_sft";
  policy->models = {Model(*device_, 1), Model(*device_, 2)};
  policy->head = std::make_shared<QSftHead>(q);
  Engine engine(*device_, {.kv_bytes = int64_t{1} << 22});
  engine.SetPolicy(policy);
  const std::vector<std::vector<int32_t>> prompts = {{1, 2, 3}, {4}};
  const std::vector<Completion> completions = Run(engine, prompts);
  for (size_t i = 0; i < prompts.size(); ++i) {
    std::vector<int32_t> ids = prompts[i];
    ids.insert(ids.end(), completions[i].tokens.begin(), completions[i].tokens.end());
    const std::vector<float> whole = engine.WholeLogProbs(ids);
    EXPECT_EQ(std::vector<float>(whole.end() - kNewTokens, whole.end()), completions[i].log_probs);
  }
}

INSTANTIATE_TEST_SUITE_P(Cuda, CudaHeadTest, ::testing::Values(Case{"bf16", DType::kBf16, false, 0}),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace quern
