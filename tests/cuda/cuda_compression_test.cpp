// What leaves things out of a cache in the GPU's memory, and scales of rows: the kernels against the host's, and a
// compressed cache and an engine that give what the CPU's give.

#include <algorithm>
#include <cmath>

#include "actors/engine.h"
#include "compute/cpu/cpu_ops.h"
#include "compute/cuda/cuda_ops.h"
#include "compute/key_pruning.h"
#include "learner/loss_head.h"
#include "tests/actors/same_completion.h"
#include "tests/compute/test_tensors.h"
#include "tests/cuda/backend.h"

namespace quern {
namespace {

constexpr int64_t kPage = KvLayout::kPageTokens;
constexpr DType kF32 = DType::kF32, kBf16 = DType::kBf16, kReal = DType::kF64;

class CudaCompressionTest : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    device_ = NewDeviceUnderTest();
    if (device_ == nullptr) GTEST_SKIP() << WhyNoBackend();
  }
  void TearDown() override { SetThreadOrder(0); }

  ThreadPool pool_{1};
  std::unique_ptr<Ops> cpu_ = NewCpuOps(&pool_);
  std::unique_ptr<Ops> device_;
};

TEST_P(CudaCompressionTest, RowsAreScaledAsTheHostDoes) {
  for (const int64_t cols : {int64_t{40}, int64_t{37}}) {
    Tensor x = RandomTensor(GetParam(), 6, cols, 1);
    for (int64_t c = 0; c < cols; ++c) {
      SetElement(x, 1, c, 0);
      SetElement(x, 2, c, GetElement(x, 2, c) * 1e6);
    }
    SetElement(x, 3, 5, INFINITY);
    SetElement(x, 4, 6, NAN);
    for (const DType out : {kF32, kBf16}) {
      const Tensor before = RandomTensor(out, 6, cols, 2);
      for (const bool divide : {false, true}) {
        for (const bool accumulate : {false, true}) {
          const Tensor scale(kF32, 1, 6), y = As(out, before);
          cpu_->RowScales({.x = x, .scale = scale});
          cpu_->ScaleRows({.x = x, .scale = scale, .divide = divide, .y = y, .accumulate = accumulate});
          const Tensor there = OnDevice(*device_, x), its_scale(kF32, 1, 6, device_->memory()),
                       its_y = OnDevice(*device_, before);
          SetThreadOrder(7);
          device_->RowScales({.x = there, .scale = its_scale});
          device_->ScaleRows({.x = there, .scale = its_scale, .divide = divide, .y = its_y, .accumulate = accumulate});
          EXPECT_TRUE(BitEqual(OnHost(*device_, its_scale), scale));
          const Tensor got = OnHost(*device_, its_y);
          for (const int64_t row : {0, 1, 2, 3, 5})
            EXPECT_TRUE(BitEqual(got.view().Rows(row, 1), y.view().Rows(row, 1)));
        }
      }
    }
  }
}

TEST_P(CudaCompressionTest, SquaresAndCopiesAreTheHostsToTheBit) {
  constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 20, kSlots = 100;
  const KvLayout layout = {.dtype = GetParam(), .layers = 1, .kv_heads = kKvHeads, .head_dim = kDim};
  const Tensor q = RandomTensor(GetParam(), 9, kHeads * kDim, 1);
  const Tensor first = RandomTensor(GetParam(), 1, layout.page_elements(), 2),
               second = RandomTensor(GetParam(), 1, layout.page_elements(), 3);
  const Tensor its_q = OnDevice(*device_, q), its_first = OnDevice(*device_, first),
               its_second = OnDevice(*device_, second);
  const Tensor squares(kReal, 1, kKvHeads * kDim), its_squares(kReal, 1, kKvHeads * kDim, device_->memory());
  void* const pages[] = {first.view().data, second.view().data};
  void* const its_pages[] = {its_first.view().data, its_second.view().data};
  SetThreadOrder(5);
  cpu_->QuerySquares({.q = q, .kv_heads = kKvHeads, .head_dim = kDim, .squares = squares});
  device_->QuerySquares({.q = its_q, .kv_heads = kKvHeads, .head_dim = kDim, .squares = its_squares});
  EXPECT_TRUE(BitEqual(OnHost(*device_, its_squares), squares));
  // By the definition: channel 3 of the second KV head, of heads 2 and 3.
  double expected = 0;
  for (int64_t row = 0; row < 9; ++row)
    for (const int64_t head : {2, 3}) expected += std::pow(GetElement(q, row, head * kDim + 3), 2);
  EXPECT_NEAR(GetElement(squares, 0, kDim + 3), expected, 1e-9);
  cpu_->KeySquares({.layout = layout, .pages = pages, .slots = kSlots, .squares = squares});
  device_->KeySquares({.layout = layout, .pages = its_pages, .slots = kSlots, .squares = its_squares});
  EXPECT_TRUE(BitEqual(OnHost(*device_, its_squares), squares));

  const std::vector<int32_t> kept = {0, 3, 4, 17, 1, 2, 6, 19};
  const PrunedKeys whole = WholeKeys(layout), pruned = {.channels = 4, .full_heads = 0, .kept = kept.data()},
                   selecting = {.channels = 4, .full_heads = 1, .kept = kept.data()};
  const auto copy = [&](const PrunedKeys& from, const PrunedKeys& to, const Tensor& x, const Tensor& its_x,
                        std::vector<SlotRun> runs) {
    std::pair<Tensor, Tensor> y = {Tensor(GetParam(), 1, to.page_elements(layout)),
                                   Tensor(GetParam(), 1, to.page_elements(layout), device_->memory())};
    for (SlotRun& run : runs) {
      run.from = x.view().data;
      run.to = y.first.view().data;
    }
    cpu_->CopySlots({.layout = layout, .from = from, .to = to, .runs = runs});
    for (SlotRun& run : runs) {
      run.from = its_x.view().data;
      run.to = y.second.view().data;
    }
    device_->CopySlots({.layout = layout, .from = from, .to = to, .runs = runs});
    EXPECT_TRUE(BitEqual(OnHost(*device_, y.second), y.first));
    return y;
  };
  const std::vector<SlotRun> some = {
      {nullptr, nullptr, 3, 0, 1}, {nullptr, nullptr, 10, 1, 40}, {nullptr, nullptr, 60, 41, 4}};
  copy(whole, whole, first, its_first, some);
  for (const PrunedKeys& form : {pruned, selecting}) {
    const auto small = copy(whole, form, first, its_first, {{nullptr, nullptr, 0, 0, kPage}});
    copy(form, form, small.first, small.second, some);
  }
}

// A model, one text, and what a compressed cache gives of it: the prompt in chunks, then a token a step.
class CompressedReader {
 public:
  static ModelConfig Config() {
    ModelConfig config;
    config.vocab_size = 48;
    config.hidden_size = 32;
    config.intermediate_size = 48;
    config.initializer_range = 0.2;
    config.layers = 2;
    config.heads = 4;
    config.kv_heads = 2;
    config.head_dim = 16;
    config.qk_norm = true;
    config.selective_attention = true;
    return config;
  }
  CompressedReader(Ops& ops, DType dtype)
      : ops_(ops),
        transformer_(ops, Config(), dtype, 256),
        weights_(ops, Config(), dtype, false),
        head_(ops, transformer_),
        arena_(ops.memory()) {
    Parameters parameters(Config());
    parameters.Initialize(Config(), 3);
    QUERN_CHECK(weights_.Load(parameters.Source()).ok());
  }
  std::unique_ptr<CompressedCache> NewCache(const Compression& compression, int64_t prompt) {
    compression_ = compression;
    return std::make_unique<CompressedCache>(ops_, transformer_.kv_layout(), compression, prompt);
  }
  // Of the tokens after those that are read.
  std::vector<float> Read(CompressedCache& cache, int64_t count) {
    const Arena::Scope scope(arena_);
    TokenBatch batch;
    std::vector<LossRow> rows;
    const auto id = [](int64_t i) { return static_cast<int32_t>((i * i * 7 + i / 5) % 48); };
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) {
      ids.push_back(id(cache.tokens() + i));
      rows.push_back({.row = i, .target = id(cache.tokens() + i + 1)});
    }
    batch.Add(ids.data(), count, cache.tokens(), nullptr);
    CompressedCache* caches[] = {&cache};
    cache.Reserve(count);
    const TensorView hidden = arena_.New(transformer_.dtype(), count, Config().hidden_size);
    transformer_.Forward(weights_, batch, CompressedView(transformer_.kv_layout(), compression_, caches, batch), arena_,
                         hidden);
    std::vector<float> log_probs = head_.Score(weights_, hidden, rows, arena_).log_probs;
    cache.Advance(count);
    return log_probs;
  }
  std::vector<float> ReadAll(CompressedCache& cache, int64_t prompt, int64_t chunk, int64_t end) {
    std::vector<float> all;
    while (cache.tokens() < end) {
      const int64_t left = prompt - cache.tokens();
      for (const float value : Read(cache, left > 0 ? std::min(left, chunk) : 1)) all.push_back(value);
    }
    return all;
  }

 private:
  Ops& ops_;
  Transformer transformer_;
  Weights weights_;
  LossHead head_;
  Arena arena_;
  Compression compression_;
};

TEST_P(CudaCompressionTest, ACompressedCacheIsTheCpus) {
  constexpr int64_t kPrompt = 110, kEnd = 150;
  CompressedReader here(*cpu_, GetParam()), there(*device_, GetParam());
  for (const Compression& compression :
       {Compression{.key_channels = 6, .query_window = 16, .recent = 20}, Compression{.budgets = {60, 75}},
        Compression{.budgets = {100, 70}, .key_channels = 6, .query_window = 16, .recent = 4}}) {
    const auto cache = here.NewCache(compression, kPrompt), its = there.NewCache(compression, kPrompt),
               in_chunks = there.NewCache(compression, kPrompt);
    const std::vector<float> expected = here.ReadAll(*cache, kPrompt, kPrompt, kEnd);
    const std::vector<float> got = there.ReadAll(*its, kPrompt, kPrompt, 130);
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], GetParam() == kBf16 ? 0.1 : 2e-3) << i;
    EXPECT_EQ(there.ReadAll(*in_chunks, kPrompt, 48, 130), got);
    // A copy goes on by itself.
    const auto copy = its->Copy();
    const std::vector<float> rest = there.ReadAll(*its, kPrompt, 1, kEnd);
    for (size_t i = 0; i < rest.size(); ++i)
      EXPECT_NEAR(rest[i], expected[got.size() + i], GetParam() == kBf16 ? 0.1 : 2e-3) << i;
    EXPECT_EQ(there.ReadAll(*copy, kPrompt, 1, kEnd), rest);
    EXPECT_EQ(its->bytes(), cache->bytes());
    for (int64_t layer = 0; layer < 2; ++layer) EXPECT_EQ(its->slots(layer), cache->slots(layer));
  }
}

// Whatever is computed together, shared or waits.
TEST_P(CudaCompressionTest, TheEngineGeneratesTheSameHoweverItIsScheduled) {
  auto policy = std::make_shared<Policy>();
  policy->label = "compressed";
  policy->compression = {.budgets = {60, 40}, .key_channels = 6, .query_window = 16, .recent = 4};
  auto model = std::make_shared<ServedModel>(*device_, CompressedReader::Config(), GetParam(), 256);
  Parameters parameters(CompressedReader::Config());
  parameters.Initialize(CompressedReader::Config(), 3);
  ASSERT_TRUE(model->weights.Load(parameters.Source()).ok());
  policy->models = {model};
  policy->head = std::make_shared<SingleModelHead>(-1);
  std::vector<std::vector<int32_t>> prompts(3);
  Random random(4);
  for (int i = 0; i < 90; ++i) prompts[0].push_back(static_cast<int32_t>(random.Below(48)));
  prompts[1] = prompts[0];
  prompts[2].assign(prompts[0].begin(), prompts[0].begin() + 20);
  const int64_t one = CompressedCache::MostBytes(model->transformer.kv_layout(), policy->compression, 90, 90 + 12);
  std::vector<std::vector<Completion>> runs;
  int64_t shared = 0;
  for (const EngineOptions& options : {EngineOptions{.share_prefixes = false}, EngineOptions{.kv_bytes = 64 * one},
                                       EngineOptions{.max_step_tokens = 37, .kv_bytes = 3 * one / 2}}) {
    Engine engine(*device_, options);
    engine.SetPolicy(policy);
    for (size_t i = 0; i < prompts.size(); ++i) {
      const int64_t id = engine.Open();
      engine.Extend(id, prompts[i]);
      GenerateOptions generate;
      generate.max_new_tokens = 12;
      generate.seed = i;
      engine.Generate(id, generate);
    }
    std::vector<Completion> done(prompts.size());
    while (engine.HasWork()) {
      auto step = engine.Step();
      ASSERT_TRUE(step.ok()) << step.status().ToString();
      for (Completion& c : *step) {
        engine.Close(c.sequence);
        done[static_cast<size_t>(c.sequence - 1)] = std::move(c);
      }
    }
    runs.push_back(std::move(done));
    shared += engine.shared_tokens();
  }
  EXPECT_GT(shared, 0);
  // Steps of decoding were graphs: all but those at the end of a page and after something was evicted.
  const cuda::Recorder& recorder = static_cast<CudaOps&>(*device_).recorder();
  EXPECT_GT(recorder.replayed(), recorder.queued());
  for (size_t r = 1; r < runs.size(); ++r)
    for (size_t i = 0; i < prompts.size(); ++i) ExpectSame(runs[r][i], runs[0][i]);
}

TEST_P(CudaCompressionTest, PagesThatWereGivenBackAreUsedAgain) {
  const cuda::Pool& pool = static_cast<CudaOps&>(*device_).runtime().pool();
  const KvLayout layout = {.dtype = GetParam(), .layers = 2, .kv_heads = 2, .head_dim = 16};
  const auto read = [&](int64_t tokens) {
    CompressedCache cache(*device_, layout, {.key_channels = 6, .query_window = 16, .recent = 40}, 100);
    cache.Reserve(100);
    cache.Advance(100);
    for (; cache.tokens() < tokens; cache.Advance(1)) cache.Reserve(1);
  };
  read(700);
  const int64_t made = pool.made();
  EXPECT_GT(made, 20);
  for (int i = 0; i < 5; ++i) read(500 + 50 * i);
  EXPECT_EQ(pool.made(), made);
  EXPECT_LE(pool.held_bytes(), pool.most_bytes() * 9 / 8);
}

TEST_P(CudaCompressionTest, ThePoolGivesZerosAndHoldsNoMoreThanWasOut) {
  cuda::Pool& pool = static_cast<CudaOps&>(*device_).runtime().pool();
  const auto fresh = [&](int64_t count) { return Tensor(kF32, 1, count, device_->pool()); };
  {
    const Tensor x = fresh(1024), y = fresh(1024);
    for (const Tensor* tensor : {&x, &y}) device_->Fill(*tensor, 3);
  }
  EXPECT_EQ(pool.held_bytes(), 8192);
  const Tensor again = fresh(1024);
  EXPECT_EQ(pool.made(), 2);
  EXPECT_TRUE(BitEqual(OnHost(*device_, again), Tensor(kF32, 1, 1024)));
  const Tensor other = fresh(512);  // in the place of what is kept
  EXPECT_EQ(pool.held_bytes(), 4096 + 2048);
  EXPECT_EQ(pool.most_bytes(), 8192);
  EXPECT_FALSE(pool.Trim());
}

INSTANTIATE_TEST_SUITE_P(Cuda, CudaCompressionTest, ::testing::Values(kF32, kBf16),
                         [](const auto& test) { return std::string(DTypeName(test.param)); });

}  // namespace
}  // namespace quern
