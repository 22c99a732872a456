#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "compute/ops.h"
#include "model/compression.h"
#include "model/token_batch.h"

namespace quern {

// Keys and values of one sequence under a Compression, for every layer apart: evicted positions give their memory back
// a page at a time, and pages older than the recent ones hold the kept channels only. A position is therefore not a
// slot of the cache; order is kept. Without a compression it is a cache like any other. What is computed over it does
// not depend on the steps in which the prompt was read; after it, every step has one row. Everything but the choice of
// channels lies in the backend's memory; which positions are evicted is looked up there only where there may be enough
// of them to free a page. Not thread-safe.
class CompressedCache {
 public:
  // `layout`: the model's. `prompt`: so many tokens are read before channels are chosen; no step may hold both the last
  // of them and the first after it.
  // `ops` must outlive it.
  CompressedCache(Ops& ops, const KvLayout& layout, const Compression& compression, int64_t prompt);

  // The same in memory of its own.
  std::unique_ptr<CompressedCache> Copy() const;

  int64_t tokens() const { return tokens_; }
  bool reads_prompt() const { return tokens_ < prompt_; }
  // Makes room for `count` rows. Rows() are valid until Advance.
  void Reserve(int64_t count);
  SequenceRows Rows(int64_t layer, int64_t row, int64_t count);
  // Queries [row, row + count) of a layer, [.., heads * head_dim].
  void Observe(int64_t layer, const TensorView& q, int64_t row, int64_t count);
  // The rows of a step were written in every layer.
  void Advance(int64_t count);

  int64_t bytes() const;  // of keys, values and masks
  // What bytes() may come to at any time while `tokens` are read.
  static int64_t MostBytes(const KvLayout& layout, const Compression& compression, int64_t prompt, int64_t tokens);
  int64_t slots(int64_t layer) const { return layers_[static_cast<size_t>(layer)].slots; }

 private:
  struct Layer {
    std::vector<Tensor> pages;  // the pruned ones first
    std::vector<void*> table;
    Tensor selection;  // one a slot of its pages
    int64_t slots = 0;
    int64_t evicted = 0;   // of the slots
    Tensor query_squares;  // [1, kv_heads * head_dim] fp64
    std::vector<int32_t> kept;
    PrunedKeys pruned;
  };
  void AddPage(Layer& layer, const PrunedKeys& form);
  void Compact(Layer& layer, bool anything);
  void Choose(Layer& layer);
  void Prune(Layer& layer);

  Ops& ops_;
  KvLayout layout_;  // of one layer
  Compression compression_;
  int64_t prompt_;
  int64_t tokens_ = 0;
  std::vector<Layer> layers_;
};

// The view of a step whose sequences, one after the other, are those of `caches`; their Reserve was called.
KvView CompressedView(const KvLayout& layout, const Compression& compression, std::span<CompressedCache* const> caches,
                      const TokenBatch& batch);

}  // namespace quern
