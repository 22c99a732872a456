#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "base/status.h"
#include "compute/fp8.h"
#include "compute/kv_layout.h"
#include "compute/tensor.h"

namespace quern {

// A weight in a backend's own layout, made once per weight version.
class PackedMatrix {
 public:
  PackedMatrix(DType dtype, int64_t k, int64_t n) : dtype_(dtype), k_(k), n_(n) {}
  virtual ~PackedMatrix() = default;
  DType dtype() const { return dtype_; }
  int64_t k() const { return k_; }  // inner dimension
  int64_t n() const { return n_; }  // outputs
  virtual int64_t bytes() const = 0;

 private:
  DType dtype_;
  int64_t k_;
  int64_t n_;
};

// Below, T rows are tokens; "act" is the activation dtype (fp32 or bf16), "acc" is fp32. In the reference backend every
// view may also be fp64. Views may not overlap unless said. Sizes that disagree are CHECK failures.

// FP8 values: codes [T, D] stand for code * scale[row] / column_scale[column]. Every scale is a power of two, so that
// it moves exponents only: it makes no difference in which order, or on which side of a product's sum, scales are
// applied, and a code times its scale is a bf16 value.
struct QuantizeArgs {
  enum class Scale {
    kRow,     // from each row's largest magnitude: a row's codes depend on that row alone
    kTensor,  // one, from all of x
    kGiven,   // one, read from `scale`; beyond it values saturate
  };
  TensorView x;                  // [T, D] act or acc
  TensorView column_scale = {};  // [1, D] acc, or empty: x is multiplied by it first
  Fp8Format format;
  Scale rule = Scale::kRow;
  bool stochastic = false;  // rounding, from `seed` and the element's place in x
  uint64_t seed = 0;
  TensorView codes;  // [T, D] of the format's dtype
  TensorView scale;  // [1, T] (kRow) or [1, 1] acc; NaN where x has a value that is not finite
  TensorView amax =
      {};  // [1, 1] acc, or empty: becomes the larger of itself and x's largest magnitude after column_scale
  TensorView counts = {};  // [1, 2] i32, or empty: added to: values that saturated, values that became zero
};

// The cast to FP8 of what an operation writes, for the product that reads it next: Quantize of the output with these,
// to the bit; `x` is not looked at. Backends may do both in one pass. Without `codes` there is none.
using OutputCast = QuantizeArgs;

struct DequantizeArgs {
  TensorView codes;              // [T, D] FP8
  TensorView scale;              // [1, T] or [1, 1] acc
  TensorView column_scale = {};  // as in QuantizeArgs
  TensorView y;                  // [T, D] act or acc; exact
};

// amax[i] = max(amax[i], |x[t, i]| for every row t). NaN counts as larger than everything.
struct ColumnAmaxArgs {
  TensorView x;     // [T, D] act or acc
  TensorView amax;  // [1, D] acc
};

// An FP8 matrix (`out` made with an FP8 dtype) has one scale for each of its n columns, from the column's largest
// magnitude, or `scale` for all.
struct PackArgs {
  TensorView
      weight;  // [n, k] as stored by Hugging Face (outputs x inputs); fp32, bf16 or fp16. With `transposed`: [k, n]
  bool transposed = false;  // false: MatMul gives x * weight^T (forward); true: x * weight (gradient of the input)
  // The rest is for FP8 only. input_scale [1, inputs] acc, or empty: multiplied along the inputs before the cast; with
  // `transposed` (and then only beside `scale`) taken off again after it. Powers of two. scale: [1, 1] acc, or empty.
  TensorView input_scale = {};
  Fp8Format format = {};
  TensorView scale = {};
  PackedMatrix* out = nullptr;
};

struct MatMulArgs {
  TensorView a;                     // [T, k] act; FP8 when b is
  TensorView a_scale = {};          // with an FP8 a: [1, T] or [1, 1] acc
  const PackedMatrix* b = nullptr;  // k x n
  TensorView c;                     // [T, n] act or acc
  TensorView bias;                  // [1, n] acc, or empty
  bool accumulate = false;          // c += instead of c = (c acc only)
};

struct MatMulGradWeightArgs {
  TensorView dy;  // [T, n] act
  TensorView x;   // [T, k] act
  TensorView dw;  // [n, k] acc; accumulated into
};

struct BiasBackwardArgs {
  TensorView dy;     // [T, n] act or acc
  TensorView dbias;  // [1, n] acc; accumulated into
};

struct EmbeddingArgs {
  std::span<const int32_t> ids;  // T ids
  TensorView table;              // [V, D] fp32 or bf16
  TensorView out;                // [T, D] acc
};

struct EmbeddingBackwardArgs {
  std::span<const int32_t> ids;
  TensorView dout;    // [T, D] acc
  TensorView dtable;  // [V, D] acc; accumulated into, in row order: deterministic
};

// y = x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019).
struct RmsNormArgs {
  TensorView x;       // [T, D] acc
  TensorView weight;  // [1, D] acc
  float eps = 1e-5f;
  TensorView y;          // [T, D] act
  TensorView inv_rms;    // [1, T] acc, or empty when no backward follows
  OutputCast cast = {};  // of y
};

struct RmsNormBackwardArgs {
  TensorView dy;  // [T, D] act or acc
  TensorView x;
  TensorView weight;
  TensorView inv_rms;
  TensorView dx;       // [T, D] acc; accumulated into (the residual gradient)
  TensorView dweight;  // [1, D] acc; accumulated into
};

// Copies the keys and values of new rows into their sequences' pages.
struct KvWriteArgs {
  TensorView qkv;  // [T, ...] after Rotary
  std::span<const SequenceRows> sequences;
  KvLayout layout;
  int64_t layer = 0;
  int64_t heads = 0;
};

// Per-head RMS norm of queries and keys (Qwen3; off when q_norm is empty) and rotary embedding (Su et al. 2021),
// rotate-half convention: channel j pairs with j + head_dim/2. Values pass through.
struct RotaryArgs {
  TensorView qkv;                      // [T, (heads + 2 kv_heads) * head_dim] act: queries, keys, values
  TensorView out;                      // same shape; may be qkv itself when q_norm is empty
  std::span<const int32_t> positions;  // T
  TensorView cos, sin;                 // [max_position, head_dim / 2] acc
  TensorView q_norm, k_norm;           // [1, head_dim] acc, or empty
  float norm_eps = 1e-6f;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  const KvWriteArgs* pages = nullptr;  // KvWrite of `out` as well; its qkv is not looked at. Or null
};

struct RotaryBackwardArgs {
  RotaryArgs forward;           // qkv = the saved input (needed only with q_norm); out and pages are not looked at
  TensorView dqkv;              // [T, ...] act or acc: gradient of out on entry, gradient of qkv on return
  TensorView dq_norm, dk_norm;  // [1, head_dim] acc, or empty; accumulated into
};

// Causal attention of the new rows over their sequences' pages. Row i of a sequence (position p = context + i) attends
// to positions max(0, p - window + 1) .. p. A row's result depends on its own query and its own keys and values only,
// in a fixed order: bit-equal in decode, prefill and training for any batch. Beside bf16 values, weights may be bf16.
//
// Selective Attention (Leviathan et al. 2024, arXiv 2410.02703), where the layout says so: with L the scaled scores of
// query head 0, S_ij = gain max(0, L_ij) for 0 < j < i and 0 elsewhere, F_ij = sum over rows k < i of S_kj; F_ij is
// subtracted from the scaled scores of every head. Not with a window. `budget`: row i attends to at most so many
// positions, itself and the first among them; those with the largest F (the earliest of equals) are left out, for good.
struct AttentionArgs {
  TensorView q;  // [T, heads * head_dim] act
  std::span<const SequenceRows> sequences;
  KvLayout layout;
  int64_t layer = 0;
  int64_t heads = 0;
  float scale = 1.0f;
  int64_t window = 0;  // 0: unlimited
  TensorView out;      // [T, heads * head_dim] act
  TensorView lse;      // [T, heads] acc: logsumexp of scaled scores, or empty when no backward follows
  int64_t budget = 0;  // selective layouts; 0: everything. At least 2
  double gain = 1;     // selective layouts
  TensorView live{};   // [1, T] acc: position + 1 - sum over j of min(F_ij, live_tau) / live_tau; or empty
  float live_tau = 1.0f;
};

struct AttentionBackwardArgs {
  TensorView qkv;  // [T, (heads + 2 kv_heads) * head_dim] act, after Rotary: what forward attended with
  std::span<const SequenceRows> sequences;  // context must be 0
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 1.0f;
  int64_t window = 0;
  TensorView out;   // [T, heads * head_dim] act
  TensorView lse;   // [T, heads] acc
  TensorView dout;  // [T, heads * head_dim] act or acc
  TensorView dqkv;  // [T, (heads + 2 kv_heads) * head_dim] act or acc; overwritten
  bool selective = false;
  // Selective: the loss has a term live_weight * (sum over sequences of the largest `live` of its rows).
  float live_weight = 0.0f;
  float live_tau = 1.0f;
  double gain = 1;
  TensorView dgain{};  // [1, 1] acc, +=, or empty
};

// h = silu(gate) * up (Shazeer 2020).
struct SwiGluArgs {
  TensorView gate_up;    // [T, 2F] act: gate, then up
  TensorView h;          // [T, F] act
  OutputCast cast = {};  // of h
};

struct SwiGluBackwardArgs {
  TensorView gate_up;
  TensorView dh;        // [T, F] act or acc
  TensorView dgate_up;  // [T, 2F] act; may be gate_up itself
};

// Smooth-SwiGLU by token: scale[i] = SmoothScale (fp8.h) of the largest magnitude of x's row i.
struct RowScalesArgs {
  TensorView x;      // [T, D] act
  TensorView scale;  // [1, T] acc
};

// y row i = x row i times scale[i], a power of two, or divided by it.
struct ScaleRowsArgs {
  TensorView x;      // [T, D] act or acc
  TensorView scale;  // [1, T] acc
  bool divide = false;
  TensorView y;             // [T, D] act or acc; may be x itself
  bool accumulate = false;  // y += instead of y =
};

// Statistics of the categorical distribution of each row of logits, accumulated in fp32 in a fixed order. The sampler
// and every loss use this op: there is one log-probability.
struct LogSoftmaxArgs {
  TensorView logits;                 // [R, V] acc
  std::span<const int32_t> targets;  // R ids, or empty
  TensorView lse;                    // [1, R] acc: logsumexp of the row
  TensorView log_prob;               // [1, R] acc: logits[target] - lse, or empty
  TensorView mean_log_prob;          // [1, R] acc: mean over the vocabulary of the log-probabilities, or empty
  TensorView entropy;                // [1, R] acc, in nats, or empty
};

// Logits whose exponentials are summed together, relative to the largest of them; a row's last block is shorter.
constexpr int64_t kLogitBlock = 480;
constexpr int64_t LogitBlocks(int64_t vocabulary) { return (vocabulary + kLogitBlock - 1) / kLogitBlock; }

// The random numbers in [0, 1) of a draw: which block of logits, which of its ids. Both below 0: the likeliest id, the
// lowest among equals.
struct DrawUniforms {
  float block = 0, in_block = 0;
  float inverse_temperature = 1;  // what logits are multiplied by
};

// Draws an id for every row from the softmax of its logits a b over a temperature; logits stay where they are computed.
// An id is a function of its row's logits, its uniforms and `never` alone, and the same on every backend where the
// logits are (but for the CPU's kernels without fused multiply-add): `block` is put into the inverse of the
// distribution function over the blocks in ascending order, `in_block` into that over the block's ids, ordered by
// i % 16, then by i / 16 % 4, then ascending, i counted from the block's first. Masses are fp32 sums of e^(logit - the
// block's largest), in the order of SumVectors and with the Exp of cpu/simd.h; parts' running sums are compared with
// what is left of a mass (cpu/draw.cpp).
struct DrawArgs {
  TensorView a;                            // [R, k] act
  const PackedMatrix* b = nullptr;         // k x V
  int32_t never = -1;                      // an id whose logit counts as -infinity, or -1
  std::span<const DrawUniforms> uniforms;  // R
  TensorView ids;                          // [1, R] int32; -1 where no logit is finite
  TensorView log_prob;                     // [1, R] acc: what LogSoftmax gives for these ids, to the bit
};

// dlogits = a (onehot(target) - p) + b (1/V - p) + c (onehot(reserved) - p), the gradient of a loss that depends on the
// logits through log p(target), the mean log-probability and log p(reserved); a, b, c = dLoss/d of those three.
struct LogSoftmaxBackwardArgs {
  TensorView logits;  // [R, V] acc
  TensorView lse;     // [1, R]
  std::span<const int32_t> targets;
  TensorView a, b, c;     // [1, R] acc; b and c may be empty (zero)
  int32_t reserved = -1;  // the id c refers to
  TensorView dlogits;     // [R, V] act or acc; may be `logits` itself when acc
};

// For Q-SFT's target: max over the behaviour's support of min(1, p_value(v) / max(p_behaviour(v), epsilon)). The
// support is every v with p_behaviour(v) >= epsilon or in the smallest set of most likely ids whose mass reaches top_p;
// `reserved` is never in it and has no mass in either distribution's normaliser of the behaviour (p_value keeps its
// own).
struct MaxRatioArgs {
  TensorView value_logits;      // [R, V] acc
  TensorView behaviour_logits;  // [R, V] acc
  float epsilon = 0.01f;
  float top_p = 0.95f;
  int32_t reserved = -1;
  TensorView max_ratio;  // [1, R] acc
};

// y row i = x row rows[i]. Same dtype; x and y apart.
struct GatherRowsArgs {
  TensorView x;  // [T, D]
  std::span<const int64_t> rows;
  TensorView y;  // [rows.size(), D]
};

// y row rows[i] = x row i; rows are distinct; other rows of y keep their value.
struct ScatterRowsArgs {
  TensorView x;  // [rows.size(), D]
  std::span<const int64_t> rows;
  TensorView y;  // [T, D]
};

// ThinK (key_pruning.h): sums of squares of queries' or keys' channels, each in the order of rows. `squares`: [1,
// kv_heads * head_dim] fp64, added to.
struct QuerySquaresArgs {
  TensorView q;  // [T, heads * head_dim] act; the heads of a KV head are added together
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  TensorView squares;
};
struct KeySquaresArgs {
  KvLayout layout;  // of one layer; pages that are not pruned
  void* const* pages = nullptr;
  int64_t slots = 0;  // the first so many positions
  TensorView squares;
};

// Copies keys and values of runs of positions between pages of a layout of one layer. A page's form is that of pruned
// ones; a whole one keeps head_dim channels. Keys go to a form of as many channels, or from a whole page to `to.kept`.
struct CopySlotsArgs {
  KvLayout layout;
  PrunedKeys from, to;  // their `pages` are not looked at
  std::span<const SlotRun> runs;
};

// AdamW (Loshchilov & Hutter 2019) on flat buffers; bias correction from `step` (1-based); p -= lr * weight_decay * p
// apart from the adaptive step. Gradients are multiplied by grad_scale (clipping) on the fly. The arithmetic is fp32;
// bf16 parameters and FP8 moments are rounded stochastically at the end, from the words of Philox4x32(counter =
// {element low, element high, 0, 0}, key = seed): the first for m, the second for v, the third for param. A v that is
// not zero keeps at least the smallest code: beside an m that was rounded up, a v that was rounded to zero would let
// eps alone bound the step.
struct AdamWArgs {
  TensorView param;  // [1, n] acc, or bf16
  TensorView grad;   // [1, n] acc
  TensorView m, v;   // [1, n] acc; or FP8 both: m E4M3, v E5M2
  // With FP8 moments: [1, n / block, rounded up] acc, a block's largest magnitude / the format's max; value = code *
  // scale. Not powers of two: v would not decay under a scale that moves by whole binades.
  TensorView m_scale = {}, v_scale = {};
  int64_t block = 0;          // elements that share a scale; 0: all
  uint64_t seed = 0;          // another one for every step
  int64_t first_element = 0;  // number of param's first element, for the counter
  float learning_rate = 0;
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f;
  float weight_decay = 0;
  float grad_scale = 1;
  int64_t step = 1;
};

// Everything a backend computes. Model code calls these and nothing else. Calls on one Ops object come from one thread
// at a time; they return when the result is there (CPU) or queued in order (CUDA).
class Ops {
 public:
  virtual ~Ops() = default;
  virtual const char* name() const = 0;

  // Where the views of all calls below lie: null, the host's memory, or the device's. What Pack, Cast and Fill are
  // given may lie in either, but for scales. Spans, page tables and PrunedKeys are always the host's.
  virtual DeviceMemory* memory() { return nullptr; }
  // The same for what comes and goes in few sizes, such as pages: cheap to take and to give back.
  virtual DeviceMemory* pool() { return memory(); }
  // Copies between the host's memory and this backend's; same shapes and dtypes. The host's side may be used again at
  // once. x may lie in the host's as well.
  virtual void Upload(const TensorView& host, const TensorView& x);
  virtual void Download(const TensorView& x, const TensorView& host);
  // y = x, both in this backend's memory; same shapes and dtypes.
  virtual void Copy(const TensorView& x, const TensorView& y);
  // The host's memory that is best to Download to again and again; null: any. One who Uploads from there may change it
  // after Wait().
  virtual DeviceMemory* staging() { return nullptr; }
  // Returns when all that was called is done.
  virtual void Wait() {}
  // Around what is called again and again with the same shapes and views: a step of decoding. `key` tells steps of
  // different shapes apart. A backend may queue all of it at the end, as one; results are there after EndStep and Wait,
  // or a Download. Nothing else changes.
  virtual void BeginStep(uint64_t /*key*/) {}
  virtual void EndStep() {}
  // Whether it is; an error of the device.
  virtual Result<bool> Done() { return true; }
  // Where calls are queued in order, for libraries beside this backend: a cudaStream_t, whose GPU becomes the thread's
  // current one. Null: calls are done when they return.
  virtual void* stream() { return nullptr; }
  // A second queue, for the same: what is queued there from now on begins after all that was called so far. Null: as
  // stream().
  virtual void* ForkStream() { return nullptr; }
  // What is called from now on begins after all that the second queue has so far.
  virtual void JoinStream() {}

  virtual std::unique_ptr<PackedMatrix> NewPacked(DType dtype, int64_t k, int64_t n) = 0;
  virtual void Pack(const PackArgs& args) = 0;
  virtual void Quantize(const QuantizeArgs& args) = 0;
  virtual void Dequantize(const DequantizeArgs& args) = 0;
  virtual void ColumnAmax(const ColumnAmaxArgs& args) = 0;
  virtual void MatMul(const MatMulArgs& args) = 0;
  virtual void MatMulGradWeight(const MatMulGradWeightArgs& args) = 0;
  virtual void BiasBackward(const BiasBackwardArgs& args) = 0;
  virtual void Embedding(const EmbeddingArgs& args) = 0;
  virtual void EmbeddingBackward(const EmbeddingBackwardArgs& args) = 0;
  virtual void RmsNorm(const RmsNormArgs& args) = 0;
  virtual void RmsNormBackward(const RmsNormBackwardArgs& args) = 0;
  virtual void Rotary(const RotaryArgs& args) = 0;
  virtual void RotaryBackward(const RotaryBackwardArgs& args) = 0;
  virtual void KvWrite(const KvWriteArgs& args) = 0;
  virtual void Attention(const AttentionArgs& args) = 0;
  virtual void AttentionBackward(const AttentionBackwardArgs& args) = 0;
  // Rotary, then Attention: a backend may keep a row's keys and values in its caches in between.
  virtual void RotaryAttention(const RotaryArgs& rotary, const AttentionArgs& attention);
  virtual void SwiGlu(const SwiGluArgs& args) = 0;
  virtual void SwiGluBackward(const SwiGluBackwardArgs& args) = 0;
  virtual void LogSoftmax(const LogSoftmaxArgs& args) = 0;
  // Whether there is a Draw; otherwise it is Logits, the sampler and LogSoftmax.
  virtual bool draws() const { return false; }
  virtual void Draw(const DrawArgs& args);
  virtual void LogSoftmaxBackward(const LogSoftmaxBackwardArgs& args) = 0;
  virtual void MaxRatio(const MaxRatioArgs& args) = 0;
  // What is rare or small has one implementation for all backends in the host's memory.
  virtual void RowScales(const RowScalesArgs& args);
  virtual void ScaleRows(const ScaleRowsArgs& args);
  virtual void QuerySquares(const QuerySquaresArgs& args);
  virtual void KeySquares(const KeySquaresArgs& args);
  virtual void CopySlots(const CopySlotsArgs& args);
  virtual void GatherRows(const GatherRowsArgs& args) = 0;
  virtual void ScatterRows(const ScatterRowsArgs& args) = 0;
  virtual void AdamW(const AdamWArgs& args) = 0;
  // Sum of squares in a fixed order that does not depend on the number of threads.
  virtual double SquaredNorm(const TensorView& x) = 0;
  // y += alpha * (x - y): Polyak averaging. Both [1, n]; y fp32, x fp32 or bf16.
  virtual void Lerp(const TensorView& x, float alpha, const TensorView& y) = 0;
  // y += x. Both [1, n] acc.
  virtual void Add(const TensorView& x, const TensorView& y);
  // y = x with a change of dtype.
  virtual void Cast(const TensorView& x, const TensorView& y) = 0;
  virtual void Fill(const TensorView& x, float value) = 0;
  // Host work between kernels: calls body(i) once for every i in [0, count), in any order and perhaps at the same time
  // on several threads. `body` must not throw.
  virtual void ForEach(int64_t count, const std::function<void(int64_t)>& body) {
    for (int64_t i = 0; i < count; ++i) body(i);
  }
};

// The second part of operations that have one, as an operation of its own: what defines them, and what backends do that
// have no single pass.
void CastOutput(Ops& ops, const TensorView& output, const OutputCast& cast);
void WritePages(Ops& ops, const RotaryArgs& args);
// args.pages, of args.out.
KvWriteArgs PagesOf(const RotaryArgs& args);

// Copies in the host's memory and in the backend's.
Tensor OnHost(Ops& ops, const TensorView& x);
Tensor OnDevice(Ops& ops, const TensorView& host);

inline void Ops::Add(const TensorView& x, const TensorView& y) {
  QUERN_CHECK(x.rows == 1 && y.rows == 1 && x.cols == y.cols && x.dtype == y.dtype);
  constexpr int64_t kChunk = 1 << 16;
  ForEach((x.cols + kChunk - 1) / kChunk, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(x.cols, begin + kChunk);
    if (x.dtype == DType::kF64) {
      for (int64_t i = begin; i < end; ++i) y.Row<double>(0)[i] += x.Row<double>(0)[i];
    } else {
      for (int64_t i = begin; i < end; ++i) y.Row<float>(0)[i] += x.Row<float>(0)[i];
    }
  });
}

}  // namespace quern
