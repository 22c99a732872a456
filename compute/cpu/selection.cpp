#include <cmath>
#include <limits>
#include <vector>

#include "compute/cpu/kernels.h"

namespace quern::cpu {

void EvictRows(const AttentionArgs& args, const SequenceRows& sequence, float* penalties, int64_t stride) {
  constexpr float kEvicted = std::numeric_limits<float>::infinity();
  const KvLayout& layout = args.layout;
  auto* selection = static_cast<float*>(sequence.selection);
  const auto carry = [&](int64_t p) -> float& {
    return selection[layout.SelectionOffset(p / KvLayout::kPageTokens, args.layer) + p % KvLayout::kPageTokens];
  };
  int64_t gone = 0;
  for (int64_t p = 0; p < sequence.context; ++p) gone += carry(p) == kEvicted;
  std::vector<int64_t> now;  // evicted by these rows: the prefix sums do not know of it yet
  for (int64_t r = 0; r < sequence.count; ++r) {
    const int64_t position = sequence.context + r;
    float* row = penalties + r * stride;
    for (const int64_t p : now) row[p] = kEvicted;
    while (position + 1 - gone > args.budget) {
      int64_t worst = -1;
      for (int64_t p = 1; p < position; ++p)
        if (row[p] != kEvicted && (worst < 0 || row[p] > row[worst])) worst = p;
      row[worst] = kEvicted;
      now.push_back(worst);
      ++gone;
    }
  }
  for (const int64_t p : now) carry(p) = kEvicted;
}

}  // namespace quern::cpu
