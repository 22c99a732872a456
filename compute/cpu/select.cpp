// What Selective Attention adds to attention: F, how far every position is masked for every row.

#include "compute/cpu/attention_tiles.h"
#include "compute/cpu/kernels.h"
#include "compute/cpu/views.h"

namespace quern::cpu::QUERN_ISA {

// The sum over rows is taken row by row, so that a row's F is the same number however rows are cut into calls.
void Select(const AttentionArgs& args, const SelectTask& task) {
  constexpr int64_t kPage = KvLayout::kPageTokens;
  const SequenceRows& sequence = *task.sequence;
  const KvLayout& layout = args.layout;
  const int64_t dim = layout.head_dim, first = task.page * kPage;
  float* carry = static_cast<float*>(sequence.selection) + layout.SelectionOffset(task.page, args.layer);
  for (int64_t j = 0; j < kPage; ++j)
    if (first + j >= sequence.context) carry[j] = 0;
  float* q = task.scratch;
  float* scores = q + kMaxTile * dim;
  const F16 gain = Set(static_cast<float>(args.gain));
  WithTypes(TensorView{.dtype = layout.dtype}, args.q, [&](auto kv, auto act) {
    const auto* keys = static_cast<const decltype(kv)*>(sequence.pages[task.page]) + layout.KeyOffset(args.layer, 0);
    for (int64_t r = first > sequence.context ? first - sequence.context : 0; r < sequence.count;) {
      const int64_t tile = TileOf(sequence.count - r);
      for (int64_t i = 0; i < tile; ++i) {
        const auto* from = Row<decltype(act)>(args.q, sequence.row + r + i);
        ForVectors(dim, [&](int64_t d, auto lanes) { Store(q + i * dim + d, Load(from + d, lanes), lanes); });
      }
      // Keys that are not written yet are no numbers: what they give is masked below.
      WithTile(tile, [&](auto count) { Score<decltype(count)::value>(q, dim, keys, kPage / kLanes, scores, kPage); });
      for (int64_t i = 0; i < tile; ++i) {
        const int64_t position = sequence.context + r + i;
        float* row = task.penalties + (r + i) * task.penalty_stride + first;
        for (int64_t j = 0; j < kPage; j += kLanes) {
          const F16 f = Load(carry + j);
          Store(row + j, f);
          // Positions in (0, position) are selected.
          const int64_t begin = first + j == 0 ? 1 : 0, end = position - first - j;
          if (end <= begin) continue;
          F16 s = Load(scores + i * kPage + j) * Set(args.scale);
          s = InRange(begin, end < kLanes ? end : kLanes, s, Zero());
          Store(carry + j, Fma(Max(s, Zero()), gain, f));
        }
      }
      r += tile;
    }
  });
}

float Live(const float* penalties, int64_t position, float tau) {
  const float masked = SumVectors(
      position + 1, [&](F16 sum, int64_t i, auto lanes) { return sum + Min(Load(penalties + i, lanes), Set(tau)); });
  return static_cast<float>(position + 1) - masked / tau;
}

}  // namespace quern::cpu::QUERN_ISA
