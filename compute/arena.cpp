#include "compute/arena.h"

#include <algorithm>

namespace quern {

TensorView Arena::New(DType dtype, int64_t rows, int64_t cols) {
  const int64_t bytes = std::max<int64_t>(64, (rows * cols * DTypeSize(dtype) + 63) / 64 * 64);
  while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].bytes()) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size()) {
    blocks_.emplace_back(DType::kU8, 1, std::max(bytes, block_bytes_), device_);
    used_ = 0;
  }
  TensorView view{blocks_[block_].Row<uint8_t>(0) + used_, dtype, rows, cols, cols};
  used_ += bytes;
  total_ += bytes;
  peak_ = std::max(peak_, total_);
  return view;
}

}  // namespace quern
