#include "compute/tensor.h"

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#include <sys/mman.h>
#define QUERN_HUGE_PAGES 1
#endif

namespace quern {

namespace {

#ifdef QUERN_HUGE_PAGES
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = size_t{4} << 20;

size_t WholePages(size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

// Zero pages straight from the system, cleared as they are first touched: walking a cache of many megabytes, small ones
// cost more in page tables than their data does.
void* MapLarge(size_t bytes) {
  const size_t whole = WholePages(bytes);
  void* reserved = mmap(nullptr, whole + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (reserved == MAP_FAILED) throw std::bad_alloc();
  auto* begin = static_cast<uint8_t*>(reserved);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (before > 0) munmap(begin, before);
  if (before < kHugePage) munmap(begin + before + whole, kHugePage - before);
  madvise(begin + before, whole, MADV_HUGEPAGE);  // where the system has none, the memory is as good
  return begin + before;
}
#endif

}  // namespace

Tensor::Tensor(DType dtype, int64_t rows, int64_t cols, DeviceMemory* device)
    : view_{nullptr, dtype, rows, cols, cols} {
  const auto bytes = static_cast<size_t>((rows * cols * DTypeSize(dtype) + 63) / 64 * 64);
  if (bytes == 0) return;
  if (device != nullptr) {
    data_ = {device->New(static_cast<int64_t>(bytes)), TensorMemory{0, device}};
    view_.data = data_.get();
    return;
  }
#ifdef QUERN_HUGE_PAGES
  if (bytes >= kLarge) {
    data_ = {MapLarge(bytes), TensorMemory{bytes, nullptr}};
    view_.data = data_.get();
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
#ifdef QUERN_HUGE_PAGES
  if (mapped_bytes > 0) {
    munmap(data, WholePages(mapped_bytes));
    return;
  }
#endif
  std::free(data);
}

}  // namespace quern
