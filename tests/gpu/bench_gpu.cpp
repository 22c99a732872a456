// What the GPU's backend reaches, as shares of what the card gives in the same run: a device-to-device copy (bytes read
// and written) and an 8192^3 bf16 product on random data. Lines of a table, a part at a time, so that run.sh can bound
// each; exit code 3 where there is no GPU.
//   bench_gpu --list                       the parts
//   bench_gpu header                       the line above the table
//   bench_gpu ceilings                     measures both; the last line is "ceilings COPY PRODUCT"
//   bench_gpu PART COPY PRODUCT [quick]    quick: tenths of the time, for a first look
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "compute/cuda/blas.h"
#include "compute/cuda/cuda_device.h"
#include "compute/cuda/cuda_ops.h"
#include "learner/trainer.h"
#include "methods/sft.h"

namespace quern {
namespace {

constexpr DType kF32 = DType::kF32, kBf16 = DType::kBf16;

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

class Bench {
 public:
  Bench(std::unique_ptr<cuda::Runtime> runtime, std::unique_ptr<cuda::Blas> blas, double seconds, double copy,
        double product)
      : runtime_(*runtime),
        ops_(std::move(runtime), std::move(blas), /*strict=*/false),
        seconds_(seconds),
        copy_(copy),
        product_(product) {}

  static void Header() { std::printf("%-44s %10s %10s %10s %8s\n", "operation", "ms", "GB/s", "TFLOP/s", "share"); }
  // Every part by its name, the most telling first.
  static const std::vector<std::pair<const char*, void (*)(Bench&)>>& Parts() {
    static const std::vector<std::pair<const char*, void (*)(Bench&)>> parts = {
        {"products", [](Bench& b) { b.AllProducts(); }},
        {"rows", [](Bench& b) { b.Rows(8192, 1536, 8960); }},
        {"step-0.5B", [](Bench& b) { b.Step("0.5B", Qwen(0)); }},
        {"step-1.5B", [](Bench& b) { b.Step("1.5B", Qwen(1)); }},
        {"step-7B", [](Bench& b) { b.Step("7B", Qwen(2)); }},
        {"decode-0.5B", [](Bench& b) { b.DecodeModel("0.5B", Qwen(0)); }},
        {"decode-1.5B", [](Bench& b) { b.DecodeModel("1.5B", Qwen(1)); }},
        {"decode-7B", [](Bench& b) { b.DecodeModel("7B", Qwen(2)); }},
        {"attention", [](Bench& b) { b.AllAttention(); }},
        {"softmax", [](Bench& b) { b.Softmax(2048, 151936); }},
        {"optimizer", [](Bench& b) { b.Optimizer(int64_t{256} << 20); }},
    };
    return parts;
  }
  void Measure() {
    Ceilings();
    std::printf("ceilings %.6g %.6g\n", copy_, product_);
  }

 private:
  struct Shape {
    const char* name;
    int64_t k, n;
  };

  // Shapes of Qwen2.5: 0.5B, 1.5B, 7B.
  static ModelConfig Qwen(size_t which) {
    ModelConfig config;
    config.model_type = "qwen2";
    config.vocab_size = which == 2 ? 152064 : 151936;
    config.attention_bias = true;
    config.tie_word_embeddings = which < 2;
    constexpr int64_t kHidden[] = {896, 1536, 3584}, kIntermediate[] = {4864, 8960, 18944}, kLayers[] = {24, 28, 28};
    constexpr int64_t kHeads[] = {14, 12, 28}, kKvHeads[] = {2, 2, 4};
    config.hidden_size = kHidden[which];
    config.intermediate_size = kIntermediate[which];
    config.layers = kLayers[which];
    config.heads = kHeads[which];
    config.kv_heads = kKvHeads[which];
    config.head_dim = which == 0 ? 64 : 128;
    return config;
  }

  // A line instead of a failure where the card is too small.
  bool Fits(const std::string& name, double bytes) {
    const auto free = static_cast<double>(cuda::Runtime::Describe(0, /*free_bytes=*/true).free_bytes);
    if (bytes < 0.95 * free) return true;
    std::printf("%-44s does not fit: %.0f GiB are needed, %.0f are free\n", name.c_str(), bytes / (1 << 30),
                free / (1 << 30));
    return false;
  }

  void AllProducts() {
    for (const auto& [name, k, n] : {Shape{"0.5B gate+up", 896, 9728},
                                     {"1.5B gate+up", 1536, 17920},
                                     {"1.5B down", 8960, 1536},
                                     {"7B gate+up", 3584, 37888},
                                     {"7B down", 18944, 3584}})
      Products(name, 8192, k, n);
  }
  void AllAttention() {
    for (const int64_t dim : {64, 128}) {
      for (const int64_t length : {1024, 4096}) Training(dim, length);
      for (const int64_t batch : {1, 32, 256}) Decode(dim, batch, 2048);
    }
  }

  // Median seconds of a call. Calls are queued in groups, so that what starting one costs is hidden as in a real step.
  double Time(const std::function<void()>& call) {
    call();
    ops_.Wait();
    const double begin = Seconds();
    call();
    ops_.Wait();
    const double once = std::max(1e-6, Seconds() - begin);
    const int group = std::clamp(static_cast<int>(seconds_ / 5 / once), 1, 200);
    std::vector<double> times;
    for (int i = 0; i < 5; ++i) {
      const double start = Seconds();
      for (int j = 0; j < group; ++j) call();
      ops_.Wait();
      times.push_back((Seconds() - start) / group);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  // `bytes` and `flops` of a call; the share is of the ceiling that leaves less.
  void Report(const std::string& name, double bytes, double flops, const std::function<void()>& call) {
    const double seconds = Time(call);
    const double share = std::max(copy_ > 0 ? bytes / copy_ : 0, product_ > 0 ? flops / product_ : 0) / seconds;
    std::printf("%-44s %10.3f %10.0f %10.1f %7.0f%%\n", name.c_str(), 1e3 * seconds, bytes / seconds / 1e9,
                flops / seconds / 1e12, 100 * share);
    std::fflush(stdout);
  }

  Tensor New(DType dtype, int64_t rows, int64_t cols) { return Tensor(dtype, rows, cols, ops_.memory()); }
  // About normal, never zeros: products of zeros run faster.
  Tensor RandomTensor(DType dtype, int64_t rows, int64_t cols) {
    Tensor host(kF32, 1, std::min<int64_t>(rows * cols, 1 << 22)), small = New(kF32, 1, host.cols());
    uint32_t state = 12345;
    for (int64_t i = 0; i < host.cols(); ++i) {
      float sum = -2;
      for (int j = 0; j < 4; ++j) {
        state = state * 1664525u + 1013904223u;
        sum += static_cast<float>(state >> 8) * 0x1p-24f;
      }
      host.Row<float>(0)[i] = sum;
    }
    ops_.Upload(host, small);
    Tensor out = New(dtype, rows, cols);
    for (int64_t begin = 0; begin < rows * cols; begin += host.cols()) {
      const int64_t count = std::min(host.cols(), rows * cols - begin);
      const TensorView flat = {out.view().data, dtype, 1, rows * cols, rows * cols};
      ops_.Cast(small.view().Cols(0, count), flat.Cols(begin, count));
    }
    return out;
  }

  void Ceilings() {
    constexpr int64_t kBytes = int64_t{2} << 30;
    {
      const Tensor from = New(DType::kU8, 1, kBytes), to = New(DType::kU8, 1, kBytes);
      const auto copy = [&] { runtime_.Copy(to.view().data, from.view().data, kBytes); };
      copy_ = 2.0 * kBytes / Time(copy);
      Report("copy of 2 GiB", 2.0 * kBytes, 0, copy);
    }
    constexpr int64_t kSize = 8192;
    const Tensor a = RandomTensor(kBf16, kSize, kSize), w = RandomTensor(kBf16, kSize, kSize);
    const Tensor c = New(kBf16, kSize, kSize);
    const auto packed = ops_.NewPacked(kBf16, kSize, kSize);
    ops_.Pack({.weight = w, .out = packed.get()});
    const auto product = [&] { ops_.MatMul({.a = a, .b = packed.get(), .c = c, .bias = {}}); };
    const double flops = 2.0 * kSize * kSize * kSize;
    product_ = flops / Time(product);
    Report("bf16 product 8192^3", 0, flops, product);
  }

  void Products(const std::string& name, int64_t t, int64_t k, int64_t n) {
    const double flops = 2.0 * static_cast<double>(t) * static_cast<double>(k) * static_cast<double>(n);
    const Tensor x = RandomTensor(kBf16, t, k), w = RandomTensor(kBf16, n, k), y = New(kBf16, t, n);
    const Tensor dw = New(kF32, n, k);
    const auto bf16 = ops_.NewPacked(kBf16, k, n), fp8 = ops_.NewPacked(DType::kE4M3, k, n);
    ops_.Pack({.weight = w, .out = bf16.get()});
    ops_.Pack({.weight = w, .out = fp8.get()});
    const Tensor codes = New(DType::kE4M3, t, k), scale = New(kF32, 1, t);
    const auto quantize = [&] { ops_.Quantize({.x = x, .format = kE4M3, .codes = codes, .scale = scale}); };
    const auto fp8_product = [&] { ops_.MatMul({.a = codes, .a_scale = scale, .b = fp8.get(), .c = y, .bias = {}}); };
    quantize();
    Report(name + " bf16", 0, flops, [&] { ops_.MatMul({.a = x, .b = bf16.get(), .c = y, .bias = {}}); });
    Report(name + " fp8 rows", 0, flops, fp8_product);
    Report(name + " fp8 rows, with quantise", 0, flops, [&] {
      quantize();
      fp8_product();
    });
    Report(name + " weight gradient bf16", 0, flops, [&] { ops_.MatMulGradWeight({.dy = y, .x = x, .dw = dw}); });
  }

  void Rows(int64_t t, int64_t d, int64_t f) {
    const auto rows = static_cast<double>(t), cols = static_cast<double>(d), width = static_cast<double>(f);
    const Tensor x = RandomTensor(kF32, t, d), weight = RandomTensor(kF32, 1, d), y = New(kBf16, t, d);
    const Tensor inv = New(kF32, 1, t), dx = New(kF32, t, d), dweight = New(kF32, 1, d);
    Report("rms norm", rows * cols * 6, 0, [&] { ops_.RmsNorm({.x = x, .weight = weight, .y = y, .inv_rms = inv}); });
    Report("rms norm backward", rows * cols * (2 * 2 + 4 * 4), 0, [&] {
      ops_.RmsNormBackward({.dy = y, .x = x, .weight = weight, .inv_rms = inv, .dx = dx, .dweight = dweight});
    });
    const Tensor gates = RandomTensor(kBf16, t, 2 * f), h = New(kBf16, t, f), dgates = New(kBf16, t, 2 * f);
    const Tensor norm_codes = New(DType::kE4M3, t, d), codes = New(DType::kE4M3, t, f), scale = New(kF32, 1, t);
    Report("rms norm with cast to fp8", rows * cols * 7, 0, [&] {
      ops_.RmsNorm({.x = x,
                    .weight = weight,
                    .y = y,
                    .inv_rms = inv,
                    .cast = {.x = {}, .format = kE4M3, .codes = norm_codes, .scale = scale}});
    });
    Report("rms norm, then cast to fp8", rows * cols * 9, 0, [&] {
      ops_.RmsNorm({.x = x, .weight = weight, .y = y, .inv_rms = inv});
      ops_.Quantize({.x = y, .format = kE4M3, .codes = norm_codes, .scale = scale});
    });
    Report("swiglu with cast to fp8", rows * width * 7, 0, [&] {
      ops_.SwiGlu({.gate_up = gates, .h = h, .cast = {.x = {}, .format = kE4M3, .codes = codes, .scale = scale}});
    });
    Report("swiglu", rows * width * 6, 0, [&] { ops_.SwiGlu({.gate_up = gates, .h = h}); });
    Report("swiglu backward", rows * width * 10, 0,
           [&] { ops_.SwiGluBackward({.gate_up = gates, .dh = h, .dgate_up = dgates}); });
    Report("quantise rows", rows * width * 3, 0,
           [&] { ops_.Quantize({.x = h, .format = kE4M3, .codes = codes, .scale = scale}); });
    Report("cast fp32 to bf16", rows * cols * 6, 0, [&] { ops_.Cast(x, y); });
    const Tensor maxima = New(kF32, 1, f), dbias = New(kF32, 1, f);
    Report("column maxima", rows * width * 2, 0, [&] { ops_.ColumnAmax({.x = h, .amax = maxima}); });
    Report("bias backward", rows * width * 2, 0, [&] { ops_.BiasBackward({.dy = h, .dbias = dbias}); });
    constexpr int64_t kVocabulary = 151936;
    const Tensor table = RandomTensor(kBf16, kVocabulary, d), dtable = New(kF32, kVocabulary, d);
    std::vector<int32_t> ids(static_cast<size_t>(t));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(7919 * i % kVocabulary);
    Report("embedding", rows * cols * 6, 0, [&] { ops_.Embedding({.ids = ids, .table = table, .out = x}); });
    Report("embedding backward", rows * cols * 12, 0,
           [&] { ops_.EmbeddingBackward({.ids = ids, .dout = dx, .dtable = dtable}); });
  }

  void Softmax(int64_t rows, int64_t vocabulary) {
    const double elements = static_cast<double>(rows) * static_cast<double>(vocabulary);
    const Tensor logits = RandomTensor(kF32, rows, vocabulary), lse = New(kF32, 1, rows), log_prob = New(kF32, 1, rows);
    const Tensor a = RandomTensor(kF32, 1, rows), dlogits = New(kBf16, rows, vocabulary);
    const std::vector<int32_t> targets(static_cast<size_t>(rows), 7);
    Report("log softmax, 151,936 ids", elements * 4, 0, [&] {
      ops_.LogSoftmax(
          {.logits = logits, .targets = targets, .lse = lse, .log_prob = log_prob, .mean_log_prob = {}, .entropy = {}});
    });
    constexpr int64_t kDrawn = 256, kWidth = 1536;
    const Tensor hidden = RandomTensor(kBf16, kDrawn, kWidth), head = RandomTensor(kBf16, vocabulary, kWidth);
    const Tensor ids = New(DType::kI32, 1, kDrawn), drawn = New(kF32, 1, kDrawn);
    const auto packed = ops_.NewPacked(kBf16, kWidth, vocabulary);
    ops_.Pack({.weight = head, .out = packed.get()});
    const std::vector<DrawUniforms> uniforms(kDrawn, {.block = 0.3f, .in_block = 0.6f});
    Report("head and draw, 256 rows of 1536", 0, 2.0 * kDrawn * kWidth * static_cast<double>(vocabulary),
           [&] { ops_.Draw({.a = hidden, .b = packed.get(), .uniforms = uniforms, .ids = ids, .log_prob = drawn}); });
    const Tensor behaviour = RandomTensor(kF32, rows, vocabulary), ratio = New(kF32, 1, rows);
    Report("largest ratio (Q-SFT)", elements * 8, 0,
           [&] { ops_.MaxRatio({.value_logits = logits, .behaviour_logits = behaviour, .max_ratio = ratio}); });
    Report("log softmax backward", elements * 6, 0, [&] {
      ops_.LogSoftmaxBackward(
          {.logits = logits, .lse = lse, .targets = targets, .a = a, .b = {}, .c = {}, .dlogits = dlogits});
    });
  }

  void Optimizer(int64_t count) {
    const auto n = static_cast<double>(count);
    const Tensor param = RandomTensor(kF32, 1, count), grad = RandomTensor(kF32, 1, count);
    {
      const Tensor m = New(kF32, 1, count), v = New(kF32, 1, count);
      Report("AdamW, fp32 moments", n * 28, 0,
             [&] { ops_.AdamW({.param = param, .grad = grad, .m = m, .v = v, .learning_rate = 1e-5f}); });
    }
    const Tensor m = New(DType::kE4M3, 1, count), v = New(DType::kE5M2, 1, count);
    const Tensor scales = New(kF32, 2, count / 2048);
    Report("AdamW, fp8 moments in blocks", n * 16, 0, [&] {
      ops_.AdamW({.param = param,
                  .grad = grad,
                  .m = m,
                  .v = v,
                  .m_scale = scales.view().Rows(0, 1),
                  .v_scale = scales.view().Rows(1, 1),
                  .block = 2048,
                  .learning_rate = 1e-5f});
    });
    Report("squared norm", n * 4, 0, [&] { ops_.SquaredNorm(grad); });
  }

  // `sequences` of `context` + `count` positions each, with pages of their own.
  struct Pages {
    Tensor memory;
    std::vector<void*> table;
    std::vector<SequenceRows> rows;
  };
  Pages NewPages(const KvLayout& layout, int64_t sequences, int64_t context, int64_t count) {
    const int64_t each = (context + count + KvLayout::kPageTokens - 1) / KvLayout::kPageTokens;
    Pages out;
    out.memory = RandomTensor(layout.dtype, sequences * each, layout.page_elements());
    for (int64_t i = 0; i < sequences * each; ++i) out.table.push_back(out.memory.Row<uint8_t>(i));
    for (int64_t i = 0; i < sequences; ++i)
      out.rows.push_back({.row = i * count, .count = count, .context = context, .pages = out.table.data() + i * each});
    return out;
  }

  void Training(int64_t dim, int64_t length) {
    const int64_t heads = 1536 / dim, kv_heads = 2, sequences = 16384 / length, rows = sequences * length;
    const KvLayout layout = {.dtype = kBf16, .layers = 1, .kv_heads = kv_heads, .head_dim = dim};
    const Tensor qkv = RandomTensor(kBf16, rows, (heads + 2 * kv_heads) * dim), dqkv = New(kBf16, rows, qkv.cols());
    const Tensor out = New(kBf16, rows, heads * dim), dout = RandomTensor(kBf16, rows, heads * dim);
    const Tensor lse = New(kF32, rows, heads);
    const Pages pages = NewPages(layout, sequences, 0, length);
    const float scale = 1 / std::sqrt(static_cast<float>(dim));
    const double pairs = static_cast<double>(rows * heads) * static_cast<double>(length + 1) / 2;
    const std::string name = "attention " + std::to_string(length) + ", heads of " + std::to_string(dim);
    const Tensor cos = RandomTensor(kF32, length, dim / 2), sin = RandomTensor(kF32, length, dim / 2);
    const KvWriteArgs write{.qkv = qkv, .sequences = pages.rows, .layout = layout, .heads = heads};
    std::vector<int32_t> positions(static_cast<size_t>(rows));
    for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int32_t>(i) % static_cast<int32_t>(length);
    const RotaryArgs rotary{.qkv = qkv,
                            .out = dqkv,
                            .positions = positions,
                            .cos = cos,
                            .sin = sin,
                            .q_norm = {},
                            .k_norm = {},
                            .heads = heads,
                            .kv_heads = kv_heads,
                            .head_dim = dim,
                            .pages = &write};
    const double elements = static_cast<double>(rows * qkv.cols()), kept = static_cast<double>(rows * kv_heads * dim);
    Report("rotary with kv write, heads of " + std::to_string(dim), elements * 4 + kept * 4, 0,
           [&] { ops_.Rotary(rotary); });
    Report("kv write, heads of " + std::to_string(dim), kept * 8, 0, [&] { ops_.KvWrite(write); });
    Report(name, 0, pairs * 4 * static_cast<double>(dim), [&] {
      ops_.Attention({.q = qkv.view().Cols(0, heads * dim),
                      .sequences = pages.rows,
                      .layout = layout,
                      .heads = heads,
                      .scale = scale,
                      .out = out,
                      .lse = lse});
    });
    Report(name + ", backward", 0, pairs * 10 * static_cast<double>(dim), [&] {
      ops_.AttentionBackward({.qkv = qkv,
                              .sequences = pages.rows,
                              .heads = heads,
                              .kv_heads = kv_heads,
                              .head_dim = dim,
                              .scale = scale,
                              .out = out,
                              .lse = lse,
                              .dout = dout,
                              .dqkv = dqkv});
    });
  }

  void Decode(int64_t dim, int64_t batch, int64_t context) {
    const int64_t heads = 1536 / dim, kv_heads = 2;
    const KvLayout layout = {.dtype = kBf16, .layers = 1, .kv_heads = kv_heads, .head_dim = dim};
    const Tensor q = RandomTensor(kBf16, batch, heads * dim), out = New(kBf16, batch, heads * dim);
    const Pages pages = NewPages(layout, batch, context - 1, 1);
    const float scale = 1 / std::sqrt(static_cast<float>(dim));
    Report("decode " + std::to_string(batch) + " x " + std::to_string(context) + ", heads of " + std::to_string(dim),
           static_cast<double>(batch * context * kv_heads * dim) * 4, 0, [&] {
             ops_.Attention({.q = q,
                             .sequences = pages.rows,
                             .layout = layout,
                             .heads = heads,
                             .scale = scale,
                             .out = out,
                             .lse = {}});
           });
  }

  // About normal for every matrix, norms one, biases zero.
  void Initialize(const Parameters& parameters) {
    const Tensor noise = RandomTensor(kF32, 1, 1 << 22), zero = New(kF32, 1, 1 << 22);
    ops_.Lerp(zero, 0.97f, noise);
    for (const ParameterInfo& info : parameters.layout().parameters()) {
      if (!info.decay) {
        ops_.Fill(parameters.View(info.name), info.name.ends_with(".bias") ? 0.0f : 1.0f);
        continue;
      }
      for (int64_t begin = 0; begin < info.rows * info.cols; begin += noise.cols()) {
        const int64_t count = std::min(noise.cols(), info.rows * info.cols - begin);
        ops_.Cast(noise.view().Cols(0, count), parameters.flat().Cols(info.offset + begin, count));
      }
    }
  }

  // Whole training steps, optimizer included: 8 sequences of 1024 tokens, at 7B 4 of them with FP8 moments and bf16
  // masters. FLOP/s are 6 N and causal attention's.
  void Step(const std::string& name, const ModelConfig& config) {
    constexpr int64_t kLength = 1024;
    const bool large = config.hidden_size > 2048;
    const int64_t sequences = large ? 4 : 8;
    const auto weights = static_cast<double>(ParameterLayout(config).size());
    const auto saved =
        static_cast<double>(kLength * sequences * config.layers) *
        (26.0 * static_cast<double>(config.hidden_size) + 10.0 * static_cast<double>(config.intermediate_size));
    if (!Fits(name + " training step", weights * (large ? 12 : 20) + saved)) return;
    TrainingBatch batch;
    std::vector<int32_t> ids(kLength + 1);
    for (int64_t s = 0; s < sequences; ++s) {
      for (size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<int32_t>((7919 * static_cast<int64_t>(i) + 104729 * s) % config.vocab_size);
      const int64_t row = batch.tokens.rows();
      batch.tokens.Add(ids.data(), kLength, 0, nullptr);
      ++batch.episodes;
      for (int64_t i = 0; i < kLength; ++i)
        batch.rows.push_back({.row = row + i, .target = ids[static_cast<size_t>(i) + 1]});
    }
    for (const bool fp8 : {false, true}) {
      TrainerOptions options;
      options.max_micro_batch_tokens = kLength * sequences;
      if (large) options.memory = {.fp8_moments = true, .block = 2048, .bf16_masters = true};
      Trainer trainer(ops_, config, fp8 ? Recipe::Fp8() : Recipe(kBf16), kLength, options);
      const Parameters& parameters = trainer.parameters();
      Initialize(parameters);
      const Status begun = trainer.Begin(options.optimizer, std::nullopt);
      QUERN_CHECK(begun.ok(), begun.message());
      const auto tokens = static_cast<double>(kLength * sequences);
      const double flops =
          tokens * (6 * static_cast<double>(parameters.layout().size()) +
                    static_cast<double>(config.layers * config.q_size()) * 7 * static_cast<double>(kLength + 1));
      std::string loss;
      const double seconds = Time([&] {
        const auto report = trainer.Step(batch, SftObjective(), nullptr);
        loss = report.ok() ? "" : ", " + report.status().message();
      });
      std::printf("%-44s %10.3f %10s %10.1f %7.0f%%  %.0f tokens/s%s\n",
                  (name + " training step, " + (fp8 ? "fp8" : "bf16")).c_str(), 1e3 * seconds, "",
                  flops / seconds / 1e12, 100 * flops / seconds / product_, tokens / seconds, loss.c_str());
      std::fflush(stdout);
    }
  }

  // A token each for `batch` sequences of 1024, drawn from the whole vocabulary, with and without a graph. Bytes are
  // the weights' and the keys' and values'.
  void DecodeModel(const std::string& name, const ModelConfig& config) {
    constexpr int64_t kContext = 1024;
    for (const bool fp8 : {false, true}) {
      const Recipe recipe = fp8 ? Recipe::Fp8() : Recipe(kBf16);
      const Transformer transformer(ops_, config, kBf16, kContext + 1);
      Weights weights(ops_, config, recipe, false);
      {
        const auto bytes = static_cast<double>(ParameterLayout(config).size()) * (fp8 ? 3 : 4);
        if (!Fits(name + " decode", bytes)) return;
        const Parameters parameters(config, kBf16, &ops_);
        Initialize(parameters);
        const Status loaded = weights.Load(parameters.Source());
        QUERN_CHECK(loaded.ok(), loaded.message());
      }
      const KvLayout layout = transformer.kv_layout();
      for (const int64_t batch : {1, 32, 256}) {
        const std::string what = name + " decode, batch " + std::to_string(batch) + (fp8 ? ", fp8" : ", bf16");
        const auto cache = static_cast<double>(batch * kContext / KvLayout::kPageTokens * layout.page_bytes());
        if (!Fits(what, 1.1 * cache)) continue;
        const Pages pages = NewPages(layout, batch, kContext - 1, 1);
        TokenBatch tokens;
        for (int64_t i = 0; i < batch; ++i) {
          const auto id = static_cast<int32_t>(7919 * i % config.vocab_size);
          tokens.Add(&id, 1, kContext - 1, pages.rows[static_cast<size_t>(i)].pages);
        }
        Arena arena(ops_.memory());
        const std::vector<DrawUniforms> uniforms(static_cast<size_t>(batch), {.block = 0.3f, .in_block = 0.6f});
        for (const bool graph : {false, true}) {
          const double seconds = Time([&] {
            const Arena::Scope scope(arena);
            const TensorView hidden = arena.New(kBf16, batch, config.hidden_size);
            const TensorView ids = arena.New(DType::kI32, 1, batch), log_prob = arena.New(kF32, 1, batch);
            if (graph) ops_.BeginStep(static_cast<uint64_t>(batch));
            transformer.Forward(weights, tokens, {.layout = layout}, arena, hidden);
            transformer.Draw(weights, hidden, {.a = {}, .uniforms = uniforms, .ids = ids, .log_prob = log_prob});
            if (graph) ops_.EndStep();
          });
          const double bytes = static_cast<double>(weights.bytes()) + cache;
          std::printf("%-44s %10.3f %10.0f %10s %7.0f%%  %.0f tokens/s\n", (what + (graph ? ", graph" : "")).c_str(),
                      1e3 * seconds, bytes / seconds / 1e9, "", 100 * bytes / copy_ / seconds,
                      static_cast<double>(batch) / seconds);
          std::fflush(stdout);
        }
      }
    }
  }

  cuda::Runtime& runtime_;
  CudaOps ops_;
  double seconds_;
  double copy_ = 0, product_ = 0;  // bytes and operations a second
};

int Main(int argc, char** argv) {
  const std::string part = argc > 1 ? argv[1] : "--list";
  if (part == "--list") {
    for (const auto& [name, run] : Bench::Parts()) std::printf("%s\n", name);
    return 0;
  }
  if (part == "header") {
    Bench::Header();
    return 0;
  }
  const CudaDevices found = FindCudaDevices();
  if (found.devices.empty()) {
    std::printf("no GPU: %s\n", found.why_none.c_str());
    return 3;
  }
  auto runtime = std::make_unique<cuda::Runtime>(0);
  cuda::BlasResult blas = cuda::NewBlas(*runtime);
  if (blas.blas == nullptr) {
    std::printf("no products: %s\n", blas.error.c_str());
    return 1;
  }
  const bool quick = std::strcmp(argv[argc - 1], "quick") == 0;
  const double copy = argc > 3 ? std::atof(argv[2]) : 0, product = argc > 3 ? std::atof(argv[3]) : 0;
  Bench bench(std::move(runtime), std::move(blas.blas), quick ? 0.02 : 0.2, copy, product);
  if (part == "ceilings") {
    bench.Measure();
    return 0;
  }
  for (const auto& [name, run] : Bench::Parts()) {
    if (part != name) continue;
    if (copy <= 0 || product <= 0) {
      std::printf("%s: the ceilings come first: bench_gpu %s COPY PRODUCT\n", name, name);
      return 2;
    }
    run(bench);
    return 0;
  }
  std::printf("%s: no such part (bench_gpu --list)\n", part.c_str());
  return 2;
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) { return quern::Main(argc, argv); }
