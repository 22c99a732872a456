#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "base/check.h"
#include "compute/dtype.h"

namespace quern {

// A non-owning matrix [rows, cols], rows `stride` elements apart. Higher ranks are flattened into columns (a row of
// queries is [heads * head_dim]); vectors are one row. No arithmetic lives here.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  bool empty() const { return data == nullptr; }
  template <typename T>
  T* Row(int64_t row) const {
    return reinterpret_cast<T*>(static_cast<uint8_t*>(data) + row * stride * DTypeSize(dtype));
  }
  // Rows [begin, begin + count).
  TensorView Rows(int64_t begin, int64_t count) const {
    QUERN_CHECK(begin >= 0 && count >= 0 && begin + count <= rows);
    return {static_cast<uint8_t*>(data) + begin * stride * DTypeSize(dtype), dtype, count, cols, stride};
  }
  // Columns [begin, begin + count) of every row.
  TensorView Cols(int64_t begin, int64_t count) const {
    QUERN_CHECK(begin >= 0 && count >= 0 && begin + count <= cols);
    return {static_cast<uint8_t*>(data) + begin * DTypeSize(dtype), dtype, rows, count, stride};
  }
};

// A device's memory (Ops::memory()). Must outlive the tensors in it. Not thread-safe.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual void* New(int64_t bytes) = 0;  // zero-initialised, 64-byte aligned
  virtual void Delete(void* data) = 0;
};

struct TensorMemory {
  size_t mapped_bytes = 0;  // 0: from the heap
  DeviceMemory* device = nullptr;
  void operator()(void* data) const;
};

// An owning, 64-byte aligned, zero-initialised matrix without padding between rows. Movable. In the host's memory
// unless a device's is named.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, int64_t rows, int64_t cols, DeviceMemory* device = nullptr);
  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }  // NOLINT: a Tensor is usable wherever a view is
  template <typename T>
  T* Row(int64_t row) const {
    return view_.Row<T>(row);
  }
  int64_t rows() const { return view_.rows; }
  int64_t cols() const { return view_.cols; }
  DType dtype() const { return view_.dtype; }
  int64_t bytes() const { return view_.rows * view_.cols * DTypeSize(view_.dtype); }

 private:
  std::unique_ptr<void, TensorMemory> data_;
  TensorView view_;
};

}  // namespace quern
