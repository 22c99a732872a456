#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/status.h"
#include "compute/tensor.h"

namespace quern::cuda {

using Stream = struct CUstream_st*;
class Recorder;
class Runtime;

struct DeviceInfo {
  std::string name;
  int capability = 0;  // 90 for 9.0
  int processors = 0;
  int64_t memory_bytes = 0;
  int64_t free_bytes = 0;
};

// A Runtime's memory for what comes and goes in few sizes: what is given back is kept by size and given out again
// without the driver, which would wait for all that is queued. Holds at most an eighth more than was out at a time.
class Pool : public DeviceMemory {
 public:
  explicit Pool(Runtime& runtime) : runtime_(runtime) {}
  void* New(int64_t bytes) override;
  void Delete(void* data) override;
  // What is kept goes back to the driver; false where nothing was.
  bool Trim();
  int64_t made() const { return made_; }  // times that the driver was asked
  int64_t held_bytes() const { return out_ + kept_; }
  int64_t most_bytes() const { return most_; }  // that were out at a time

 private:
  void Release(std::multimap<int64_t, void*>::iterator kept);
  Runtime& runtime_;
  std::map<void*, int64_t> sizes_;         // of all that is held
  std::multimap<int64_t, void*> by_size_;  // what is kept
  int64_t out_ = 0, kept_ = 0, most_ = 0, made_ = 0;
};

// One GPU, one stream, and memory on it. runtime.cu has it for the GPU, runtime_emulated.cpp for the emulator. Not
// thread-safe.
class Runtime : public DeviceMemory {
 public:
  static int Count();                                       // devices that can be used; 0 without a driver
  static std::string WhyNone();                             // why Count() is 0
  static DeviceInfo Describe(int device, bool free_bytes);  // the latter starts CUDA on it
  explicit Runtime(int device);                             // below Count()
  ~Runtime() override;

  // Of the GPU that calls of this thread are meant for from now on.
  Stream stream() const;
  int processors() const { return processors_; }
  int capability() const { return capability_; }

  void* New(int64_t bytes) override;
  void Delete(void* data) override;
  Pool& pool() { return pool_; }
  // A second stream: begins, from now on, after what the first has so far; and the other way round.
  Stream Fork();
  void Join();
  // All in the order of the stream. Host memory may be changed once Upload has returned; Download has waited.
  void Upload(void* device, const void* host, int64_t bytes);
  void Upload2D(const TensorView& host, const TensorView& device);
  void Download2D(const TensorView& device, const TensorView& host);
  void Zero(void* device, int64_t bytes);
  void Copy(void* to, const void* from, int64_t bytes);  // both on the device
  void Copy2D(const TensorView& from, const TensorView& to);
  void Wait();
  Result<bool> Done();  // whether all that was queued is; an error of the device
  bool IsDevice(const void* data) const;
  // Of the host, where the GPU copies to without the driver's help. An upload from there may still be under way when
  // Upload returns.
  DeviceMemory& pinned() { return pinned_; }

  // What `body` queues, kernels and products only, as one thing that can be launched again and again.
  class Graph {
   public:
    virtual ~Graph() = default;
  };
  std::unique_ptr<Graph> Capture(const std::function<void()>& body);
  void Launch(Graph& graph);
  // Is flushed before anything but kernels and products is queued or waited for.
  void set_recorder(Recorder* recorder) { recorder_ = recorder; }
  Recorder* recorder() const { return recorder_; }

 private:
  void Flush();
  class Pinned : public DeviceMemory {
   public:
    void* New(int64_t bytes) override;
    void Delete(void* data) override;
  };
  Pinned pinned_;
  int device_ = 0;
  Recorder* recorder_ = nullptr;
  int capability_ = 0;
  int processors_ = 0;
  Stream stream_ = nullptr, side_ = nullptr;
  struct CUevent_st* event_ = nullptr;  // of Fork and Join
  Pool pool_{*this};
};

}  // namespace quern::cuda
