#include "compute/cuda/attention.h"

// What compressing a cache of keys and values takes (ThinK, eviction): statistics of channels, and copies of positions
// between pages.

namespace quern::cuda {

namespace {

// A thread a KV head's channel, in the order of rows, so that sums are the CPU's to the bit.
__global__ void __launch_bounds__(kRowThreads)
    QuerySquaresKernel(const void* q, bool bf16, int64_t stride, int64_t rows, int64_t heads, int64_t kv_heads,
                       int64_t dim, double* squares) {
  const int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (i >= kv_heads * dim) return;
  const int64_t group = heads / kv_heads, first = i / dim * group;
  double sum = squares[i];
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = first; head < first + group; ++head) {
      const auto value = static_cast<double>(LoadAct(q, bf16, row * stride + head * dim + i % dim));
      sum += value * value;
    }
  }
  squares[i] = sum;
}

__global__ void __launch_bounds__(kRowThreads)
    KeySquaresKernel(const void* const* pages, KvLayout layout, bool bf16, int64_t slots, double* squares) {
  const int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x, dim = layout.head_dim;
  if (i >= layout.kv_heads * dim) return;
  for (int64_t begin = 0; begin < slots; begin += kPage) {
    double sum = 0;
    for (int64_t slot = 0; slot < kPage && begin + slot < slots; ++slot) {
      const auto value = static_cast<double>(
          LoadAct(pages[begin / kPage], bf16, layout.KeyOffset(0, i / dim) + layout.KeyElement(slot, i % dim)));
      sum += value * value;
    }
    squares[i] += sum;
  }
}

// A block a run and KV head. Bits: an unsigned type as wide as the elements.
template <typename Bits>
__global__ void __launch_bounds__(kRowThreads)
    CopySlotsKernel(const SlotRun* runs, KvLayout layout, PrunedKeys from, PrunedKeys to) {
  const SlotRun run = runs[blockIdx.x];
  const int64_t head = blockIdx.y, dim = layout.head_dim;
  const int64_t from_channels = from.Channels(layout, head), channels = to.Channels(layout, head);
  const auto* keys = static_cast<const Bits*>(run.from) + from.KeyOffset(layout, head);
  auto* to_keys = static_cast<Bits*>(run.to) + to.KeyOffset(layout, head);
  for (int64_t i = threadIdx.x; i < channels * run.count; i += kRowThreads) {
    const int64_t c = i / run.count, slot = i % run.count;
    const int64_t d = channels == from_channels ? c : to.kept[head * to.channels + c];
    const int64_t source = run.from_slot + slot, target = run.to_slot + slot;
    to_keys[(target / kBlock * channels + c) * kBlock + target % kBlock] =
        keys[(source / kBlock * from_channels + d) * kBlock + source % kBlock];
  }
  const auto* values = static_cast<const Bits*>(run.from) + from.ValueOffset(layout, head) + run.from_slot * dim;
  auto* to_values = static_cast<Bits*>(run.to) + to.ValueOffset(layout, head) + run.to_slot * dim;
  for (int64_t i = threadIdx.x; i < dim * run.count; i += kRowThreads) to_values[i] = values[i];
}

unsigned Blocks(int64_t threads) { return static_cast<unsigned>((threads + kRowThreads - 1) / kRowThreads); }

}  // namespace

void QuerySquares(Context& context, const QuerySquaresArgs& args) {
  Launch(QuerySquaresKernel, dim3(Blocks(args.kv_heads * args.head_dim)), dim3(kRowThreads), 0, context.stream(),
         static_cast<const void*>(args.q.data), args.q.dtype == DType::kBf16, args.q.stride, args.q.rows,
         args.q.cols / args.head_dim, args.kv_heads, args.head_dim, static_cast<double*>(args.squares.data));
}

void KeySquares(Context& context, const KeySquaresArgs& args) {
  const std::vector<const void*> pages(args.pages, args.pages + (args.slots + kPage - 1) / kPage);
  Launch(KeySquaresKernel, dim3(Blocks(args.layout.kv_heads * args.layout.head_dim)), dim3(kRowThreads), 0,
         context.stream(), context.staging.Put(pages), args.layout, args.layout.dtype == DType::kBf16, args.slots,
         static_cast<double*>(args.squares.data));
}

void CopySlots(Context& context, const CopySlotsArgs& args) {
  PrunedKeys to = args.to, from = args.from;
  from.kept = nullptr;
  if (to.kept != nullptr)
    to.kept = context.staging.Put(std::span(to.kept, static_cast<size_t>(args.layout.kv_heads * to.channels)));
  const SlotRun* runs = context.staging.Put(args.runs);
  const dim3 grid(static_cast<unsigned>(args.runs.size()), static_cast<unsigned>(args.layout.kv_heads));
  if (args.layout.dtype == DType::kBf16) {
    Launch(CopySlotsKernel<uint16_t>, grid, dim3(kRowThreads), 0, context.stream(), runs, args.layout, from, to);
  } else {
    Launch(CopySlotsKernel<uint32_t>, grid, dim3(kRowThreads), 0, context.stream(), runs, args.layout, from, to);
  }
}

}  // namespace quern::cuda
