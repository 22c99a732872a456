// Steps of decoding as one graph (BeginStep, EndStep): the same bits as without, whatever changes between steps.

#include "compute/cuda/cuda_ops.h"
#include "model/transformer.h"
#include "tests/compute/test_tensors.h"
#include "tests/cuda/backend.h"

namespace quern {
namespace {

constexpr int64_t kVocabulary = 50, kMostPages = 8;

ModelConfig DecodedModel() {
  ModelConfig config;
  config.vocab_size = kVocabulary;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.layers = 2;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 64;
  config.qk_norm = true;
  config.attention_bias = true;
  config.initializer_range = 0.2;
  return config;
}

// A model, pages of several sequences and what decodes them, on one backend.
class Decoder {
 public:
  Decoder(std::unique_ptr<Ops> ops, const Recipe& recipe)
      : ops_(std::move(ops)),
        transformer_(*ops_, DecodedModel(), recipe.act, 512),
        parameters_(DecodedModel(), DType::kF32, ops_.get()),
        weights_(*ops_, DecodedModel(), recipe, false),
        arena_(ops_->memory()) {
    LoadWeights(1);
  }
  void LoadWeights(uint64_t seed) {
    parameters_.Initialize(DecodedModel(), seed);
    EXPECT_TRUE(weights_.Load(parameters_.Source()).ok());
  }
  // The sequence gets pages of its own and `length` positions of a prompt.
  void AddSequence(int64_t length) {
    const KvLayout layout = transformer_.kv_layout();
    std::vector<void*> table;
    for (int64_t p = 0; p < kMostPages; ++p) {
      pages_.emplace_back(layout.dtype, 1, layout.page_elements(), ops_->memory());
      table.push_back(pages_.back().view().data);
    }
    tables_.push_back(table);
    contexts_.push_back(0);
    TokenBatch batch;
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < length; ++i) ids.push_back(static_cast<int32_t>((7 * i + length) % kVocabulary));
    batch.Add(ids.data(), length, 0, tables_.back().data());
    Forward(batch, false);
    contexts_.back() = length;
  }
  // A sequence's pages are others from now on, with the same in them.
  void MovePages(size_t sequence) {
    for (void*& page : tables_[sequence]) {
      const KvLayout layout = transformer_.kv_layout();
      const TensorView old{page, layout.dtype, 1, layout.page_elements(), layout.page_elements()};
      const Tensor host = OnHost(*ops_, old);
      pages_.push_back(OnDevice(*ops_, host));
      page = pages_.back().view().data;
      const Tensor nothing(layout.dtype, 1, layout.page_elements());
      ops_->Upload(nothing, old);
    }
  }
  // One token for every sequence but the last `without`; logits.
  Tensor Step(int32_t token, bool as_step, size_t without = 0, bool look_inside = false) {
    TokenBatch batch;
    for (size_t s = 0; s + without < tables_.size(); ++s) {
      const int32_t id = (token + 3 * static_cast<int32_t>(s)) % static_cast<int32_t>(kVocabulary);
      batch.Add(&id, 1, contexts_[s]++, tables_[s].data());
    }
    return Forward(batch, as_step, look_inside);
  }
  const cuda::Recorder& recorder() const { return static_cast<CudaOps&>(*ops_).recorder(); }

 private:
  Tensor Forward(const TokenBatch& batch, bool as_step, bool look_inside = false) {
    const Arena::Scope scope(arena_);
    const TensorView hidden = arena_.New(transformer_.dtype(), batch.rows(), DecodedModel().hidden_size);
    const TensorView logits = arena_.New(DType::kF32, batch.rows(), kVocabulary);
    if (as_step) ops_->BeginStep(static_cast<uint64_t>(batch.rows()));
    transformer_.Forward(weights_, batch, {.layout = transformer_.kv_layout()}, arena_, hidden);
    if (look_inside) (void)OnHost(*ops_, hidden);
    transformer_.Logits(weights_, hidden, logits);
    if (as_step) ops_->EndStep();
    return OnHost(*ops_, logits);
  }

  std::unique_ptr<Ops> ops_;
  Transformer transformer_;
  Parameters parameters_;
  Weights weights_;
  Arena arena_;
  std::vector<Tensor> pages_;
  std::vector<std::vector<void*>> tables_;
  std::vector<int64_t> contexts_;
};

class CudaStepsTest : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Cuda, CudaStepsTest, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "fp8" : "bf16"; });

TEST_P(CudaStepsTest, GiveTheBitsOfCallsOneByOne) {
  const Recipe recipe = GetParam() ? Recipe::Fp8() : Recipe(DType::kBf16);
  auto ops = NewDeviceUnderTest(), plain_ops = NewDeviceUnderTest();
  if (ops == nullptr) GTEST_SKIP() << WhyNoBackend();
  Decoder steps(std::move(ops), recipe), plain(std::move(plain_ops), recipe);
  const cuda::Recorder& recorder = steps.recorder();
  int32_t token = 0;
  const auto both = [&](size_t without = 0, bool look_inside = false) {
    const Tensor a = steps.Step(token, true, without, look_inside), b = plain.Step(token, false, without);
    EXPECT_TRUE(BitEqual(a, b)) << "token " << token;
    ++token;
  };
  // The second sequence comes to the end of a page, the third to that of a segment of keys.
  for (const int64_t length : {5, 60, 250}) {
    steps.AddSequence(length);
    plain.AddSequence(length);
  }
  for (int i = 0; i < 5; ++i) both();
  EXPECT_EQ(recorder.replayed(), 4);  // all but the first
  for (int i = 0; i < 6; ++i) both();
  EXPECT_EQ(recorder.replayed(), 9);  // at the segment's end the grid is another
  EXPECT_EQ(recorder.queued(), 2);

  // What is in the arrays: other pages.
  steps.MovePages(0);
  plain.MovePages(0);
  both();
  EXPECT_EQ(recorder.replayed(), 10);
  // Another batch, and back again.
  both(1);
  both(1);
  both();
  EXPECT_EQ(recorder.replayed(), 12);
  EXPECT_EQ(recorder.queued(), 3);
  // A look at what is under way: the step is none, the next is again.
  both(0, true);
  EXPECT_EQ(recorder.queued(), 4);
  both();
  EXPECT_EQ(recorder.replayed(), 13);
  // Other values of the same weights are the same graph's.
  steps.LoadWeights(2);
  plain.LoadWeights(2);
  both();
  both();
  both();
}

TEST(CudaSteps, ArraysThatDoNotFitAreStillRead) {
  auto ops = NewDeviceUnderTest();
  if (ops == nullptr) GTEST_SKIP() << WhyNoBackend();
  constexpr int64_t kRows = 100'000;  // 800 kB of row numbers
  const Tensor x = OnDevice(*ops, RandomTensor(DType::kF32, 10, 1, 1));
  const Tensor y(DType::kF32, kRows, 1, ops->memory());
  const Tensor host = OnHost(*ops, x);
  for (int64_t step = 0; step < 4; ++step) {
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < kRows; ++i) rows.push_back((i + step) % 10);
    ops->BeginStep(1);
    ops->GatherRows({.x = x, .rows = rows, .y = y});
    ops->EndStep();
    const Tensor got = OnHost(*ops, y);
    for (int64_t i = 0; i < kRows; ++i) ASSERT_EQ(got.Row<float>(i)[0], host.Row<float>((i + step) % 10)[0]) << i;
  }
  EXPECT_EQ(static_cast<CudaOps&>(*ops).recorder().replayed(), 2);
}

}  // namespace
}  // namespace quern
