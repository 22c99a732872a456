#include "tests/bench/timed_ops.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "base/strings.h"
#include "tests/bench/bench_util.h"

namespace quern::bench {

template <typename Call>
void TimedOps::Time(const std::string& operation, double flops, const Call& call) {
  const double begin = Seconds(), cpu_begin = OwnCpuSeconds();
  call();
  Entry& entry = entries_[operation];
  entry.seconds += Seconds() - begin;
  entry.cpu_seconds += OwnCpuSeconds() - cpu_begin;
  entry.flops += flops;
  ++entry.calls;
}

void TimedOps::Print(const char* units, double count, double seconds, double cpu_seconds) const {
  std::vector<std::pair<std::string, Entry>> lines(entries_.begin(), entries_.end());
  Entry rest{.seconds = seconds, .cpu_seconds = cpu_seconds};
  for (const auto& [name, entry] : lines) {
    rest.seconds -= entry.seconds;
    rest.cpu_seconds -= entry.cpu_seconds;
  }
  lines.emplace_back("outside the operations", rest);
  std::sort(lines.begin(), lines.end(),
            [](const auto& a, const auto& b) { return a.second.cpu_seconds > b.second.cpu_seconds; });
  std::printf("  us per %-27s %9s %6s %9s %6s %7s %14s\n", units, "wall", "", "CPU", "", "calls", "GFLOP/CPU-s");
  for (const auto& [name, entry] : lines) {
    std::printf("  %-34s %9.1f %5.1f%% %9.1f %5.1f%% %7.1f %14.0f\n", name.c_str(), 1e6 * entry.seconds / count,
                100 * entry.seconds / seconds, 1e6 * entry.cpu_seconds / count, 100 * entry.cpu_seconds / cpu_seconds,
                static_cast<double>(entry.calls) / count,
                entry.cpu_seconds > 0 ? entry.flops / entry.cpu_seconds / 1e9 : 0);
  }
}

void TimedOps::Pack(const PackArgs& args) {
  Time(args.transposed ? "Pack transposed" : "Pack", 0, [&] { ops_.Pack(args); });
}
void TimedOps::Quantize(const QuantizeArgs& args) {
  Time("Quantize", 0, [&] { ops_.Quantize(args); });
}
void TimedOps::Dequantize(const DequantizeArgs& args) {
  Time("Dequantize", 0, [&] { ops_.Dequantize(args); });
}
void TimedOps::ColumnAmax(const ColumnAmaxArgs& args) {
  Time("ColumnAmax", 0, [&] { ops_.ColumnAmax(args); });
}
void TimedOps::MatMul(const MatMulArgs& args) {
  Time(StrCat("MatMul ", args.b->k(), "x", args.b->n()),
       2.0 * static_cast<double>(args.a.rows * args.b->k() * args.b->n()), [&] { ops_.MatMul(args); });
}
void TimedOps::MatMulGradWeight(const MatMulGradWeightArgs& args) {
  Time(StrCat("MatMulGradWeight ", args.x.cols, "x", args.dy.cols),
       2.0 * static_cast<double>(args.x.rows * args.x.cols * args.dy.cols), [&] { ops_.MatMulGradWeight(args); });
}
void TimedOps::BiasBackward(const BiasBackwardArgs& args) {
  Time("BiasBackward", 0, [&] { ops_.BiasBackward(args); });
}
void TimedOps::Embedding(const EmbeddingArgs& args) {
  Time("Embedding", 0, [&] { ops_.Embedding(args); });
}
void TimedOps::EmbeddingBackward(const EmbeddingBackwardArgs& args) {
  Time("EmbeddingBackward", 0, [&] { ops_.EmbeddingBackward(args); });
}
void TimedOps::RmsNorm(const RmsNormArgs& args) {
  Time("RmsNorm", 0, [&] { ops_.RmsNorm(args); });
}
void TimedOps::RmsNormBackward(const RmsNormBackwardArgs& args) {
  Time("RmsNormBackward", 0, [&] { ops_.RmsNormBackward(args); });
}
void TimedOps::Rotary(const RotaryArgs& args) {
  Time("Rotary", 0, [&] { ops_.Rotary(args); });
}
void TimedOps::RotaryBackward(const RotaryBackwardArgs& args) {
  Time("RotaryBackward", 0, [&] { ops_.RotaryBackward(args); });
}
void TimedOps::KvWrite(const KvWriteArgs& args) {
  Time("KvWrite", 0, [&] { ops_.KvWrite(args); });
}
void TimedOps::Attention(const AttentionArgs& args) {
  Time("Attention", 0, [&] { ops_.Attention(args); });
}
void TimedOps::RotaryAttention(const RotaryArgs& rotary, const AttentionArgs& attention) {
  const bool decodes = std::all_of(attention.sequences.begin(), attention.sequences.end(),
                                   [](const SequenceRows& s) { return s.count == 1; });
  Time(decodes ? "RotaryAttention" : "RotaryAttention of prompts", 0, [&] { ops_.RotaryAttention(rotary, attention); });
}
void TimedOps::AttentionBackward(const AttentionBackwardArgs& args) {
  Time("AttentionBackward", 0, [&] { ops_.AttentionBackward(args); });
}
void TimedOps::SwiGlu(const SwiGluArgs& args) {
  Time("SwiGlu", 0, [&] { ops_.SwiGlu(args); });
}
void TimedOps::SwiGluBackward(const SwiGluBackwardArgs& args) {
  Time("SwiGluBackward", 0, [&] { ops_.SwiGluBackward(args); });
}
void TimedOps::LogSoftmax(const LogSoftmaxArgs& args) {
  Time("LogSoftmax", 0, [&] { ops_.LogSoftmax(args); });
}
void TimedOps::Draw(const DrawArgs& args) {
  Time(StrCat("Draw ", args.b->k(), "x", args.b->n()),
       2.0 * static_cast<double>(args.a.rows * args.b->k() * args.b->n()), [&] { ops_.Draw(args); });
}
void TimedOps::LogSoftmaxBackward(const LogSoftmaxBackwardArgs& args) {
  Time("LogSoftmaxBackward", 0, [&] { ops_.LogSoftmaxBackward(args); });
}
void TimedOps::MaxRatio(const MaxRatioArgs& args) {
  Time("MaxRatio", 0, [&] { ops_.MaxRatio(args); });
}
void TimedOps::GatherRows(const GatherRowsArgs& args) {
  Time("GatherRows", 0, [&] { ops_.GatherRows(args); });
}
void TimedOps::ScatterRows(const ScatterRowsArgs& args) {
  Time("ScatterRows", 0, [&] { ops_.ScatterRows(args); });
}
void TimedOps::AdamW(const AdamWArgs& args) {
  Time("AdamW", 0, [&] { ops_.AdamW(args); });
}
double TimedOps::SquaredNorm(const TensorView& x) {
  double norm = 0;
  Time("SquaredNorm", 0, [&] { norm = ops_.SquaredNorm(x); });
  return norm;
}
void TimedOps::Lerp(const TensorView& x, float alpha, const TensorView& y) {
  Time("Lerp", 0, [&] { ops_.Lerp(x, alpha, y); });
}
void TimedOps::Cast(const TensorView& x, const TensorView& y) {
  Time("Cast", 0, [&] { ops_.Cast(x, y); });
}
void TimedOps::Fill(const TensorView& x, float value) {
  Time("Fill", 0, [&] { ops_.Fill(x, value); });
}
void TimedOps::ForEach(int64_t count, const std::function<void(int64_t)>& body) {
  Time("host work", 0, [&] { ops_.ForEach(count, body); });
}

}  // namespace quern::bench
