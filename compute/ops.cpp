#include "compute/ops.h"

#include <cmath>
#include <cstring>

#include "compute/key_pruning.h"
#include "compute/op_checks.h"

namespace quern {

void Ops::Upload(const TensorView& host, const TensorView& x) {
  QUERN_CHECK(host.dtype == x.dtype && host.rows == x.rows && host.cols == x.cols);
  for (int64_t r = 0; r < x.rows; ++r)
    std::memcpy(x.Row<uint8_t>(r), host.Row<uint8_t>(r), static_cast<size_t>(x.cols * DTypeSize(x.dtype)));
}

void Ops::Download(const TensorView& x, const TensorView& host) { Ops::Upload(x, host); }

void Ops::Copy(const TensorView& x, const TensorView& y) { Ops::Upload(x, y); }

void Ops::RotaryAttention(const RotaryArgs& rotary, const AttentionArgs& attention) {
  Rotary(rotary);
  Attention(attention);
}

void Ops::Draw(const DrawArgs&) { QUERN_CHECK(draws() && false, name()); }

namespace {

float At(const TensorView& x, int64_t row, int64_t col) {
  return x.dtype == DType::kBf16 ? static_cast<float>(x.Row<Bf16>(row)[col]) : x.Row<float>(row)[col];
}

}  // namespace

void Ops::RowScales(const RowScalesArgs& args) {
  CheckArgs(args);
  ForEach(args.x.rows, [&](int64_t row) {
    float amax = 0;
    for (int64_t c = 0; c < args.x.cols; ++c) amax = std::max(amax, std::abs(At(args.x, row, c)));
    args.scale.Row<float>(0)[row] = SmoothScale(amax);
  });
}

void Ops::ScaleRows(const ScaleRowsArgs& args) {
  CheckArgs(args);
  ForEach(args.x.rows, [&](int64_t row) {
    const float scale = args.divide ? 1.0f / args.scale.Row<float>(0)[row] : args.scale.Row<float>(0)[row];
    for (int64_t c = 0; c < args.x.cols; ++c) {
      const float value = At(args.x, row, c) * scale + (args.accumulate ? At(args.y, row, c) : 0.0f);
      if (args.y.dtype == DType::kBf16) {
        args.y.Row<Bf16>(row)[c] = Bf16(value);
      } else {
        args.y.Row<float>(row)[c] = value;
      }
    }
  });
}

void Ops::QuerySquares(const QuerySquaresArgs& args) {
  CheckArgs(args);
  const int64_t dim = args.head_dim, group = args.q.cols / dim / args.kv_heads;
  for (int64_t row = 0; row < args.q.rows; ++row) {
    for (int64_t c = 0; c < args.q.cols; ++c) {
      const auto value = static_cast<double>(At(args.q, row, c));
      args.squares.Row<double>(0)[c / dim / group * dim + c % dim] += value * value;
    }
  }
}

void Ops::KeySquares(const KeySquaresArgs& args) {
  CheckArgs(args);
  for (int64_t begin = 0; begin < args.slots; begin += KvLayout::kPageTokens)
    AddKeySquares(args.layout, args.pages[begin / KvLayout::kPageTokens],
                  std::min(KvLayout::kPageTokens, args.slots - begin), args.squares.Row<double>(0));
}

void Ops::CopySlots(const CopySlotsArgs& args) {
  CheckArgs(args);
  for (const SlotRun& run : args.runs) quern::CopySlots(args.layout, args.from, args.to, run);
}

void CastOutput(Ops& ops, const TensorView& output, const OutputCast& cast) {
  if (cast.codes.empty()) return;
  QuantizeArgs args = cast;
  args.x = output;
  ops.Quantize(args);
}

void WritePages(Ops& ops, const RotaryArgs& args) {
  if (args.pages != nullptr) ops.KvWrite(PagesOf(args));
}

KvWriteArgs PagesOf(const RotaryArgs& args) {
  KvWriteArgs write = *args.pages;
  write.qkv = args.out;
  return write;
}

Tensor OnHost(Ops& ops, const TensorView& x) {
  Tensor out(x.dtype, x.rows, x.cols);
  ops.Download(x, out);
  return out;
}

Tensor OnDevice(Ops& ops, const TensorView& host) {
  Tensor out(host.dtype, host.rows, host.cols, ops.memory());
  ops.Upload(host, out);
  return out;
}

}  // namespace quern
