#include <cstdlib>
#include <cstring>
#include <map>

#include "compute/cuda/runtime.h"

namespace quern::cuda {

namespace {
std::map<uintptr_t, int64_t>& Blocks() {
  static std::map<uintptr_t, int64_t> blocks;
  return blocks;
}

void CopyRows(const TensorView& from, const TensorView& to) {
  QUERN_CHECK(from.dtype == to.dtype && from.rows == to.rows && from.cols == to.cols);
  for (int64_t r = 0; r < to.rows; ++r)
    std::memcpy(to.Row<uint8_t>(r), from.Row<uint8_t>(r), static_cast<size_t>(to.cols * DTypeSize(to.dtype)));
}
}  // namespace

int Runtime::Count() { return 1; }
std::string Runtime::WhyNone() { return {}; }
Runtime::Runtime(int) : capability_(90), processors_(4) {}
Runtime::~Runtime() = default;
DeviceInfo Runtime::Describe(int) { return {"emulated", 90, 4, 0, 0}; }

void* Runtime::New(int64_t bytes) {
  void* data = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
  QUERN_CHECK(data != nullptr);
  std::memset(data, 0, static_cast<size_t>(bytes));
  Blocks()[reinterpret_cast<uintptr_t>(data)] = bytes;
  return data;
}

void Runtime::Delete(void* data) {
  if (data == nullptr) return;
  QUERN_CHECK(Blocks().erase(reinterpret_cast<uintptr_t>(data)) == 1);
  std::free(data);
}

void Runtime::Upload(void* device, const void* host, int64_t bytes) {
  std::memcpy(device, host, static_cast<size_t>(bytes));
}
void Runtime::Upload2D(const TensorView& host, const TensorView& device) { CopyRows(host, device); }
void Runtime::Download2D(const TensorView& device, const TensorView& host) { CopyRows(device, host); }
void Runtime::Zero(void* device, int64_t bytes) { std::memset(device, 0, static_cast<size_t>(bytes)); }
void Runtime::Copy(void* to, const void* from, int64_t bytes) { std::memcpy(to, from, static_cast<size_t>(bytes)); }
void Runtime::Wait() {}

bool Runtime::IsDevice(const void* data) const {
  const auto at = reinterpret_cast<uintptr_t>(data);
  auto next = Blocks().upper_bound(at);
  if (next == Blocks().begin()) return false;
  --next;
  return at < next->first + static_cast<uintptr_t>(next->second);
}

}  // namespace quern::cuda
