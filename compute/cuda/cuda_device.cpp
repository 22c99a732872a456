#include "compute/cuda/cuda_device.h"

#include "base/strings.h"
#ifdef QUERN_HAS_CUDA
#include "compute/cuda/cuda_ops.h"
#endif

namespace quern {

#ifdef QUERN_HAS_CUDA

CudaDevices FindCudaDevices(bool free_bytes) {
  CudaDevices out;
  const int count = cuda::Runtime::Count();
  if (count == 0) out.why_none = cuda::Runtime::WhyNone();
  for (int i = 0; i < count; ++i) {
    const cuda::DeviceInfo info = cuda::Runtime::Describe(i, free_bytes);
    out.devices.push_back({info.name, info.capability, info.memory_bytes, info.free_bytes});
  }
  return out;
}

Result<std::unique_ptr<Ops>> NewCudaOps(int device, bool strict, ThreadPool* pool) {
  const int count = cuda::Runtime::Count();
  if (count == 0) return InvalidArgument(StrCat("no GPU: ", cuda::Runtime::WhyNone()));
  if (device < 0 || device >= count) return InvalidArgument(StrCat("GPU ", device, ": there are ", count));
  auto runtime = std::make_unique<cuda::Runtime>(device);
  if (const int capability = runtime->capability(); capability < 80)
    return InvalidArgument(StrCat("GPU ", device, " has compute capability ", capability / 10, ".", capability % 10,
                                  "; 8.0 or newer is needed"));
  cuda::BlasResult blas = cuda::NewBlas(*runtime);
  if (blas.blas == nullptr) return InvalidArgument(blas.error);
  return std::unique_ptr<Ops>(std::make_unique<CudaOps>(std::move(runtime), std::move(blas.blas), strict, pool));
}

#else

namespace {
constexpr const char* kNotBuilt = "this quern was built without CUDA (no nvcc)";
}

CudaDevices FindCudaDevices(bool) { return {{}, kNotBuilt}; }
Result<std::unique_ptr<Ops>> NewCudaOps(int, bool, ThreadPool*) { return InvalidArgument(kNotBuilt); }

#endif

}  // namespace quern
