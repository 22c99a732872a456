#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "compute/arena.h"
#include "compute/kv_layout.h"

namespace quern {

// Rows of many sequences for one forward pass: training micro-batches, prefill chunks and decode steps alike.
struct TokenBatch {
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;
  std::vector<SequenceRows> sequences;  // `pages` must be set before Forward
  // Ascending rows whose hidden states Forward gives; nothing: all. Of the others the last layer computes no more than
  // keys and values where it can.
  std::optional<std::vector<int64_t>> wanted{};

  int64_t rows() const { return static_cast<int64_t>(ids.size()); }
  // Appends a sequence's new tokens, which take positions context, context + 1, ...
  void Add(const int32_t* tokens, int64_t count, int64_t context, void* const* pages) {
    sequences.push_back({rows(), count, context, pages});
    for (int64_t i = 0; i < count; ++i) {
      ids.push_back(tokens[i]);
      positions.push_back(static_cast<int32_t>(context + i));
    }
  }
  void Clear() {
    ids.clear();
    positions.clear();
    sequences.clear();
    wanted.reset();
  }
};

// Where attention finds keys and values. With one_layer the pages hold a single layer that every layer overwrites in
// turn: enough for training, where nothing outlives the layer.
struct KvView {
  KvLayout layout;
  bool one_layer = false;
  std::vector<int64_t> budgets{};  // selective layouts: positions that each layer attends to at most, 0: all; or empty
  // Where every layer has slots of its own (compressed_cache.h): its sequences, in the batch's order; one_layer.
  std::vector<std::vector<SequenceRows>> layers{};
  // Told of each layer's queries [T, heads * head_dim], after position encoding.
  std::function<void(int64_t layer, const TensorView& q)> observe{};
};

// Temporary one-layer pages for every sequence of a training batch, from `arena`; sets their `pages` (and `selection`).
// `page_table` owns the pointer arrays and must outlive the forward pass.
KvView MakeTrainingKv(const KvLayout& model_layout, TokenBatch& batch, Arena& arena, std::vector<void*>& page_table);

}  // namespace quern
