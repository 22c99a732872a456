#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "compute/kv_layout.h"
#include "compute/tensor.h"

namespace quern {

// Pages of one model's KV cache from a fixed budget, allocated in slabs as they are first needed. Not thread-safe.
class KvPool {
 public:
  KvPool(const KvLayout& layout, int64_t max_pages) : layout_(layout), max_pages_(max_pages) {}
  const KvLayout& layout() const { return layout_; }
  // A page, or null when the budget is used up.
  void* Take();
  void Give(void* page) { free_.push_back(page); }
  int64_t in_use() const { return made_ - static_cast<int64_t>(free_.size()); }
  int64_t max_pages() const { return max_pages_; }

 private:
  KvLayout layout_;
  int64_t max_pages_;
  int64_t made_ = 0;
  std::vector<Tensor> slabs_;
  std::vector<void*> free_;
};

}  // namespace quern
