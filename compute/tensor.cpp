#include "compute/tensor.h"

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#include <sys/mman.h>
#define QUERN_MAPS_MEMORY 1
#endif

namespace quern {

Tensor::Tensor(DType dtype, int64_t rows, int64_t cols, DeviceMemory* device)
    : view_{nullptr, dtype, rows, cols, cols} {
  const auto bytes = static_cast<size_t>((rows * cols * DTypeSize(dtype) + 63) / 64 * 64);
  if (bytes == 0) return;
  if (device != nullptr) {
    data_ = {device->New(static_cast<int64_t>(bytes)), TensorMemory{0, device}};
    view_.data = data_.get();
    return;
  }
#ifdef QUERN_MAPS_MEMORY
  // Large ones come from the system, zero already, page by page as they are touched. (Huge pages were measured and cost
  // more to come by than they save: a prefill into a fresh cache is a third slower, decoding equal.)
  constexpr size_t kLarge = size_t{4} << 20;
  if (bytes >= kLarge) {
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    data_ = {mapped, TensorMemory{bytes, nullptr}};
    view_.data = mapped;
    return;
  }
#endif
  data_ = {std::aligned_alloc(64, bytes), TensorMemory{}};
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_.get(), 0, bytes);
  view_.data = data_.get();
}

void TensorMemory::operator()(void* data) const {
  if (device != nullptr) return device->Delete(data);
#ifdef QUERN_MAPS_MEMORY
  if (mapped_bytes > 0) {
    munmap(data, mapped_bytes);
    return;
  }
#endif
  std::free(data);
}

}  // namespace quern
