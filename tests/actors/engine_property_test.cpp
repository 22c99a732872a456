// Random requests in random company against the same requests alone and against the trainer: equal to the bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "actors/engine.h"
#include "base/random.h"
#include "base/thread_pool.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/trainer.h"
#include "tests/actors/same_completion.h"
#include "tests/model/small_model.h"
#include "tests/resident.h"

namespace quern {
namespace {

constexpr int64_t kPositions = 400;
constexpr int32_t kVocabulary = 61;

// One turn: what is appended to the sequence, then how it is continued.
struct Turn {
  std::vector<int32_t> tokens;
  GenerateOptions options;
};

struct Case {
  Recipe recipe;
  bool selective = false;
  Compression compression{};

  std::string Name() const {
    return std::string(RecipeName(recipe)) + (selective ? "_selective" : "") + (compression.off() ? "" : "_compressed");
  }
};

class EnginePropertyTest : public ::testing::TestWithParam<Case> {
 protected:
  EnginePropertyTest() : pool_(2), ops_(NewCpuOps(&pool_)), config_(SmallModel(kVocabulary)) {
    config_.selective_attention = GetParam().selective;
    scales_ = Tensor(DType::kF32, 1, config_.intermediate_size);
    for (int64_t c = 0; c < scales_.cols(); ++c) scales_.Row<float>(0)[c] = c % 3 == 0 ? 0.25f : 4.0f;
  }

  // The weights and, for recipes that have them, smooth scales.
  TensorSource WithScales(const Parameters& parameters) const {
    return [&parameters, this](const std::string& name) -> Result<TensorView> {
      return name.ends_with("smooth_scale") ? Result<TensorView>(scales_.view()) : parameters.View(name);
    };
  }

  std::shared_ptr<Policy> NewPolicy(uint64_t seed, const std::string& content = "") {
    Parameters parameters(config_);
    parameters.Initialize(config_, seed);
    auto model = std::make_shared<ServedModel>(*ops_, config_, GetParam().recipe, kPositions);
    QUERN_CHECK(model->weights.Load(WithScales(parameters)).ok());
    model->content = content;
    auto policy = std::make_shared<Policy>();
    policy->label = "test";
    policy->models = {model};
    policy->head = std::make_shared<SingleModelHead>();
    policy->compression = GetParam().compression;
    return policy;
  }

  std::vector<int32_t> Tokens(Random& random, uint64_t most) {
    std::vector<int32_t> ids(random.Below(most + 1));
    for (int32_t& id : ids) id = static_cast<int32_t>(random.Below(kVocabulary));
    return ids;
  }

  // Sequences of one to three turns, many of which begin alike; some begin with the very prompt of another.
  std::vector<std::vector<Turn>> Episodes(Random& random, size_t count) {
    std::vector<std::vector<int32_t>> beginnings;
    for (int i = 0; i < 3; ++i) beginnings.push_back(Tokens(random, 150));
    std::vector<std::vector<Turn>> episodes(count);
    for (size_t e = 0; e < count; ++e) {
      std::vector<Turn>& episode = episodes[e];
      const uint64_t turns = 1 + random.Below(3);
      for (uint64_t t = 0; t < turns; ++t) {
        Turn turn;
        if (t == 0 && random.Below(4) > 0) {
          turn.tokens = beginnings[random.Below(beginnings.size())];
          turn.tokens.resize(turn.tokens.size() - random.Below(turn.tokens.size() / 4 + 1));
        }
        const std::vector<int32_t> more = Tokens(random, t == 0 ? 40 : 10);
        turn.tokens.insert(turn.tokens.end(), more.begin(), more.end());
        if (t == 0) turn.tokens.push_back(1);
        if (t == 0 && e > 0 && random.Below(4) == 0) turn.tokens = episodes[random.Below(e)][0].tokens;
        GenerateOptions& o = turn.options;
        o.max_new_tokens = static_cast<int64_t>(1 + random.Below(30));
        o.seed = random.Below(1000);
        if (random.Below(3) == 0) o.sampling.temperature = 0.5f * static_cast<float>(random.Below(4));
        if (random.Below(4) == 0) o.sampling.top_k = static_cast<int32_t>(1 + random.Below(20));
        if (random.Below(4) == 0) o.sampling.top_p = 0.9f;
        if (random.Below(6) == 0) o.sampling.repetition_penalty = 1.2f;
        if (random.Below(4) == 0) o.stop_ids = {static_cast<int32_t>(random.Below(kVocabulary))};
        episode.push_back(std::move(turn));
      }
    }
    return episodes;
  }

  // Turn by turn in an engine of its own that shares nothing.
  std::vector<Completion> Alone(const std::shared_ptr<Policy>& policy, const std::vector<Turn>& episode) {
    Engine engine(*ops_, {.max_step_tokens = 4096, .share_prefixes = false});
    engine.SetPolicy(policy);
    const int64_t id = engine.Open();
    std::vector<Completion> out;
    for (const Turn& turn : episode) {
      engine.Extend(id, turn.tokens);
      engine.Generate(id, turn.options);
      while (engine.HasWork()) {
        auto step = engine.Step();
        QUERN_CHECK(step.ok(), step.status().ToString());
        for (Completion& c : *step) out.push_back(std::move(c));
      }
    }
    return out;
  }

  // The trainer's log-probabilities of every generated token of an episode, from one forward over the whole of it.
  std::vector<float> Scored(Trainer& trainer, const std::vector<Turn>& episode, const std::vector<Completion>& turns) {
    std::vector<int32_t> ids;
    TrainingBatch batch;
    for (size_t t = 0; t < turns.size(); ++t) {
      ids.insert(ids.end(), episode[t].tokens.begin(), episode[t].tokens.end());
      for (const int32_t id : turns[t].tokens) {
        LossRow row;
        row.row = static_cast<int64_t>(ids.size()) - 1;
        row.target = id;
        batch.rows.push_back(row);
        ids.push_back(id);
      }
    }
    batch.tokens.Add(ids.data(), static_cast<int64_t>(ids.size()), 0, nullptr);
    return trainer.Score(batch);
  }

  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  ModelConfig config_;
  Tensor scales_;
};

TEST_P(EnginePropertyTest, NumbersDoNotDependOnCompanyChunksBudgetOrSharing) {
  const char* asked = std::getenv("QUERN_ENGINE_ROUNDS");
  const int rounds = asked == nullptr ? 20 : std::atoi(asked);
  const auto policy = NewPolicy(4);
  Trainer trainer(*ops_, config_, GetParam().recipe, kPositions, {});
  trainer.parameters().Initialize(config_, 4);
  ASSERT_TRUE(trainer.CopyFrom(WithScales(trainer.parameters())).ok());
  ASSERT_TRUE(trainer.Begin({}, std::nullopt).ok());
  int64_t shared = 0, preemptions = 0, compared = 0;
  for (int round = 0; round < rounds; ++round) {
    SCOPED_TRACE(round);
    Random random(100, static_cast<uint64_t>(round));
    const std::vector<std::vector<Turn>> episodes = Episodes(random, 24);
    const KvLayout layout = policy->models[0]->transformer.kv_layout();
    const int64_t page = GetParam().compression.off()
                             ? layout.page_bytes()
                             : CompressedCache::MostBytes(layout, GetParam().compression, 190, 300) / 4;
    EngineOptions options;
    options.max_step_tokens = static_cast<int64_t>(1 + random.Below(round % 2 == 0 ? 24 : 400));
    options.kv_bytes = page * static_cast<int64_t>(random.Below(2) == 0 ? 7 + random.Below(12) : 400);
    options.share_prefixes = random.Below(4) > 0;
    Engine engine(*ops_, options);
    engine.SetPolicy(policy);
    struct Open {
      size_t episode = 0;
      std::vector<Completion> done;
      uint64_t cancel_after = 0;  // steps; 0: not
    };
    std::map<int64_t, Open> open;
    size_t next = 0;
    std::vector<std::vector<Completion>> got(episodes.size());
    while (next < episodes.size() || !open.empty()) {
      // Some arrive while others are under way; some are abandoned.
      for (uint64_t n = random.Below(4); n > 0 && next < episodes.size(); --n) {
        const int64_t id = engine.Open();
        engine.Extend(id, episodes[next][0].tokens);
        engine.Generate(id, episodes[next][0].options);
        open[id] = {next++, {}, random.Below(5) == 0 ? 1 + random.Below(20) : 0};
      }
      for (auto it = open.begin(); it != open.end();) {
        if (it->second.cancel_after > 0 && --it->second.cancel_after == 0) {
          engine.Close(it->first);
          it = open.erase(it);
        } else {
          ++it;
        }
      }
      auto step = engine.Step();
      ASSERT_TRUE(step.ok()) << step.status().ToString();
      ASSERT_LE(engine.used_pages(), engine.max_pages());
      for (Completion& completion : *step) {
        const int64_t id = completion.sequence;
        Open& o = open.at(id);
        o.done.push_back(std::move(completion));
        const std::vector<Turn>& episode = episodes[o.episode];
        if (o.done.size() < episode.size()) {
          const Turn& turn = episode[o.done.size()];
          engine.Extend(id, turn.tokens);
          engine.Generate(id, turn.options);
          continue;
        }
        engine.Close(id);
        got[o.episode] = std::move(o.done);
        open.erase(id);
      }
    }
    EXPECT_EQ(engine.used_pages(), 0);
    shared += engine.shared_tokens();
    preemptions += engine.preemptions();
    for (size_t e = 0; e < episodes.size(); ++e) {
      if (got[e].empty()) continue;
      SCOPED_TRACE(e);
      const std::vector<Completion> expected = Alone(policy, episodes[e]);
      ASSERT_EQ(got[e].size(), expected.size());
      std::vector<float> log_probs;
      for (size_t t = 0; t < expected.size(); ++t) {
        ExpectSame(got[e][t], expected[t]);
        log_probs.insert(log_probs.end(), got[e][t].log_probs.begin(), got[e][t].log_probs.end());
        ++compared;
      }
      if (!GetParam().compression.off()) continue;
      const std::vector<float> scored = Scored(trainer, episodes[e], got[e]);
      ASSERT_EQ(scored.size(), log_probs.size());
      EXPECT_EQ(std::memcmp(scored.data(), log_probs.data(), scored.size() * sizeof(float)), 0);
      if (HasFailure()) return;
    }
  }
  // The rounds did what they are there for.
  EXPECT_GT(shared, 0);
  if (GetParam().compression.off()) {
    EXPECT_GT(preemptions, 0);
  }
  EXPECT_GT(compared, rounds * 15);
}

INSTANTIATE_TEST_SUITE_P(
    Policies, EnginePropertyTest,
    ::testing::Values(Case{DType::kBf16}, Case{DType::kF32}, Case{Recipe::Fp8()},
                      Case{.recipe = DType::kBf16, .selective = true},
                      Case{.recipe = DType::kBf16, .compression = {.key_channels = 5, .query_window = 8, .recent = 8}},
                      Case{.recipe = DType::kBf16,
                           .selective = true,
                           .compression = {.budgets = {20, 50}, .key_channels = 5, .query_window = 8, .recent = 8}}),
    [](const auto& tested) { return tested.param.Name(); });

class EngineSharingTest : public EnginePropertyTest {
 protected:
  void Drain(Engine& engine) {
    while (engine.HasWork()) ASSERT_TRUE(engine.Step().ok());
  }
  int64_t Ask(Engine& engine, const std::vector<int32_t>& prompt, int64_t length = 8) {
    const int64_t id = engine.Open();
    engine.Extend(id, prompt);
    GenerateOptions options;
    options.max_new_tokens = length;
    options.seed = static_cast<uint64_t>(id);
    engine.Generate(id, options);
    return id;
  }
  std::vector<int64_t> AskSixteenTimes(Engine& engine, const std::vector<int32_t>& prompt) {
    std::vector<int64_t> ids;
    for (int i = 0; i < 16; ++i) ids.push_back(Ask(engine, prompt));
    Drain(engine);
    return ids;
  }
  static std::vector<int32_t> RandomPrompt(size_t length) {
    Random random(1);
    std::vector<int32_t> prompt(length);
    for (int32_t& id : prompt) id = static_cast<int32_t>(random.Below(kVocabulary));
    return prompt;
  }
};

TEST_P(EngineSharingTest, ChainsOfOneQuestionComputeItsPromptOnce) {
  Engine engine(*ops_, {});
  engine.SetPolicy(NewPolicy(1));
  const std::vector<int64_t> ids = AskSixteenTimes(engine, RandomPrompt(150));
  // Once whole, and for the others the last token, whose logits are needed.
  EXPECT_EQ(engine.prompt_tokens(), 150 + 15);
  EXPECT_EQ(engine.shared_tokens(), 15 * 149);
  // Two full pages for all, and one of its own for each.
  EXPECT_EQ(engine.used_pages(), 2 + 16);
  for (const int64_t id : ids) engine.Close(id);
  EXPECT_EQ(engine.used_pages(), 0);
}

using EngineSelectiveSharingTest = EngineSharingTest;

// How far positions are masked is known at the ends of pages only: those are shared.
TEST_P(EngineSelectiveSharingTest, ChainsOfOneQuestionShareItsFullPages) {
  Engine engine(*ops_, {});
  engine.SetPolicy(NewPolicy(1));
  AskSixteenTimes(engine, RandomPrompt(150));
  EXPECT_EQ(engine.shared_tokens(), 15 * 128);
  EXPECT_EQ(engine.prompt_tokens(), 150 + 15 * 22);
  EXPECT_EQ(engine.used_pages(), 2 + 16);
}

INSTANTIATE_TEST_SUITE_P(Policies, EngineSelectiveSharingTest,
                         ::testing::Values(Case{.recipe = DType::kBf16, .selective = true}),
                         [](const auto& tested) { return tested.param.Name(); });

using EngineCompressedSharingTest = EngineSharingTest;

TEST_P(EngineCompressedSharingTest, EqualPromptsAreReadOnce) {
  Engine engine(*ops_, {});
  engine.SetPolicy(NewPolicy(1));
  std::vector<int32_t> prompt = RandomPrompt(150);
  AskSixteenTimes(engine, prompt);
  EXPECT_EQ(engine.prompt_tokens(), 150 + 15);
  EXPECT_EQ(engine.shared_tokens(), 15 * 149);
  // Another prompt that begins alike is another one: what is kept of it is chosen at its end.
  prompt.push_back(1);
  Ask(engine, prompt);
  Drain(engine);
  EXPECT_EQ(engine.prompt_tokens(), 150 + 15 + 151);
  // Other weights have read nothing.
  engine.SetPolicy(NewPolicy(2));
  Ask(engine, prompt);
  Drain(engine);
  EXPECT_EQ(engine.prompt_tokens(), 150 + 15 + 151 + 151);
}

INSTANTIATE_TEST_SUITE_P(Policies, EngineCompressedSharingTest,
                         ::testing::Values(Case{.recipe = DType::kBf16,
                                                .compression = {.key_channels = 5, .query_window = 8, .recent = 8}}),
                         [](const auto& tested) { return tested.param.Name(); });

TEST_P(EngineSharingTest, TheNextTurnUsesThePagesOfTheTurnBeforeAlsoAfterItWasClosed) {
  Engine engine(*ops_, {});
  engine.SetPolicy(NewPolicy(1));
  const int64_t first = Ask(engine, std::vector<int32_t>(100, 3), 50);
  Drain(engine);
  std::vector<int32_t> next = engine.tokens(first);
  engine.Close(first);
  next.insert(next.end(), {4, 5, 6});
  const int64_t before = engine.prompt_tokens();
  Ask(engine, next);
  Drain(engine);
  // All but the last generated token, which was never fed, were in the pages.
  EXPECT_EQ(engine.prompt_tokens() - before, 1 + 3);
}

TEST_P(EngineSharingTest, PagesOfOtherWeightsAreDroppedAndThoseOfTheSameAreKept) {
  const std::vector<int32_t> prompt(130, 7);
  Engine engine(*ops_, {});
  engine.SetPolicy(NewPolicy(1, "a"));
  engine.Close(Ask(engine, prompt, 1));
  const auto computed = [&](const std::shared_ptr<Policy>& policy) {
    engine.SetPolicy(policy);
    const int64_t before = engine.prompt_tokens();
    const int64_t id = Ask(engine, prompt, 1);
    Drain(engine);
    engine.Close(id);
    return engine.prompt_tokens() - before;
  };
  EXPECT_EQ(computed(NewPolicy(1, "a")), 130);  // the first was closed before a step
  EXPECT_EQ(computed(NewPolicy(1, "a")), 1);
  EXPECT_EQ(computed(NewPolicy(2, "b")), 130);
  EXPECT_EQ(computed(NewPolicy(1, "a")), 130);
  EXPECT_EQ(computed(NewPolicy(1)), 130);  // not known to be the same
}

TEST_P(EngineSharingTest, AClosedRequestFreesItsPagesAndAPassedDeadlineEndsOne) {
  Engine engine(*ops_, {.max_step_tokens = 32});
  engine.SetPolicy(NewPolicy(1));
  const int64_t id = Ask(engine, std::vector<int32_t>(100, 2), 100);
  ASSERT_TRUE(engine.Step().ok());
  EXPECT_GT(engine.used_pages(), 0);
  engine.Close(id);
  EXPECT_EQ(engine.used_pages(), 0);
  EXPECT_FALSE(engine.HasWork());

  const int64_t late = engine.Open();
  engine.Extend(late, std::vector<int32_t>{1, 2, 3});
  GenerateOptions options;
  options.max_new_tokens = 300;
  options.deadline = Deadline::After(std::chrono::milliseconds(0));
  engine.Generate(late, options);
  const auto step = engine.Step();
  ASSERT_TRUE(step.ok());
  ASSERT_EQ(step->size(), 1u);
  EXPECT_EQ((*step)[0].finish_reason, FinishReason::kDeadline);
}

TEST_P(EngineSharingTest, ManyRequestsArriveAreAbandonedAndTimeOutWithoutLosingAPage) {
  Random random(5);
  const auto policy = NewPolicy(1);
  const int64_t page = policy->models[0]->transformer.kv_layout().page_bytes();
  Engine engine(*ops_, {.max_step_tokens = 64, .kv_bytes = 24 * page});
  engine.SetPolicy(policy);
  std::vector<int64_t> open;
  int64_t finished = 0, half_way = 0;
  for (int arrived = 0; arrived < 1000 || !open.empty();) {
    if (arrived == 500) half_way = testing::ResidentBytes();
    if (arrived < 1000 && open.size() < 40) {
      const int64_t id = engine.Open();
      engine.Extend(id, std::vector<int32_t>(1 + random.Below(120), static_cast<int32_t>(random.Below(5))));
      GenerateOptions options;
      options.max_new_tokens = static_cast<int64_t>(1 + random.Below(12));
      options.seed = static_cast<uint64_t>(arrived++);
      if (random.Below(4) == 0) options.deadline = Deadline::After(std::chrono::microseconds(random.Below(4000)));
      engine.Generate(id, options);
      open.push_back(id);
    }
    if (!open.empty() && random.Below(5) == 0) {
      const size_t which = random.Below(open.size());
      engine.Close(open[which]);
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(which));
    }
    auto step = engine.Step();
    ASSERT_TRUE(step.ok()) << step.status().ToString();
    for (const Completion& completion : *step) {
      engine.Close(completion.sequence);
      open.erase(std::find(open.begin(), open.end(), completion.sequence));
      ++finished;
    }
  }
  EXPECT_GT(finished, 300);
  EXPECT_EQ(engine.used_pages(), 0);
  EXPECT_LT(testing::ResidentBytes() - half_way, 8 << 20);
}

TEST_P(EngineSharingTest, ReturnsTheLikeliestIdsAndTheSamplingMaskOfEachStep) {
  Engine engine(*ops_, {});
  engine.SetPolicy(NewPolicy(1));
  const int64_t id = engine.Open();
  engine.Extend(id, std::vector<int32_t>{1, 2, 3});
  GenerateOptions options;
  options.max_new_tokens = 20;
  options.top_log_probs = 5;
  options.sampling_masks = true;
  options.sampling.top_k = 3;
  options.sampling.temperature = 2;
  engine.Generate(id, options);
  Completion out;
  while (engine.HasWork()) {
    auto step = engine.Step();
    ASSERT_TRUE(step.ok());
    for (Completion& c : *step) out = std::move(c);
  }
  ASSERT_EQ(out.top.size(), 20u);
  ASSERT_EQ(out.masks.size(), 20u);
  for (size_t i = 0; i < 20; ++i) {
    ASSERT_EQ(out.top[i].size(), 5u);
    for (size_t j = 1; j < 5; ++j) EXPECT_GE(out.top[i][j - 1].log_prob, out.top[i][j].log_prob);
    std::vector<int32_t> likeliest;
    for (size_t j = 0; j < 3; ++j) likeliest.push_back(out.top[i][j].id);
    std::sort(likeliest.begin(), likeliest.end());
    EXPECT_EQ(out.masks[i], likeliest);
    const auto drawn = std::find_if(out.top[i].begin(), out.top[i].end(),
                                    [&](const TokenLogProb& entry) { return entry.id == out.tokens[i]; });
    ASSERT_NE(drawn, out.top[i].end());
    EXPECT_EQ(drawn->log_prob, out.log_probs[i]);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, EngineSharingTest, ::testing::Values(Case{DType::kBf16}),
                         [](const auto& tested) { return tested.param.Name(); });

}  // namespace
}  // namespace quern
