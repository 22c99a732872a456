#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "base/thread_pool.h"
#include "compute/ops.h"

namespace quern {

// What a user says to compute on: "auto", "cpu", "cuda" (the first GPU) or "cuda:N".
bool IsDeviceWord(const std::string& word);

struct Device {
  int gpu = -1;      // its number; -1: the CPU
  std::string name;  // "the CPU", "GPU 0 (NVIDIA H200)"
  std::string note;  // why it is not the GPU that there is; mostly empty
};
// `auto` is the first GPU where this program can use one, else the CPU. Of several processes of a host each names its
// number as `share`: from the GPU that was asked for on they take one after the other, around all there are. The error,
// for a GPU that is not there or cannot be used, is one line. Starts nothing on any device.
Result<Device> ChooseDevice(const std::string& word, int64_t share = 0);

// The one place that makes what a command or a role computes with. Says in one line of the log when that is a GPU.
// There, products are those of CudaOps' `strict`. `pool` must outlive the object.
Result<std::unique_ptr<Ops>> NewOps(const std::string& device, ThreadPool* pool, int64_t share = 0);

}  // namespace quern
