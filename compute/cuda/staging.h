#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "compute/cuda/recorder.h"

namespace quern::cuda {

// Host arrays that kernels read (ids, positions, page tables) on the device. What one of the last calls had put is not
// copied again: all layers of a model ask for the same. In a step that is written down they go to the recorder's
// buffer.
class Staging {
 public:
  explicit Staging(Runtime& runtime) : runtime_(runtime), slots_(kSlots) {}
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() {
    for (Slot& slot : slots_) runtime_.Delete(slot.device);
  }

  // On the device until at least kSlots - 1 other arrays have been put.
  template <typename T>
  const T* Put(std::span<const T> array) {
    return static_cast<const T*>(PutBytes(array.data(), array.size_bytes()));
  }
  template <typename T>
  const T* Put(const std::vector<T>& array) {
    return Put(std::span<const T>(array));
  }

 private:
  static constexpr size_t kSlots = 24;
  struct Slot {
    std::vector<uint8_t> host;
    void* device = nullptr;
    size_t capacity = 0;
    uint64_t used = 0;
  };

  const void* PutBytes(const void* data, size_t bytes) {
    if (bytes == 0) return nullptr;
    if (Recorder* recorder = runtime_.recorder(); recorder != nullptr && recorder->recording()) {
      if (const void* place = recorder->Put(data, bytes)) return place;
      recorder->Flush();
    }
    Slot* oldest = &slots_[0];
    for (Slot& slot : slots_) {
      if (slot.host.size() == bytes && std::memcmp(slot.host.data(), data, bytes) == 0) {
        slot.used = ++tick_;
        return slot.device;
      }
      if (slot.used < oldest->used) oldest = &slot;
    }
    if (oldest->capacity < bytes) {
      runtime_.Delete(oldest->device);
      oldest->capacity = 2 * bytes;
      oldest->device = runtime_.New(static_cast<int64_t>(oldest->capacity));
    }
    const auto* from = static_cast<const uint8_t*>(data);
    oldest->host.assign(from, from + bytes);
    oldest->used = ++tick_;
    runtime_.Upload(oldest->device, data, static_cast<int64_t>(bytes));
    return oldest->device;
  }

  Runtime& runtime_;
  std::vector<Slot> slots_;
  uint64_t tick_ = 0;
};

}  // namespace quern::cuda
