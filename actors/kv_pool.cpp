#include "actors/kv_pool.h"

#include <algorithm>

namespace quern {

void* KvPool::Take() {
  if (free_.empty()) {
    const int64_t count = std::min<int64_t>(16, max_pages_ - made_);
    if (count <= 0) return nullptr;
    slabs_.emplace_back(DType::kU8, count, layout_.page_bytes());
    for (int64_t i = count - 1; i >= 0; --i) free_.push_back(slabs_.back().Row<uint8_t>(i));
    made_ += count;
  }
  void* page = free_.back();
  free_.pop_back();
  return page;
}

}  // namespace quern
