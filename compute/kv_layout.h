#pragma once

#include <cstdint>

#include "compute/dtype.h"

namespace quern {

// How keys and values lie in a page. A page holds kPageTokens consecutive positions of one sequence for every layer and
// KV head. Keys are stored in blocks of kBlockTokens positions, transposed ([head_dim][kBlockTokens]), so that scores
// of 16 keys are one vector and every score is summed over head_dim in ascending order, whatever the batch; values are
// rows
// ([kPageTokens][head_dim]). The page table of a sequence is an array of page pointers; position p lives in
// pages[p / kPageTokens]. Trainer, prefill and decode all attend through this layout.
struct KvLayout {
  static constexpr int64_t kPageTokens = 64;
  static constexpr int64_t kBlockTokens = 16;

  DType dtype = DType::kF32;
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  bool selective = false;  // Selective Attention: sequences carry a `selection` beside their pages

  constexpr int64_t page_elements() const { return layers * kv_heads * 2 * kPageTokens * head_dim; }
  constexpr int64_t page_bytes() const { return page_elements() * DTypeSize(dtype); }
  // Element offset in a page of the keys / values of one layer and KV head.
  constexpr int64_t KeyOffset(int64_t layer, int64_t head) const {
    return (layer * kv_heads + head) * 2 * kPageTokens * head_dim;
  }
  constexpr int64_t ValueOffset(int64_t layer, int64_t head) const {
    return KeyOffset(layer, head) + kPageTokens * head_dim;
  }
  // Element offset of channel d of the key at `slot` (position within the page), relative to KeyOffset.
  constexpr int64_t KeyElement(int64_t slot, int64_t d) const {
    return (slot / kBlockTokens * head_dim + d) * kBlockTokens + slot % kBlockTokens;
  }
  // Of SequenceRows::selection: elements of one page, and the offset of one layer of it.
  constexpr int64_t selection_elements() const { return layers * kPageTokens; }
  constexpr int64_t SelectionOffset(int64_t page, int64_t layer) const { return (page * layers + layer) * kPageTokens; }
};

// Keys of fewer channels (ThinK, Xu et al. 2024, arXiv 2407.21018): those of the first pages of a sequence of a layout
// of one layer. Such a page is smaller: for each KV head keys [block, channel, 16] of the kept channels in ascending
// order, then values [slot, head_dim]. Scores are sums over the kept channels; their scale stays that of all.
struct PrunedKeys {
  int64_t pages = 0;
  int64_t channels = 0;           // kept of the head_dim
  int64_t full_heads = 0;         // the first so many KV heads keep all: the one that selects (selective layouts)
  const int32_t* kept = nullptr;  // [kv_heads, channels], ascending

  constexpr int64_t Channels(const KvLayout& layout, int64_t head) const {
    return head < full_heads ? layout.head_dim : channels;
  }
  // Element offsets within a page.
  constexpr int64_t KeyOffset(const KvLayout& layout, int64_t head) const {
    const int64_t full = head < full_heads ? head : full_heads;
    return (head * (channels + layout.head_dim) + full * (layout.head_dim - channels)) * KvLayout::kPageTokens;
  }
  constexpr int64_t ValueOffset(const KvLayout& layout, int64_t head) const {
    return KeyOffset(layout, head) + Channels(layout, head) * KvLayout::kPageTokens;
  }
  constexpr int64_t page_elements(const KvLayout& layout) const { return KeyOffset(layout, layout.kv_heads); }
};

// The form of whole pages of a layout of one layer.
constexpr PrunedKeys WholeKeys(const KvLayout& layout) { return {.channels = layout.head_dim}; }

// `count` positions from one of a page on, which become those from one of another page on.
struct SlotRun {
  const void* from = nullptr;
  void* to = nullptr;
  int32_t from_slot = 0, to_slot = 0, count = 0;
};

// The rows of one sequence in a TokenBatch: rows [row, row + count) are positions [context, context + count), and
// positions below `context` are already in the pages. `pages` covers context + count positions. `selection` (selective
// layouts; acc) holds for every page, layer and position how far it is masked for the next row, infinity once it is
// evicted; attention reads and updates it. It belongs to one sequence even where pages are shared, and needs no
// initial values. `pruned`: null, or the form of the first pages, which all lie below `context`.
struct SequenceRows {
  int64_t row = 0;
  int64_t count = 0;
  int64_t context = 0;
  void* const* pages = nullptr;
  void* selection = nullptr;
  const PrunedKeys* pruned = nullptr;
};

}  // namespace quern
