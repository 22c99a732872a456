#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "compute/cuda/emulator.h"
#include "compute/cuda/recorder.h"

namespace quern::cuda {

namespace {

constexpr size_t kReserved = size_t{64} << 30;  // of addresses
constexpr size_t kPage = 4096;

// The device's memory: one range of addresses, out of the host's reach but while somebody has a DeviceAccess.
struct DeviceHeap {
  std::recursive_mutex mutex;
  int users = 0;
  uint8_t* begin = nullptr;
  size_t used = 0;                        // bytes of the range that were ever given out
  std::map<uintptr_t, size_t> blocks;     // by address
  std::multimap<size_t, uintptr_t> free;  // by size

  void Protect(int protection) {
    if (used > 0) QUERN_CHECK(mprotect(begin, used, protection) == 0);
  }
};
DeviceHeap heap;

void CopyRows(const TensorView& from, const TensorView& to) {
  QUERN_CHECK(from.dtype == to.dtype && from.rows == to.rows && from.cols == to.cols);
  const emulator::DeviceAccess access;
  for (int64_t r = 0; r < to.rows; ++r)
    std::memcpy(to.Row<uint8_t>(r), from.Row<uint8_t>(r), static_cast<size_t>(to.cols * DTypeSize(to.dtype)));
}

void CopyBytes(void* to, const void* from, int64_t bytes) {
  const emulator::DeviceAccess access;
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

}  // namespace

namespace emulator {

DeviceAccess::DeviceAccess() { QuernDeviceAccess(1); }
DeviceAccess::~DeviceAccess() { QuernDeviceAccess(0); }

}  // namespace emulator

int Runtime::Count() {
  const char* const count = std::getenv("QUERN_EMULATED_GPUS");
  return count == nullptr ? 1 : std::atoi(count);
}
std::string Runtime::WhyNone() { return {}; }
Runtime::Runtime(int device) : device_(device), capability_(90), processors_(4) {}
Runtime::~Runtime() { pool_.Trim(); }
Stream Runtime::Fork() {
  Flush();
  return stream_;
}
void Runtime::Join() { Flush(); }
Stream Runtime::stream() const { return stream_; }
DeviceInfo Runtime::Describe(int, bool) { return {"emulated", 90, 4, 0, 0}; }

// A page that is nobody's comes after every block.
void* Runtime::New(int64_t bytes) {
  const emulator::DeviceAccess access;
  const size_t size = (static_cast<size_t>(bytes) + kPage - 1) / kPage * kPage + kPage;
  uintptr_t at = 0;
  if (const auto fit = heap.free.find(size); fit != heap.free.end()) {
    at = fit->second;
    heap.free.erase(fit);
  } else {
    if (heap.begin == nullptr) {
      void* range = mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      QUERN_CHECK(range != MAP_FAILED);
      heap.begin = static_cast<uint8_t*>(range);
    }
    QUERN_CHECK(heap.used + size <= kReserved, "the emulated device's memory is used up");
    at = reinterpret_cast<uintptr_t>(heap.begin) + heap.used;
    heap.used += size;
    heap.Protect(PROT_READ | PROT_WRITE);
  }
  heap.blocks[at] = size;
  return reinterpret_cast<void*>(at);
}

void Runtime::Delete(void* data) {
  if (data == nullptr) return;
  Flush();
  const emulator::DeviceAccess access;
  const auto block = heap.blocks.find(reinterpret_cast<uintptr_t>(data));
  QUERN_CHECK(block != heap.blocks.end());
  // Zeros again, and no pages whose protection takes time to change.
  QUERN_CHECK(madvise(data, block->second, MADV_DONTNEED) == 0);
  heap.free.emplace(block->second, block->first);
  heap.blocks.erase(block);
}

void* Runtime::Pinned::New(int64_t bytes) {
  void* data = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
  QUERN_CHECK(data != nullptr);
  std::memset(data, 0, static_cast<size_t>(bytes));
  return data;
}
void Runtime::Pinned::Delete(void* data) { std::free(data); }

void Runtime::Flush() {
  if (recorder_ != nullptr) recorder_->Flush();
}

void Runtime::Upload(void* device, const void* host, int64_t bytes) {
  Flush();
  CopyBytes(device, host, bytes);
}
void Runtime::Upload2D(const TensorView& host, const TensorView& device) {
  Flush();
  CopyRows(host, device);
}
void Runtime::Download2D(const TensorView& device, const TensorView& host) {
  Flush();
  CopyRows(device, host);
}
void Runtime::Zero(void* device, int64_t bytes) {
  Flush();
  const emulator::DeviceAccess access;
  std::memset(device, 0, static_cast<size_t>(bytes));
}
void Runtime::Copy(void* to, const void* from, int64_t bytes) {
  Flush();
  CopyBytes(to, from, bytes);
}
void Runtime::Copy2D(const TensorView& from, const TensorView& to) {
  Flush();
  CopyRows(from, to);
}
void Runtime::Wait() { Flush(); }

namespace {
struct EmulatedGraph : Runtime::Graph {
  std::vector<std::function<void()>> launches;
};
}  // namespace

std::unique_ptr<Runtime::Graph> Runtime::Capture(const std::function<void()>& body) {
  auto graph = std::make_unique<EmulatedGraph>();
  emulator::Capture(&graph->launches);
  body();
  emulator::Capture(nullptr);
  return graph;
}

void Runtime::Launch(Graph& graph) {
  for (const auto& launch : static_cast<EmulatedGraph&>(graph).launches) launch();
}
Result<bool> Runtime::Done() { return true; }

bool Runtime::IsDevice(const void* data) const {
  const auto at = reinterpret_cast<uintptr_t>(data);
  const std::lock_guard lock(heap.mutex);
  auto next = heap.blocks.upper_bound(at);
  if (next == heap.blocks.begin()) return false;
  --next;
  return at < next->first + next->second;
}

}  // namespace quern::cuda

void QuernDeviceAccess(int begin) {
  auto& heap = quern::cuda::heap;
  if (begin != 0) {
    heap.mutex.lock();
    if (heap.users++ == 0) heap.Protect(PROT_READ | PROT_WRITE);
  } else {
    if (--heap.users == 0) heap.Protect(PROT_NONE);
    heap.mutex.unlock();
  }
}
