#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/deadline.h"
#include "learner/communicator.h"

namespace quern {

struct NcclOptions {
  // The library is looked for when the program runs; neither its header nor the library is needed to build.
  std::string library = "libnccl.so.2";
  void* stream = nullptr;              // cudaStream_t that all calls are queued on
  std::function<Result<bool>()> done;  // whether everything that was queued on it has ended; an error of the device
  Duration timeout = std::chrono::seconds(300);
};

// Over NCCL, for tensors in a GPU's memory: rank r of `host` owns the current device. Calls wait for their end. Written
// to NCCL 2's published interface and never run: no GPU was at hand. Sums are in the order of NCCL's own choice: the
// same for equal runs on equal machines, not for another number of ranks.
//
// NotFound without the library. `host` carries NCCL's id and must outlive the communicator.
Result<std::unique_ptr<Communicator>> NewNcclCommunicator(HostCommunicator& host, const NcclOptions& options);

}  // namespace quern
