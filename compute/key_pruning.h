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
void AddKeySquares(const KvLayout& layout, const void* page, int64_t slots, std::span<double> squares);

// What of a whole page is kept, in the form of a pruned one.
void PrunePage(const KvLayout& layout, const PrunedKeys& pruned, const void* page, void* pruned_page);

// Copies one position's keys and values between pages of one form: pruned where `pruned` is not null.
void CopySlot(const KvLayout& layout, const PrunedKeys* pruned, const void* from, int64_t from_slot, void* to,
              int64_t to_slot);

}  // namespace quern
