#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "compute/cuda/runtime.h"

namespace quern::cuda {

// What a step of decoding launches, as one CUDA graph. Between Begin and End nothing is queued: launches and products
// are written down with all their arguments, and arrays of the host go to one buffer whose address stays. At the end
// the buffer is uploaded, and where everything that was written down is, byte for byte, what the key's last step was,
// its graph is launched; where it is that for the first time, the graph is made; else everything is queued as it is.
// So no graph ever runs with arguments of another step.
class Recorder {
 public:
  struct Entry {
    std::vector<uint8_t> identity;  // function, grid, arguments: equal bytes do the same
    std::function<void()> queue;
  };

  explicit Recorder(Runtime& runtime) : runtime_(runtime) {}
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;
  ~Recorder();

  void Begin(uint64_t key);
  void End();
  bool recording() const { return recording_; }
  void Add(Entry entry) { entries_.push_back(std::move(entry)); }
  // A place on the device for an array until End, or null where the buffer is too small: it grows at the next Begin.
  const void* Put(const void* data, size_t bytes);
  // For what cannot wait: what was written down is queued, and until End everything is queued at once.
  void Flush();

  // Steps that were one graph; those that were not.
  int64_t replayed() const { return replayed_; }
  int64_t queued() const { return queued_; }

 private:
  struct Step {
    std::vector<std::vector<uint8_t>> identities;
    std::unique_ptr<Runtime::Graph> graph;
    int64_t used = 0;
  };
  struct Array {
    size_t offset, bytes;
  };
  bool Matches(const Step& step) const;
  void UploadArrays();
  void QueueAll();
  Step& StepOf(uint64_t key);

  Runtime& runtime_;
  bool recording_ = false;
  uint64_t key_ = 0;
  std::vector<Entry> entries_;
  std::map<uint64_t, Step> steps_;
  std::vector<uint8_t> host_;  // the buffer
  std::vector<Array> arrays_;  // in it, of this step
  void* device_ = nullptr;
  size_t used_ = 0, capacity_ = 0, wanted_ = size_t{256} << 10;
  int64_t begun_ = 0, replayed_ = 0, queued_ = 0;
};

// What a kernel is launched in: the stream, and who writes launches down.
struct Queue {
  Stream stream = nullptr;
  Recorder* recorder = nullptr;
  bool recording() const { return recorder != nullptr && recorder->recording(); }
};

void AppendBytes(const void* data, size_t bytes, std::vector<uint8_t>& to);
// Appends x without its padding, which may hold anything.
template <typename T>
void AppendIdentity(T x, std::vector<uint8_t>& to) {
  static_assert(std::is_trivially_copyable_v<T>);
  __builtin_clear_padding(&x);
  AppendBytes(&x, sizeof(T), to);
}

}  // namespace quern::cuda
