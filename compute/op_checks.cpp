#include "compute/op_checks.h"

#include "base/strings.h"

namespace quern {

bool IsAct(const TensorView& view) { return view.dtype == DType::kF32 || view.dtype == DType::kBf16; }

std::string Shape(const TensorView& view) {
  return StrCat(DTypeName(view.dtype), " [", view.rows, ", ", view.cols, "]");
}

void CheckAct(const TensorView& view, int64_t rows, int64_t cols, const char* what) {
  QUERN_CHECK(
      (rows == 0 || !view.empty()) && IsAct(view) && view.rows == rows && view.cols == cols && view.stride >= cols,
      StrCat(what, " is ", Shape(view), ", expected fp32 or bf16 [", rows, ", ", cols, "]"));
}

void CheckAcc(const TensorView& view, int64_t rows, int64_t cols, const char* what) {
  QUERN_CHECK((rows * cols == 0 || !view.empty()) && view.dtype == DType::kF32 && view.rows == rows &&
                  view.cols == cols && (rows == 1 || view.stride >= cols),
              StrCat(what, " is ", Shape(view), ", expected fp32 [", rows, ", ", cols, "]"));
}

namespace {

void CheckAccOrEmpty(const TensorView& view, int64_t rows, int64_t cols, const char* what) {
  if (!view.empty()) CheckAcc(view, rows, cols, what);
}

void CheckIds(std::span<const int32_t> ids, int64_t count, int64_t limit, const char* what) {
  QUERN_CHECK(static_cast<int64_t>(ids.size()) == count, StrCat(ids.size(), " ", what, " for ", count, " rows"));
  for (const int32_t id : ids)
    QUERN_CHECK(id >= 0 && id < limit, StrCat(what, ": ", id, " is not in [0, ", limit, ")"));
}

void CheckRotary(const RotaryArgs& args) {
  const int64_t rows = static_cast<int64_t>(args.positions.size());
  QUERN_CHECK(args.heads > 0 && args.kv_heads > 0 && args.head_dim > 0 && args.head_dim % 2 == 0);
  QUERN_CHECK(args.q_norm.empty() == args.k_norm.empty());
  CheckAccOrEmpty(args.q_norm, 1, args.head_dim, "q_norm");
  CheckAccOrEmpty(args.k_norm, 1, args.head_dim, "k_norm");
  CheckAcc(args.cos, args.cos.rows, args.head_dim / 2, "cos");
  CheckAcc(args.sin, args.cos.rows, args.head_dim / 2, "sin");
  CheckIds(args.positions, rows, args.cos.rows, "positions");
}

void CheckSequences(std::span<const SequenceRows> sequences, int64_t rows, bool pages) {
  for (const SequenceRows& s : sequences) {
    QUERN_CHECK(s.row >= 0 && s.count >= 0 && s.context >= 0 && s.row + s.count <= rows,
                StrCat("rows [", s.row, ", ", s.row + s.count, ") of ", rows, " at context ", s.context));
    QUERN_CHECK(!pages || s.count == 0 || s.pages != nullptr);
    QUERN_CHECK(s.pruned == nullptr || s.pruned->pages * KvLayout::kPageTokens <= s.context);
  }
}

void CheckLayout(const KvLayout& layout, int64_t layer) {
  QUERN_CHECK(layout.dtype == DType::kF32 || layout.dtype == DType::kBf16);
  QUERN_CHECK(layer >= 0 && layer < layout.layers && layout.kv_heads > 0 && layout.head_dim > 0);
}

}  // namespace

void CheckCast(const TensorView& x, const QuantizeArgs& args) {
  if (args.codes.empty()) return;
  QUERN_CHECK(IsFp8(args.format.dtype) && args.codes.dtype == args.format.dtype && args.codes.rows == x.rows &&
                  args.codes.cols == x.cols,
              StrCat("codes are ", Shape(args.codes), " for ", Shape(x)));
  CheckAcc(args.scale, 1, args.rule == QuantizeArgs::Scale::kRow ? x.rows : 1, "scale");
  CheckAccOrEmpty(args.column_scale, 1, x.cols, "column_scale");
  CheckAccOrEmpty(args.amax, 1, 1, "amax");
}

void CheckArgs(const BiasBackwardArgs& args) {
  CheckAct(args.dy, args.dy.rows, args.dy.cols, "dy");
  CheckAcc(args.dbias, 1, args.dy.cols, "dbias");
}

void CheckArgs(const EmbeddingArgs& args) {
  CheckAct(args.table, args.table.rows, args.table.cols, "table");
  CheckAcc(args.out, args.out.rows, args.table.cols, "out");
  CheckIds(args.ids, args.out.rows, args.table.rows, "token ids");
}

void CheckArgs(const EmbeddingBackwardArgs& args) {
  CheckAcc(args.dout, args.dout.rows, args.dout.cols, "dout");
  CheckAcc(args.dtable, args.dtable.rows, args.dout.cols, "dtable");
  CheckIds(args.ids, args.dout.rows, args.dtable.rows, "token ids");
}

void CheckArgs(const RmsNormArgs& args) {
  CheckAcc(args.x, args.x.rows, args.x.cols, "x");
  CheckAcc(args.weight, 1, args.x.cols, "weight");
  CheckAct(args.y, args.x.rows, args.x.cols, "y");
  CheckAccOrEmpty(args.inv_rms, 1, args.x.rows, "inv_rms");
}

void CheckArgs(const RmsNormBackwardArgs& args) {
  const int64_t rows = args.x.rows, dim = args.x.cols;
  CheckAcc(args.x, rows, dim, "x");
  CheckAct(args.dy, rows, dim, "dy");
  CheckAcc(args.weight, 1, dim, "weight");
  CheckAcc(args.inv_rms, 1, rows, "inv_rms");
  CheckAcc(args.dx, rows, dim, "dx");
  CheckAcc(args.dweight, 1, dim, "dweight");
}

void CheckArgs(const RotaryArgs& args) {
  CheckRotary(args);
  const int64_t rows = args.qkv.rows, width = (args.heads + 2 * args.kv_heads) * args.head_dim;
  CheckAct(args.qkv, rows, width, "qkv");
  CheckAct(args.out, rows, width, "out");
  QUERN_CHECK(static_cast<int64_t>(args.positions.size()) == rows);
  QUERN_CHECK(args.out.data != args.qkv.data ||
              (args.q_norm.empty() && args.out.dtype == args.qkv.dtype && args.out.stride == args.qkv.stride));
}

void CheckArgs(const RotaryBackwardArgs& args) {
  const RotaryArgs& forward = args.forward;
  CheckRotary(forward);
  const int64_t rows = args.dqkv.rows, dim = forward.head_dim;
  const bool norm = !forward.q_norm.empty();
  CheckAct(args.dqkv, rows, (forward.heads + 2 * forward.kv_heads) * dim, "dqkv");
  QUERN_CHECK(static_cast<int64_t>(forward.positions.size()) == rows);
  if (norm) {
    CheckAct(forward.qkv, rows, args.dqkv.cols, "qkv");
    CheckAcc(args.dq_norm, 1, dim, "dq_norm");
    CheckAcc(args.dk_norm, 1, dim, "dk_norm");
  }
}

void CheckArgs(const KvWriteArgs& args) {
  CheckLayout(args.layout, args.layer);
  CheckSequences(args.sequences, args.qkv.rows, true);
  CheckAct(args.qkv, args.qkv.rows, (args.heads + 2 * args.layout.kv_heads) * args.layout.head_dim, "qkv");
}

void CheckArgs(const AttentionArgs& args) {
  const int64_t rows = args.q.rows, width = args.heads * args.layout.head_dim;
  CheckLayout(args.layout, args.layer);
  QUERN_CHECK(args.heads % args.layout.kv_heads == 0 && args.window >= 0);
  CheckAct(args.q, rows, width, "q");
  CheckAct(args.out, rows, width, "out");
  CheckAccOrEmpty(args.lse, rows, args.heads, "lse");
  CheckSequences(args.sequences, rows, true);
  for (const SequenceRows& s : args.sequences) {
    // Head 0's keys, which select, lie where they lie in other pages.
    if (s.pruned != nullptr)
      QUERN_CHECK(args.layout.layers == 1 && (!args.layout.selective || s.pruned->full_heads > 0));
  }
}

void CheckArgs(const AttentionBackwardArgs& args) {
  const int64_t rows = args.qkv.rows, width = args.heads * args.head_dim;
  QUERN_CHECK(args.kv_heads > 0 && args.heads % args.kv_heads == 0 && args.window >= 0);
  CheckAct(args.qkv, rows, width + 2 * args.kv_heads * args.head_dim, "qkv");
  CheckAct(args.out, rows, width, "out");
  CheckAcc(args.lse, rows, args.heads, "lse");
  CheckAct(args.dout, rows, width, "dout");
  CheckAct(args.dqkv, rows, args.qkv.cols, "dqkv");
  CheckAccOrEmpty(args.dgain, 1, 1, "dgain");
  CheckSequences(args.sequences, rows, false);
}

void CheckArgs(const SwiGluArgs& args) {
  CheckAct(args.h, args.h.rows, args.h.cols, "h");
  CheckAct(args.gate_up, args.h.rows, 2 * args.h.cols, "gate_up");
}

void CheckArgs(const SwiGluBackwardArgs& args) {
  CheckAct(args.dh, args.dh.rows, args.dh.cols, "dh");
  CheckAct(args.gate_up, args.dh.rows, 2 * args.dh.cols, "gate_up");
  CheckAct(args.dgate_up, args.dh.rows, 2 * args.dh.cols, "dgate_up");
  QUERN_CHECK(args.dgate_up.data != args.gate_up.data || args.dgate_up.dtype == args.gate_up.dtype);
}

void CheckArgs(const LogSoftmaxArgs& args) {
  const int64_t rows = args.logits.rows, vocabulary = args.logits.cols;
  CheckAcc(args.logits, rows, vocabulary, "logits");
  CheckAcc(args.lse, 1, rows, "lse");
  CheckAccOrEmpty(args.log_prob, 1, rows, "log_prob");
  CheckAccOrEmpty(args.mean_log_prob, 1, rows, "mean_log_prob");
  CheckAccOrEmpty(args.entropy, 1, rows, "entropy");
  if (!args.log_prob.empty()) CheckIds(args.targets, rows, vocabulary, "targets");
}

void CheckArgs(const DrawArgs& args) {
  const int64_t rows = args.a.rows;
  QUERN_CHECK(args.b != nullptr && args.a.cols == args.b->k() && std::ssize(args.uniforms) == rows);
  QUERN_CHECK(args.ids.dtype == DType::kI32 && args.ids.rows == 1 && args.ids.cols == rows, Shape(args.ids));
  QUERN_CHECK(args.never < args.b->n());
  CheckAcc(args.log_prob, 1, rows, "log_prob");
}

void CheckArgs(const LogSoftmaxBackwardArgs& args) {
  const int64_t rows = args.logits.rows, vocabulary = args.logits.cols;
  CheckAcc(args.logits, rows, vocabulary, "logits");
  CheckAcc(args.lse, 1, rows, "lse");
  CheckAcc(args.a, 1, rows, "a");
  CheckAccOrEmpty(args.b, 1, rows, "b");
  CheckAccOrEmpty(args.c, 1, rows, "c");
  CheckAct(args.dlogits, rows, vocabulary, "dlogits");
  CheckIds(args.targets, rows, vocabulary, "targets");
  QUERN_CHECK(args.reserved < vocabulary && (args.c.empty() || args.reserved >= 0));
  QUERN_CHECK(args.dlogits.data != args.logits.data || args.dlogits.dtype == args.logits.dtype);
}

void CheckArgs(const MaxRatioArgs& args) {
  const int64_t rows = args.value_logits.rows, vocabulary = args.value_logits.cols;
  CheckAcc(args.value_logits, rows, vocabulary, "value_logits");
  CheckAcc(args.behaviour_logits, rows, vocabulary, "behaviour_logits");
  CheckAcc(args.max_ratio, 1, rows, "max_ratio");
  QUERN_CHECK(args.reserved < vocabulary && args.epsilon > 0);
}

void CheckArgs(const RowScalesArgs& args) {
  CheckAct(args.x, args.x.rows, args.x.cols, "x");
  CheckAcc(args.scale, 1, args.x.rows, "scale");
}

void CheckArgs(const ScaleRowsArgs& args) {
  CheckAct(args.x, args.x.rows, args.x.cols, "x");
  CheckAcc(args.scale, 1, args.x.rows, "scale");
  CheckAct(args.y, args.x.rows, args.x.cols, "y");
}

namespace {

void CheckSquares(const TensorView& squares, int64_t channels) {
  QUERN_CHECK(squares.dtype == DType::kF64 && squares.rows == 1 && squares.cols == channels,
              StrCat("squares: ", Shape(squares), ", expected fp64 of ", channels, " channels"));
}

}  // namespace

void CheckArgs(const QuerySquaresArgs& args) {
  CheckAct(args.q, args.q.rows, args.q.cols, "q");
  QUERN_CHECK(args.kv_heads > 0 && args.head_dim > 0 && args.q.cols % (args.kv_heads * args.head_dim) == 0);
  CheckSquares(args.squares, args.kv_heads * args.head_dim);
}

void CheckArgs(const KeySquaresArgs& args) {
  QUERN_CHECK(args.layout.layers == 1 && args.slots >= 0);
  CheckSquares(args.squares, args.layout.kv_heads * args.layout.head_dim);
}

void CheckArgs(const CopySlotsArgs& args) {
  QUERN_CHECK(args.layout.layers == 1);
  for (int64_t head = 0; head < args.layout.kv_heads; ++head) {
    const int64_t from = args.from.Channels(args.layout, head), to = args.to.Channels(args.layout, head);
    QUERN_CHECK(from == to || (from == args.layout.head_dim && to < from && args.to.kept != nullptr));
  }
  for (const SlotRun& run : args.runs)
    QUERN_CHECK(run.count > 0 && run.from_slot >= 0 && run.to_slot >= 0 &&
                run.from_slot + run.count <= KvLayout::kPageTokens && run.to_slot + run.count <= KvLayout::kPageTokens);
}

}  // namespace quern
