#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "compute/tensor.h"

namespace quern {

// A stack of temporaries. New() takes from the top; a Scope gives everything taken since its construction back. Grows
// by whole blocks while the peak is being learnt and afterwards never allocates. Contents are not cleared. Not
// thread-safe.
class Arena {
 public:
  explicit Arena(DeviceMemory* device = nullptr, int64_t block_bytes = int64_t{16} << 20)
      : device_(device), block_bytes_(block_bytes) {}

  TensorView New(DType dtype, int64_t rows, int64_t cols);
  int64_t peak_bytes() const { return peak_; }

  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), block_(arena.block_), used_(arena.used_), total_(arena.total_) {}
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() {
      arena_.block_ = block_;
      arena_.used_ = used_;
      arena_.total_ = total_;
    }

   private:
    Arena& arena_;
    size_t block_;
    int64_t used_;
    int64_t total_;
  };

 private:
  DeviceMemory* device_;
  int64_t block_bytes_;
  std::vector<Tensor> blocks_;
  size_t block_ = 0;   // the block being filled
  int64_t used_ = 0;   // bytes of it taken
  int64_t total_ = 0;  // bytes taken in all
  int64_t peak_ = 0;
};

}  // namespace quern
