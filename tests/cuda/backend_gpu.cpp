#include "compute/cuda/cuda_device.h"
#include "tests/cuda/backend.h"
#include "tests/cuda/hosted_ops.h"

namespace quern {

std::unique_ptr<Ops> NewDeviceUnderTest() {
  Result<std::unique_ptr<Ops>> ops = NewCudaOps(0, /*strict=*/true);
  return ops.ok() ? std::move(*ops) : nullptr;
}
std::unique_ptr<Ops> NewBackendUnderTest() {
  std::unique_ptr<Ops> ops = NewDeviceUnderTest();
  return ops == nullptr ? nullptr : std::make_unique<HostedOps>(std::move(ops));
}

const char* WhyNoBackend() {
  static const std::string why = [] {
    const Result<std::unique_ptr<Ops>> ops = NewCudaOps(0, true);
    return ops.ok() ? std::string() : ops.status().message();
  }();
  return why.c_str();
}

void SetThreadOrder(uint64_t) {}

}  // namespace quern
