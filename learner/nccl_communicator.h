#pragma once

#include <memory>
#include <string>

#include "base/deadline.h"
#include "compute/ops.h"
#include "learner/communicator.h"

namespace quern {

struct NcclOptions {
  // The library is looked for when the program runs; neither its header nor the library is needed to build.
  std::string library = "libnccl.so.2";
  Duration timeout = std::chrono::seconds(300);  // of one call, with what was queued before it
};

// NotFound, with the reason, where NCCL cannot be loaded.
Status FindNccl(const NcclOptions& options = {});

// Over NCCL, in the stream of `ops`, for tensors in its memory: each rank of `host` has a GPU of its own. Calls wait
// for their end. Every call begins with a word over `host`, so that a rank that is silent or at another call is named
// there, by host's deadline; one that is lost during a call within NcclOptions::timeout and that deadline. Sums are in
// the order of NCCL's own choice: the same for equal runs on equal machines, not for another number of ranks; a maximum
// may lose NaN. Written to NCCL 2's published interface, run with a stand-in for it (tests/cuda), never with NCCL
// itself: no GPU was at hand.
//
// NotFound without the library. `host` carries NCCL's id and all texts. Both must outlive the communicator.
Result<std::unique_ptr<Communicator>> NewNcclCommunicator(HostCommunicator& host, Ops& ops, const NcclOptions& options);

}  // namespace quern
