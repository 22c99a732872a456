#include "compute/cuda/cuda_ops.h"
#include "compute/cuda/emulator.h"
#include "tests/cuda/backend.h"
#include "tests/cuda/hosted_ops.h"

namespace quern {

std::unique_ptr<Ops> NewDeviceUnderTest() {
  auto runtime = std::make_unique<cuda::Runtime>(0);
  cuda::BlasResult blas = cuda::NewBlas(*runtime);
  return std::make_unique<CudaOps>(std::move(runtime), std::move(blas.blas), true);
}
std::unique_ptr<Ops> NewBackendUnderTest() { return std::make_unique<HostedOps>(NewDeviceUnderTest()); }
const char* WhyNoBackend() { return ""; }
void SetThreadOrder(uint64_t order) { cuda::emulator::SetOrder(order); }

}  // namespace quern
