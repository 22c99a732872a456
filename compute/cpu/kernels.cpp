#include "compute/cpu/kernels.h"

#include <algorithm>

namespace quern::cpu {

#if defined(__x86_64__)
namespace avx512bf16 {
void Attention(const AttentionArgs& args, const AttentionTask& task);
}
namespace avx512 {
extern const RowKernels kRowKernels;
}
namespace avx2 {
extern const RowKernels kRowKernels;
}
#endif
namespace scalar {
extern const RowKernels kRowKernels;
}

const RowKernels& RowKernelsFor(Isa isa) {
#if defined(__x86_64__)
  static const RowKernels with_dots = [] {
    RowKernels kernels = avx512::kRowKernels;
    kernels.attention = avx512bf16::Attention;
    return kernels;
  }();
  // CPUs with tiles do bf16 dot products at half the rate of fp32 multiply-adds.
  if (isa == Isa::kAvx512Bf16) return with_dots;
  if (isa >= Isa::kAvx512) return avx512::kRowKernels;
  if (isa >= Isa::kAvx2) return avx2::kRowKernels;
#endif
  return scalar::kRowKernels;
}

// attention.cpp holds three tiles of at most eight queries beside the scores of the tile.
int64_t AttentionScratch(const AttentionArgs& args, int64_t last_position) {
  constexpr int64_t kMostRows = 8;
  return kMostRows * (3 * args.layout.head_dim + last_position + 1 + 2 * KvLayout::kBlockTokens);
}

// select.cpp holds a tile of at most eight queries and their scores in a page.
int64_t SelectScratch(const AttentionArgs& args) { return 8 * (args.layout.head_dim + KvLayout::kPageTokens); }

// F, its gradient, and one row of sums.
int64_t SelectiveBackwardScratch(int64_t count) {
  const int64_t padded = (count + KvLayout::kBlockTokens - 1) / KvLayout::kBlockTokens * KvLayout::kBlockTokens;
  return (2 * count + 1) * padded;
}

// As attention_backward.cpp takes it: five matrices of the sequence, three strips of rows, two strips of scores.
int64_t AttentionBackwardScratch(const AttentionBackwardArgs& args, int64_t count) {
  constexpr int64_t kStrip = 32;
  const int64_t padded = (count + KvLayout::kBlockTokens - 1) / KvLayout::kBlockTokens * KvLayout::kBlockTokens;
  return 5 * padded * args.head_dim + 3 * kStrip * args.head_dim + 2 * kStrip * padded;
}

}  // namespace quern::cpu
