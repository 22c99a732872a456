#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "compute/kv_layout.h"

namespace quern {

// ThinK (arXiv 2407.21018): of every KV head the `channels` channels d with the largest sum of q_d^2 times sum of
// k_d^2, which is the squared norm of what the channel adds to the scores; the lower of equals. query_squares,
// key_squares: [heads, dim]. Returns [heads, channels], ascending within a head.
std::vector<int32_t> ChooseChannels(std::span<const double> query_squares, std::span<const double> key_squares,
                                    int64_t heads, int64_t dim, int64_t channels);

// Adds the squares of the keys in the first `slots` of a page (of a layout of one layer) to squares [kv_heads,
// head_dim].
void AddKeySquares(const KvLayout& layout, const void* page, int64_t slots, double* squares);

// Ops::CopySlots of one run.
void CopySlots(const KvLayout& layout, const PrunedKeys& from_form, const PrunedKeys& to_form, const SlotRun& run);

}  // namespace quern
