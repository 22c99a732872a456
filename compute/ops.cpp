#include "compute/ops.h"

#include <cstring>

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
