#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "compute/ops.h"

namespace quern {

struct CudaDevice {
  std::string name;
  int capability = 0;  // 90 for 9.0
  int64_t memory_bytes = 0;
  int64_t free_bytes = 0;  // where they were asked for
};

struct CudaDevices {
  std::vector<CudaDevice> devices;
  std::string why_none;  // one line, when there are none
};
// What this program could compute on. Starts nothing where there is no driver, nor on a GPU unless free_bytes is asked
// for.
CudaDevices FindCudaDevices(bool free_bytes = false);

// `strict`, `pool`: see CudaOps.
Result<std::unique_ptr<Ops>> NewCudaOps(int device, bool strict, ThreadPool* pool = nullptr);

}  // namespace quern
