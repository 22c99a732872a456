#include "actors/engine.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/random.h"
#include "base/thread_pool.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/trainer.h"
#include "model/compressed_cache.h"
#include "tests/actors/same_completion.h"

namespace quern {
namespace {

ModelConfig SmallConfig() {
  ModelConfig config;
  config.vocab_size = 97;
  config.hidden_size = 48;
  config.intermediate_size = 96;
  config.layers = 2;
  config.heads = 3;
  config.kv_heads = 3;
  config.head_dim = 16;
  config.initializer_range = 0.2;
  return config;
}

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() : pool_(2), ops_(NewCpuOps(&pool_)), config_(SmallConfig()) {}

  std::shared_ptr<const ServedModel> Model(uint64_t seed) {
    Parameters parameters(config_);
    parameters.Initialize(config_, seed);
    auto model = std::make_shared<ServedModel>(*ops_, config_, DType::kBf16, 200);
    QUERN_CHECK(model->weights.Load(parameters.Source()).ok());
    return model;
  }
  std::shared_ptr<const Policy> OneModel(uint64_t seed) {
    auto policy = std::make_shared<Policy>();
    policy->label = "test";
    policy->models = {Model(seed)};
    policy->head = std::make_shared<SingleModelHead>();
    return policy;
  }

  struct Request {
    std::vector<int32_t> prompt;
    uint64_t seed = 0;
    int64_t length = 0;
  };
  std::vector<Request> Requests(int count) const {
    Random random(11);
    std::vector<Request> out;
    for (int i = 0; i < count; ++i) {
      Request r;
      r.prompt.resize(1 + random.Below(90));
      for (int32_t& id : r.prompt) id = static_cast<int32_t>(random.Below(97));
      r.seed = static_cast<uint64_t>(i);
      r.length = static_cast<int64_t>(5 + random.Below(60));
      out.push_back(r);
    }
    return out;
  }

  // All requests at once; completions by request.
  std::vector<Completion> Run(Engine& engine, const std::vector<Request>& requests) {
    std::map<int64_t, size_t> index;
    std::vector<Completion> out(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      const int64_t id = engine.Open();
      index[id] = i;
      engine.Extend(id, requests[i].prompt);
      GenerateOptions options;
      options.max_new_tokens = requests[i].length;
      options.seed = requests[i].seed;
      engine.Generate(id, options);
    }
    while (engine.HasWork()) {
      Result<std::vector<Completion>> step = engine.Step();
      QUERN_CHECK(step.ok(), step.status().ToString());
      for (Completion& c : *step) {
        const size_t i = index.at(c.sequence);
        engine.Close(c.sequence);
        out[i] = std::move(c);
      }
    }
    return out;
  }

  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  ModelConfig config_;
};

class EngineAttentionTest : public EngineTest, public ::testing::WithParamInterface<bool> {
 protected:
  EngineAttentionTest() { config_.selective_attention = GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Attention, EngineAttentionTest, ::testing::Bool());

TEST_P(EngineAttentionTest, ACompletionDoesNotDependOnTheBatchTheStepSizeOrTheCacheBudget) {
  const std::vector<Request> requests = Requests(17);
  const auto policy = OneModel(1);
  Engine together(*ops_, {.max_step_tokens = 4096});
  together.SetPolicy(policy);
  const std::vector<Completion> expected = Run(together, requests);

  const int64_t page = policy->models[0]->transformer.kv_layout().page_bytes();
  for (const EngineOptions& options :
       {EngineOptions{.max_step_tokens = 16}, EngineOptions{.max_step_tokens = 33, .kv_bytes = 7 * page}}) {
    Engine engine(*ops_, options);
    engine.SetPolicy(policy);
    const std::vector<Completion> got = Run(engine, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(i);
      ExpectSame(got[i], expected[i]);
    }
  }
  for (size_t i = 0; i < requests.size(); i += 5) {
    Engine alone(*ops_, {});
    alone.SetPolicy(policy);
    ExpectSame(Run(alone, {requests[i]})[0], expected[i]);
  }
}

TEST_P(EngineAttentionTest, NorUnderACompression) {
  const std::vector<Request> requests = Requests(17);
  const auto plain = OneModel(1);
  auto policy = std::make_shared<Policy>(*plain);
  policy->compression = {.budgets = {}, .key_channels = 5, .query_window = 8, .recent = 8};
  if (GetParam()) policy->compression.budgets = {20, 50};
  Engine together(*ops_, {.max_step_tokens = 4096});
  together.SetPolicy(policy);
  const std::vector<Completion> expected = Run(together, requests);
  // Drops what was read without the compression.
  Engine before(*ops_, {});
  before.SetPolicy(plain);
  const int64_t id = before.Open();
  before.Extend(id, requests[2].prompt);
  GenerateOptions options;
  options.max_new_tokens = requests[2].length;
  options.seed = requests[2].seed;
  before.Generate(id, options);
  ASSERT_TRUE(before.Step().ok());
  before.Close(id);
  before.SetPolicy(policy);
  ExpectSame(Run(before, {requests[2]})[0], expected[2]);

  const int64_t most =
      CompressedCache::MostBytes(plain->models[0]->transformer.kv_layout(), policy->compression, 90, 155);
  for (const EngineOptions& engine_options :
       {EngineOptions{.max_step_tokens = 16}, EngineOptions{.max_step_tokens = 33, .kv_bytes = 2 * most}}) {
    Engine engine(*ops_, engine_options);
    engine.SetPolicy(policy);
    const std::vector<Completion> got = Run(engine, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(i);
      ExpectSame(got[i], expected[i]);
    }
  }
  Engine dense(*ops_, {});
  dense.SetPolicy(plain);
  const std::vector<Completion> other = Run(dense, requests);
  int differ = 0;
  for (size_t i = 0; i < requests.size(); ++i) differ += other[i].log_probs != expected[i].log_probs;
  EXPECT_GT(differ, 3);
  Engine small(*ops_, {.kv_bytes = 1000});
  small.SetPolicy(policy);
  small.Open();
  small.Extend(1, requests[0].prompt);
  small.Generate(1, options);
  EXPECT_NE(small.Step().status().message().find("does not hold a single sequence"), std::string::npos);
}

TEST_P(EngineAttentionTest, TheTrainerComputesTheVeryNumbersTheEngineReturned) {
  Trainer trainer(*ops_, config_, DType::kBf16, 200, {});
  trainer.parameters().Initialize(config_, 4);
  ASSERT_TRUE(trainer.Begin({}, std::nullopt).ok());
  Engine engine(*ops_, {.max_step_tokens = 40});
  engine.SetPolicy(OneModel(4));
  for (const Request& request : Requests(6)) {
    const Completion completion = Run(engine, {request})[0];
    std::vector<int32_t> ids = request.prompt;
    ids.insert(ids.end(), completion.tokens.begin(), completion.tokens.end());
    TrainingBatch batch;
    batch.tokens.Add(ids.data(), static_cast<int64_t>(ids.size()), 0, nullptr);
    for (size_t i = request.prompt.size(); i < ids.size(); ++i) {
      LossRow row;
      row.row = static_cast<int64_t>(i) - 1;
      row.target = ids[i];
      batch.rows.push_back(row);
    }
    const std::vector<float> scored = trainer.Score(batch);
    ASSERT_EQ(scored.size(), completion.log_probs.size());
    EXPECT_EQ(std::memcmp(scored.data(), completion.log_probs.data(), scored.size() * sizeof(float)), 0);
  }
}

TEST_F(EngineTest, TurnsContinueASequenceAndANewPolicyReadsItAgain) {
  const auto generate = [](Engine& engine, int64_t id, int64_t length) {
    GenerateOptions options;
    options.max_new_tokens = length;
    options.sampling.temperature = 0;
    engine.Generate(id, options);
    while (true) {
      auto step = engine.Step();
      QUERN_CHECK(step.ok());
      if (!step->empty()) return (*step)[0];
    }
  };
  const std::vector<int32_t> prompt = {5, 6, 7}, answer = {9, 10};
  Engine engine(*ops_, {});
  engine.SetPolicy(OneModel(1));
  const int64_t id = engine.Open();
  engine.Extend(id, prompt);
  const Completion first = generate(engine, id, 8);
  engine.Extend(id, answer);
  engine.SetPolicy(OneModel(2));
  const Completion second = generate(engine, id, 8);

  Engine fresh(*ops_, {});
  fresh.SetPolicy(OneModel(2));
  const int64_t other = fresh.Open();
  std::vector<int32_t> all = prompt;
  all.insert(all.end(), first.tokens.begin(), first.tokens.end());
  all.insert(all.end(), answer.begin(), answer.end());
  fresh.Extend(other, all);
  ExpectSame(generate(fresh, other, 8), second);
}

TEST_F(EngineTest, StopsAtStopIdsStopTextsLengthAndTheLastPosition) {
  Engine engine(*ops_, {});
  engine.SetPolicy(OneModel(3));
  const auto run = [&](const GenerateOptions& options, size_t prompt) {
    const int64_t id = engine.Open();
    engine.Extend(id, std::vector<int32_t>(prompt, 1));
    engine.Generate(id, options);
    Completion out;
    while (engine.HasWork()) {
      auto step = engine.Step();
      QUERN_CHECK(step.ok());
      for (Completion& c : *step) out = c;
    }
    engine.Close(id);
    return out;
  };
  GenerateOptions options;
  options.max_new_tokens = 12;
  const Completion whole = run(options, 4);
  EXPECT_EQ(whole.tokens.size(), 12u);
  EXPECT_EQ(whole.finish_reason, FinishReason::kLength);
  options.stop_ids = {whole.tokens[5]};
  const Completion stopped = run(options, 4);
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);
  EXPECT_EQ(stopped.tokens.back(), whole.tokens[5]);
  options.stop_ids.clear();
  options.stop = [](std::span<const int32_t> ids) { return ids.size() == 3; };
  EXPECT_EQ(run(options, 4).tokens.size(), 3u);
  options.stop = nullptr;
  const Completion context = run(options, 195);
  EXPECT_EQ(context.finish_reason, FinishReason::kContext);
  EXPECT_EQ(context.tokens.size(), 5u);
}

TEST_F(EngineTest, ABudgetBelowOneSequenceIsAnError) {
  Engine engine(*ops_, {.max_step_tokens = 512, .kv_bytes = 1});
  engine.SetPolicy(OneModel(1));
  const int64_t id = engine.Open();
  engine.Extend(id, std::vector<int32_t>(100, 1));
  engine.Generate(id, {});
  const auto step = engine.Step();
  EXPECT_EQ(step.status().code(), StatusCode::kResourceExhausted);
  EXPECT_NE(step.status().message().find("test"), std::string::npos);
}

}  // namespace
}  // namespace quern
