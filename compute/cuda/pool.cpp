#include <algorithm>
#include <iterator>

#include "base/check.h"
#include "compute/cuda/runtime.h"

namespace quern::cuda {

void* Pool::New(int64_t bytes) {
  out_ += bytes;
  most_ = std::max(most_, out_);
  if (const auto kept = by_size_.find(bytes); kept != by_size_.end()) {
    void* const data = kept->second;
    by_size_.erase(kept);
    kept_ -= bytes;
    runtime_.Zero(data, bytes);
    return data;
  }
  while (out_ + kept_ > most_ + most_ / 8 && !by_size_.empty()) Release(std::prev(by_size_.end()));
  void* const data = runtime_.New(bytes);
  ++made_;
  sizes_[data] = bytes;
  return data;
}

// Kernels that are queued may still use it: what it is given out for is queued behind them.
void Pool::Delete(void* data) {
  if (data == nullptr) return;
  const int64_t bytes = sizes_.at(data);
  by_size_.emplace(bytes, data);
  out_ -= bytes;
  kept_ += bytes;
}

void Pool::Release(std::multimap<int64_t, void*>::iterator kept) {
  kept_ -= kept->first;
  sizes_.erase(kept->second);
  runtime_.Delete(kept->second);
  by_size_.erase(kept);
}

bool Pool::Trim() {
  const bool any = !by_size_.empty();
  while (!by_size_.empty()) Release(by_size_.begin());
  return any;
}

}  // namespace quern::cuda
