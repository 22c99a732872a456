#pragma once

#include <memory>

#include "compute/ops.h"

namespace quern {

// The backend under test, over tensors in the host's memory: the GPU's, null where there is none, or the emulator's.
std::unique_ptr<Ops> NewBackendUnderTest();
// The same over tensors in its own memory.
std::unique_ptr<Ops> NewDeviceUnderTest();
const char* WhyNoBackend();
// In which order the emulator runs threads; nothing on a GPU.
void SetThreadOrder(uint64_t order);

}  // namespace quern
