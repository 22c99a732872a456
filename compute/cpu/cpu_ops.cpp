#include "compute/cpu/cpu_ops.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "base/strings.h"
#include "compute/cpu/gemm.h"
#include "compute/cpu/kernels.h"
#include "compute/cpu/packed.h"
#include "compute/op_checks.h"

namespace quern {

namespace {

// Chunks are sized by work, never by the number of threads: what a chunk sums is part of the result.
constexpr int64_t kRowChunk = 16;
constexpr int64_t kElementChunk = 16384;
constexpr int64_t kColumnChunk = 64;
constexpr int64_t kPartialRows = 64;        // rows whose weight gradients are summed before they join the others
constexpr int64_t kQueryRows = 32;          // query rows of an attention task
constexpr int64_t kAttentionChunk = 32768;  // queries x keys x channels: some microseconds

// Scratch of the calling thread, kept between calls, at the beginning of a cache line. Contents are left over from
// earlier use.
float* ThreadScratch(int64_t count) {
  thread_local Tensor scratch;
  if (scratch.cols() < count) scratch = Tensor(DType::kF32, 1, std::max(count, 2 * scratch.cols()));
  return scratch.Row<float>(0);
}

// out[i] += the sum over rows of partials[row, i], in row order.
void AddPartials(const float* partials, int64_t rows, int64_t stride, int64_t count, float* out) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < count; ++i) out[i] += partials[row * stride + i];
}

float ReadElement(const TensorView& view, int64_t row, int64_t col) {
  switch (view.dtype) {
    case DType::kF32: return view.Row<float>(row)[col];
    case DType::kF64: return static_cast<float>(view.Row<double>(row)[col]);
    case DType::kBf16: return static_cast<float>(view.Row<Bf16>(row)[col]);
    case DType::kF16: return HalfToFloat(view.Row<uint16_t>(row)[col]);
    default: QUERN_CHECK(false, StrCat("cannot read ", DTypeName(view.dtype)));
  }
  return 0;
}

void WriteElement(const TensorView& view, int64_t row, int64_t col, float value) {
  switch (view.dtype) {
    case DType::kF32: view.Row<float>(row)[col] = value; break;
    case DType::kF64: view.Row<double>(row)[col] = value; break;
    case DType::kBf16: view.Row<Bf16>(row)[col] = Bf16(value); break;
    case DType::kF16: view.Row<uint16_t>(row)[col] = FloatToHalf(value); break;
    case DType::kI32: view.Row<int32_t>(row)[col] = static_cast<int32_t>(value); break;
    default: QUERN_CHECK(false, StrCat("cannot write ", DTypeName(view.dtype)));
  }
}

}  // namespace

std::unique_ptr<Ops> NewCpuOps(ThreadPool* pool) { return std::make_unique<CpuOps>(pool); }

CpuOps::CpuOps(ThreadPool* pool, cpu::Isa isa)
    : pool_(pool), kernels_(&cpu::RowKernelsFor(isa)), gemm_(&cpu::KernelsFor(isa)) {}

template <typename Body>
void CpuOps::ForChunks(int64_t count, int64_t chunk, const Body& body) {
  pool_->ParallelFor((count + chunk - 1) / chunk,
                     [&](int64_t i) { body(i * chunk, std::min(count, (i + 1) * chunk)); });
}

std::unique_ptr<PackedMatrix> CpuOps::NewPacked(DType dtype, int64_t k, int64_t n) {
  return cpu::NewPacked(dtype, k, n, *gemm_);
}
void CpuOps::Pack(const PackArgs& args) {
  QUERN_CHECK(args.out != nullptr);
  if (IsFp8(args.out->dtype())) {
    PackFp8(args);
  } else {
    cpu::Pack(args, *pool_);
  }
}
void CpuOps::MatMul(const MatMulArgs& args) {
  if (!IsFp8(args.a.dtype)) return cpu::MatMul(args, *pool_, scratch_);
  QUERN_CHECK(args.b != nullptr && IsFp8(args.b->dtype()));
  // bf16 holds a code times its scale, so multiplying decoded values is multiplying codes and scaling the sum.
  const Arena::Scope scope(scratch_);
  MatMulArgs decoded = args;
  decoded.a = scratch_.New(DType::kBf16, args.a.rows, args.a.cols);
  Dequantize({.codes = args.a, .scale = args.a_scale, .y = decoded.a});
  cpu::MatMul(decoded, *pool_, scratch_);
}
void CpuOps::MatMulGradWeight(const MatMulGradWeightArgs& args) {
  cpu::MatMulGradWeight(args, *pool_, scratch_, *gemm_);
}

void CpuOps::BiasBackward(const BiasBackwardArgs& args) {
  CheckArgs(args);
  ForChunks(args.dy.cols, kColumnChunk,
            [&](int64_t begin, int64_t end) { kernels_->bias_backward_columns(args, begin, end); });
}

void CpuOps::Embedding(const EmbeddingArgs& args) {
  CheckArgs(args);
  ForChunks(args.out.rows, kRowChunk, [&](int64_t begin, int64_t end) { kernels_->embedding(args, begin, end); });
}

void CpuOps::EmbeddingBackward(const EmbeddingBackwardArgs& args) {
  CheckArgs(args);
  ForChunks(args.dout.cols, kColumnChunk,
            [&](int64_t begin, int64_t end) { kernels_->embedding_backward_columns(args, begin, end); });
}

void CpuOps::RmsNorm(const RmsNormArgs& args) {
  CheckArgs(args);
  const bool casts = CastsByRows(args.cast);
  ForChunks(args.x.rows, kRowChunk, [&](int64_t begin, int64_t end) {
    kernels_->rms_norm(args, begin, end);
    if (casts) CastRows(args.cast, args.y, begin, end);
  });
  if (!casts) CastOutput(*this, args.y, args.cast);
}

void CpuOps::RmsNormBackward(const RmsNormBackwardArgs& args) {
  CheckArgs(args);
  const int64_t rows = args.x.rows, dim = args.x.cols;
  const int64_t partials = (rows + kPartialRows - 1) / kPartialRows;
  Arena::Scope scope(scratch_);
  auto* sums = static_cast<float*>(scratch_.New(DType::kF32, std::max<int64_t>(partials, 1), dim).data);
  std::fill_n(sums, partials * dim, 0.0f);
  ForChunks(rows, kPartialRows, [&](int64_t begin, int64_t end) {
    kernels_->rms_norm_backward(args, begin, end, sums + begin / kPartialRows * dim);
  });
  AddPartials(sums, partials, dim, dim, args.dweight.Row<float>(0));
}

void CpuOps::Rotary(const RotaryArgs& args) {
  CheckArgs(args);
  ForChunks(args.qkv.rows, kRowChunk, [&](int64_t begin, int64_t end) { kernels_->rotary(args, begin, end); });
  WritePages(*this, args);
}

void CpuOps::RotaryBackward(const RotaryBackwardArgs& args) {
  CheckArgs(args);
  const int64_t rows = args.dqkv.rows, dim = args.forward.head_dim;
  const int64_t partials = (rows + kPartialRows - 1) / kPartialRows;
  Arena::Scope scope(scratch_);
  auto* sums = static_cast<float*>(scratch_.New(DType::kF32, std::max<int64_t>(partials, 1), 3 * dim).data);
  std::fill_n(sums, partials * 3 * dim, 0.0f);
  ForChunks(rows, kPartialRows, [&](int64_t begin, int64_t end) {
    kernels_->rotary_backward(args, begin, end, sums + begin / kPartialRows * 3 * dim);
  });
  if (args.forward.q_norm.empty()) return;
  AddPartials(sums, partials, 3 * dim, dim, args.dq_norm.Row<float>(0));
  AddPartials(sums + dim, partials, 3 * dim, dim, args.dk_norm.Row<float>(0));
}

void CpuOps::KvWrite(const KvWriteArgs& args) {
  CheckArgs(args);
  struct Task {
    const SequenceRows* sequence;
    int64_t begin;
  };
  std::vector<Task> tasks;
  for (const SequenceRows& s : args.sequences)
    for (int64_t begin = 0; begin < s.count; begin += kRowChunk) tasks.push_back({&s, begin});
  ForChunks(static_cast<int64_t>(tasks.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Task& task = tasks[static_cast<size_t>(i)];
      kernels_->kv_write(args, *task.sequence, task.begin, std::min(task.begin + kRowChunk, task.sequence->count), 0,
                         args.layout.kv_heads);
    }
  });
}

void CpuOps::Attention(const AttentionArgs& args) {
  CheckArgs(args);
  Arena::Scope scope(scratch_);
  const std::vector<TensorView> penalties =
      args.layout.selective ? SelectRows(args) : std::vector<TensorView>(args.sequences.size());
  std::vector<cpu::AttentionTask> tasks;
  for (size_t i = 0; i < args.sequences.size(); ++i) {
    const SequenceRows& s = args.sequences[i];
    for (int64_t begin = 0; begin < s.count; begin += kQueryRows)
      for (int64_t head = 0; head < args.layout.kv_heads; ++head)
        tasks.push_back({.sequence = &s,
                         .kv_head = head,
                         .begin = begin,
                         .end = std::min(begin + kQueryRows, s.count),
                         .penalties = static_cast<const float*>(penalties[i].data),
                         .penalty_stride = penalties[i].stride});
  }
  // Decode has many tasks of a microsecond or less, which share a chunk.
  int64_t work = 0;
  for (const cpu::AttentionTask& task : tasks) work += (task.end - task.begin) * (task.sequence->context + task.end);
  const auto count = static_cast<int64_t>(tasks.size());
  const int64_t per_task = std::max<int64_t>(1, work / std::max<int64_t>(1, count) * args.layout.head_dim);
  ForChunks(count, std::clamp<int64_t>(kAttentionChunk / per_task, 1, std::max<int64_t>(1, count)),
            [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) {
                cpu::AttentionTask task = tasks[static_cast<size_t>(i)];
                task.scratch = ThreadScratch(cpu::AttentionScratch(args, task.sequence->context + task.end - 1));
                if (i + 1 < count) task.next = &tasks[static_cast<size_t>(i + 1)];
                kernels_->attention(args, task);
              }
            });
}

// Many decoded rows: each thread rotates a row, writes its keys and values head by head and attends with it while their
// lines are near. Of few rows threads share the heads.
void CpuOps::RotaryAttention(const RotaryArgs& rotary, const AttentionArgs& attention) {
  const std::span<const SequenceRows> sequences = attention.sequences;
  const int64_t count = std::ssize(sequences), kv_heads = attention.layout.kv_heads;
  const bool decodes = count >= 4 * pool_->threads() && rotary.pages != nullptr &&
                       rotary.pages->sequences.data() == sequences.data() && attention.q.data == rotary.out.data &&
                       !attention.layout.selective &&
                       std::all_of(sequences.begin(), sequences.end(), [](const auto& s) { return s.count == 1; });
  if (!decodes) return Ops::RotaryAttention(rotary, attention);
  CheckArgs(rotary);
  CheckArgs(attention);
  const KvWriteArgs write = PagesOf(rotary);
  CheckArgs(write);
  int64_t positions = 0;
  for (const SequenceRows& s : sequences) positions += s.context + 1;
  const int64_t work = positions / std::max<int64_t>(1, count) * kv_heads * attention.layout.head_dim;
  const int64_t chunk = std::clamp<int64_t>(kAttentionChunk / std::max<int64_t>(1, work), 1, kRowChunk);
  ForChunks(count, chunk, [&](int64_t begin, int64_t end) {
    const auto task_of = [&](int64_t i, int64_t head) {
      return cpu::AttentionTask{.sequence = &sequences[static_cast<size_t>(i)], .kv_head = head, .end = 1};
    };
    for (int64_t i = begin; i < end; ++i) {
      // The sequence that this thread will probably attend with next: the others take those between.
      const int64_t later = i + 1 < end ? i + 1 : end + (pool_->threads() - 1) * chunk;
      const SequenceRows& s = sequences[static_cast<size_t>(i)];
      kernels_->rotary(rotary, s.row, s.row + 1);
      for (int64_t head = 0; head < kv_heads; ++head) {
        // Not before: attention with the head before asks for the lines.
        kernels_->kv_write(write, s, 0, 1, head, head + 1);
        cpu::AttentionTask task = task_of(i, head);
        task.scratch = ThreadScratch(cpu::AttentionScratch(attention, s.context));
        const bool last = head + 1 == kv_heads;
        const cpu::AttentionTask next = task_of(last && later < count ? later : i, last ? 0 : head + 1);
        if (!last || later < count) task.next = &next;
        kernels_->attention(attention, task);
      }
    }
  });
}

std::vector<TensorView> CpuOps::SelectRows(const AttentionArgs& args) {
  constexpr int64_t kPage = KvLayout::kPageTokens;
  QUERN_CHECK(args.window == 0 && (args.budget == 0 || args.budget >= 2));
  if (!args.live.empty()) CheckAcc(args.live, 1, args.q.rows, "live");
  std::vector<TensorView> penalties;
  std::vector<cpu::SelectTask> tasks;
  for (const SequenceRows& s : args.sequences) {
    QUERN_CHECK(s.count == 0 || s.selection != nullptr);
    const int64_t pages = (s.context + s.count + kPage - 1) / kPage;
    penalties.push_back(scratch_.New(DType::kF32, s.count, pages * kPage));
    for (int64_t page = 0; page < pages; ++page)
      tasks.push_back({.sequence = &s,
                       .page = page,
                       .penalties = static_cast<float*>(penalties.back().data),
                       .penalty_stride = penalties.back().stride});
  }
  const auto count = static_cast<int64_t>(tasks.size());
  const int64_t per_task =
      std::max<int64_t>(1, args.q.rows * kPage * args.layout.head_dim / std::max<int64_t>(1, count));
  ForChunks(count, std::clamp<int64_t>(kAttentionChunk / per_task, 1, std::max<int64_t>(1, count)),
            [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) {
                cpu::SelectTask task = tasks[static_cast<size_t>(i)];
                task.scratch = ThreadScratch(cpu::SelectScratch(args));
                kernels_->select(args, task);
              }
            });
  if (args.budget == 0 && args.live.empty()) return penalties;
  pool_->ParallelFor(static_cast<int64_t>(penalties.size()), [&](int64_t i) {
    const SequenceRows& s = args.sequences[static_cast<size_t>(i)];
    const TensorView& f = penalties[static_cast<size_t>(i)];
    if (args.budget > 0 && s.context + s.count > args.budget)
      cpu::EvictRows(args, s, static_cast<float*>(f.data), f.stride);
    if (args.live.empty()) return;
    for (int64_t r = 0; r < s.count; ++r)
      args.live.Row<float>(0)[s.row + r] = kernels_->live(f.Row<float>(r), s.context + r, args.live_tau);
  });
  return penalties;
}

void CpuOps::AttentionBackward(const AttentionBackwardArgs& args) {
  CheckArgs(args);
  std::vector<cpu::AttentionBackwardTask> tasks;
  for (const SequenceRows& s : args.sequences) {
    QUERN_CHECK(s.context == 0, StrCat("attention backward at context ", s.context));
    if (s.count == 0) continue;
    for (int64_t head = 0; head < args.kv_heads; ++head) tasks.push_back({.sequence = &s, .kv_head = head});
  }
  if (args.selective) {
    QUERN_CHECK(args.window == 0);
    const auto heads = static_cast<size_t>(args.kv_heads);
    std::vector<float> dgain(tasks.size() / heads);
    pool_->ParallelFor(static_cast<int64_t>(dgain.size()), [&](int64_t i) {
      for (size_t head = heads; head-- > 0;) {
        cpu::AttentionBackwardTask task = tasks[static_cast<size_t>(i) * heads + head];
        task.dgain = &dgain[static_cast<size_t>(i)];
        const int64_t shared = cpu::SelectiveBackwardScratch(task.sequence->count);
        task.shared = ThreadScratch(shared + cpu::AttentionBackwardScratch(args, task.sequence->count));
        task.scratch = task.shared + shared;
        kernels_->attention_backward(args, task);
      }
    });
    if (!args.dgain.empty())
      for (const float part : dgain) *args.dgain.Row<float>(0) += part;
    return;
  }
  pool_->ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    cpu::AttentionBackwardTask task = tasks[static_cast<size_t>(i)];
    task.scratch = ThreadScratch(cpu::AttentionBackwardScratch(args, task.sequence->count));
    kernels_->attention_backward(args, task);
  });
}

void CpuOps::SwiGlu(const SwiGluArgs& args) {
  CheckArgs(args);
  const bool casts = CastsByRows(args.cast);
  ForChunks(args.h.rows, kRowChunk, [&](int64_t begin, int64_t end) {
    kernels_->swiglu(args, begin, end);
    if (casts) CastRows(args.cast, args.h, begin, end);
  });
  if (!casts) CastOutput(*this, args.h, args.cast);
}

void CpuOps::SwiGluBackward(const SwiGluBackwardArgs& args) {
  CheckArgs(args);
  ForChunks(args.dh.rows, kRowChunk, [&](int64_t begin, int64_t end) { kernels_->swiglu_backward(args, begin, end); });
}

void CpuOps::LogSoftmax(const LogSoftmaxArgs& args) {
  CheckArgs(args);
  const int64_t rows = args.logits.rows, vocabulary = args.logits.cols;
  ForChunks(rows, std::max<int64_t>(1, kElementChunk / vocabulary), [&](int64_t begin, int64_t end) {
    kernels_->log_softmax(args, begin, end, ThreadScratch(cpu::LogSoftmaxScratch(vocabulary)));
  });
}

// Each block of logits is drawn from as soon as it is computed; then a block for every row.
void CpuOps::Draw(const DrawArgs& args) {
  const int64_t rows = args.a.rows;
  CheckArgs(args);
  if (rows == 0) return;
  constexpr int64_t kChunkLogits = 32 << 10;  // at least, so that few rows' products are long ones
  constexpr int64_t kRows = 128;              // at most, whose logits of a block stay in L2
  const Arena::Scope scope(scratch_);
  const auto& b = static_cast<const cpu::CpuPackedMatrix&>(*args.b);
  const int64_t vocabulary = b.n(), blocks = LogitBlocks(vocabulary);
  const MatMulArgs matmul{.a = args.a, .b = args.b, .c = {.dtype = DType::kF32}, .bias = {}};
  const cpu::Product product(matmul, *pool_, scratch_);
  const TensorView memory = scratch_.New(DType::kI32, rows, blocks * static_cast<int64_t>(sizeof(cpu::BlockDraw) / 4));
  const auto draws = [&](int64_t row) { return static_cast<cpu::BlockDraw*>(memory.Rows(row, 1).data); };
  const int64_t panels = kLogitBlock / b.panel_cols();
  const int64_t together = std::clamp<int64_t>(kChunkLogits / (rows * kLogitBlock), 1,
                                               std::max<int64_t>(1, blocks / (8 * pool_->threads())));
  const int64_t chunks = (blocks + together - 1) / together, row_blocks = (rows + kRows - 1) / kRows;
  pool_->ParallelFor(chunks * row_blocks, [&](int64_t chunk) {
    const int64_t row = chunk % row_blocks * kRows, count = std::min(kRows, rows - row);
    const int64_t first = chunk / row_blocks * together, end = std::min(blocks, first + together);
    const int64_t begin = first * kLogitBlock, cols = std::min(end * kLogitBlock, vocabulary) - begin;
    TensorView logits{.data = ThreadScratch(count * cols), .dtype = DType::kF32, .rows = count, .cols = cols};
    logits.stride = cols;
    const int64_t later = (chunk + pool_->threads()) / row_blocks * together;
    product.Panels(row, count, first * panels, std::min(end * panels, b.panels()), later * panels, logits);
    if (args.never >= begin && args.never < begin + cols)
      for (int64_t r = 0; r < count; ++r)
        logits.Row<float>(r)[args.never - begin] = -std::numeric_limits<float>::infinity();
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = first; i < end; ++i) {
        const int64_t at = (i - first) * kLogitBlock;
        kernels_->draw_in_block(logits.Row<float>(r) + at, std::min(kLogitBlock, cols - at),
                                args.uniforms[static_cast<size_t>(row + r)], draws(row + r)[i]);
      }
    }
  });
  ForChunks(rows, kRowChunk, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float lse = 0;
      const int64_t block = kernels_->draw_block(draws(row), blocks, args.uniforms[static_cast<size_t>(row)],
                                                 ThreadScratch(2 * blocks), &lse);
      const cpu::BlockDraw& drawn = draws(row)[std::max<int64_t>(0, block)];
      args.ids.Row<int32_t>(0)[row] = block < 0 ? -1 : static_cast<int32_t>(block * kLogitBlock + drawn.index);
      args.log_prob.Row<float>(0)[row] = drawn.logit - lse;
    }
  });
}

void CpuOps::LogSoftmaxBackward(const LogSoftmaxBackwardArgs& args) {
  CheckArgs(args);
  const int64_t rows = args.logits.rows, vocabulary = args.logits.cols;
  ForChunks(rows, std::max<int64_t>(1, kElementChunk / vocabulary),
            [&](int64_t begin, int64_t end) { kernels_->log_softmax_backward(args, begin, end); });
}

void CpuOps::MaxRatio(const MaxRatioArgs& args) {
  CheckArgs(args);
  const int64_t rows = args.value_logits.rows, vocabulary = args.value_logits.cols;
  pool_->ParallelFor(rows, [&](int64_t row) { kernels_->max_ratio(args, row, ThreadScratch(vocabulary)); });
}

void CpuOps::AdamW(const AdamWArgs& args) {
  const int64_t count = args.param.cols;
  CheckAcc(args.grad, 1, count, "grad");
  QUERN_CHECK(args.step >= 1);
  if (IsFp8(args.m.dtype)) return AdamWFp8(args);
  CheckAct(args.param, 1, count, "param");
  CheckAcc(args.m, 1, count, "m");
  CheckAcc(args.v, 1, count, "v");
  ForChunks(count, kElementChunk, [&](int64_t begin, int64_t end) { kernels_->adamw(args, begin, end); });
}

double CpuOps::SquaredNorm(const TensorView& x) {
  CheckAcc(x, x.rows, x.cols, "x");
  const int64_t per_row = (x.cols + kElementChunk - 1) / kElementChunk;
  std::vector<double> sums(static_cast<size_t>(x.rows * per_row));
  pool_->ParallelFor(x.rows * per_row, [&](int64_t i) {
    const int64_t begin = i % per_row * kElementChunk;
    sums[static_cast<size_t>(i)] =
        kernels_->squared_norm(x.Row<float>(i / per_row) + begin, std::min(kElementChunk, x.cols - begin));
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

void CpuOps::Lerp(const TensorView& x, float alpha, const TensorView& y) {
  CheckAct(x, 1, x.cols, "x");
  CheckAcc(y, 1, x.cols, "y");
  ForChunks(x.cols, kElementChunk, [&](int64_t begin, int64_t end) { kernels_->lerp(x, alpha, y, begin, end); });
}

void CpuOps::Cast(const TensorView& x, const TensorView& y) {
  QUERN_CHECK(x.rows == y.rows && x.cols == y.cols, StrCat("cast of ", Shape(x), " to ", Shape(y)));
  const int64_t pieces = std::max<int64_t>(1, (x.cols + kElementChunk - 1) / kElementChunk);
  const int64_t rows = std::max<int64_t>(1, kElementChunk / std::max<int64_t>(1, x.cols));
  ForChunks(x.rows, rows, [&](int64_t begin, int64_t end) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t column = piece * kElementChunk;
      const int64_t count = std::min(kElementChunk, x.cols - column);
      const TensorView from = x.Cols(column, count), to = y.Cols(column, count);
      if (IsAct(x) && IsAct(y)) {
        kernels_->cast(from, to, begin, end);
        continue;
      }
      for (int64_t row = begin; row < end; ++row)
        for (int64_t i = 0; i < count; ++i) WriteElement(to, row, i, ReadElement(from, row, i));
    }
  });
}

void CpuOps::Fill(const TensorView& x, float value) {
  const int64_t pieces = (x.cols + kElementChunk - 1) / kElementChunk;
  pool_->ParallelFor(x.rows * pieces, [&](int64_t i) {
    const int64_t row = i / pieces, begin = i % pieces * kElementChunk, end = std::min(x.cols, begin + kElementChunk);
    if (x.dtype == DType::kF32) {
      std::fill(x.Row<float>(row) + begin, x.Row<float>(row) + end, value);
    } else if (x.dtype == DType::kBf16) {
      std::fill(x.Row<Bf16>(row) + begin, x.Row<Bf16>(row) + end, Bf16(value));
    } else {
      for (int64_t column = begin; column < end; ++column) WriteElement(x, row, column, value);
    }
  });
}

}  // namespace quern
