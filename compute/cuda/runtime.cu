#include "compute/cuda/runtime.h"

#include <cstring>

#include "compute/cuda/device.h"
#include "compute/cuda/recorder.h"

namespace quern::cuda {

namespace {
size_t Bytes(int64_t bytes) { return static_cast<size_t>(bytes); }

void CopyRows(const TensorView& from, const TensorView& to, cudaMemcpyKind kind, Stream stream) {
  QUERN_CHECK(from.dtype == to.dtype && from.rows == to.rows && from.cols == to.cols);
  if (to.rows == 0 || to.cols == 0) return;
  const int64_t size = DTypeSize(to.dtype), width = to.cols * size;
  const bool whole = to.rows == 1 || (from.stride == from.cols && to.stride == to.cols);
  if (whole) {
    CheckCuda(cudaMemcpyAsync(to.data, from.data, Bytes(width * to.rows), kind, stream), "copy");
  } else {
    CheckCuda(cudaMemcpy2DAsync(to.data, Bytes(to.stride * size), from.data, Bytes(from.stride * size), Bytes(width),
                                Bytes(to.rows), kind, stream),
              "copy");
  }
}
}  // namespace

int Runtime::Count() {
  int count = 0;
  const bool known = cudaGetDeviceCount(&count) == cudaSuccess;
  cudaGetLastError();  // forget the error of a machine without a driver
  return known ? count : 0;
}

std::string Runtime::WhyNone() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return count == 0 ? "no CUDA device" : "";
}

Runtime::Runtime(int device) : device_(device) {
  CheckCuda(cudaSetDevice(device), "choosing the GPU");
  cudaDeviceProp properties;
  CheckCuda(cudaGetDeviceProperties(&properties, device), "reading the GPU's properties");
  capability_ = 10 * properties.major + properties.minor;
  processors_ = properties.multiProcessorCount;
  CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
}

// Kernels, and memory, are for the thread's current GPU, and several threads may call in turn.
Stream Runtime::stream() const {
  thread_local int current = -1;
  if (current != device_) {
    CheckCuda(cudaSetDevice(device_), "choosing the GPU");
    current = device_;
  }
  return stream_;
}

Runtime::~Runtime() {
  cudaStreamSynchronize(stream_);
  pool_.Trim();
  if (side_ != nullptr) {
    cudaStreamSynchronize(side_);
    cudaStreamDestroy(side_);
    cudaEventDestroy(event_);
  }
  cudaStreamDestroy(stream_);
}

Stream Runtime::Fork() {
  Flush();
  (void)stream();
  if (side_ == nullptr) {
    CheckCuda(cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking), "making a stream");
    CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "making an event");
  }
  CheckCuda(cudaEventRecord(event_, stream_), "recording an event");
  CheckCuda(cudaStreamWaitEvent(side_, event_, 0), "waiting for an event");
  return side_;
}

void Runtime::Join() {
  Flush();
  if (side_ == nullptr) return;
  CheckCuda(cudaEventRecord(event_, side_), "recording an event");
  CheckCuda(cudaStreamWaitEvent(stream_, event_, 0), "waiting for an event");
}

DeviceInfo Runtime::Describe(int device, bool free_bytes) {
  cudaDeviceProp properties;
  CheckCuda(cudaGetDeviceProperties(&properties, device), "reading the GPU's properties");
  size_t free = 0, total = properties.totalGlobalMem;
  if (free_bytes) {
    int current = 0;
    CheckCuda(cudaGetDevice(&current), "asking for the GPU in use");
    CheckCuda(cudaSetDevice(device), "choosing the GPU");
    CheckCuda(cudaMemGetInfo(&free, &total), "asking for the GPU's memory");
    CheckCuda(cudaSetDevice(current), "choosing the GPU");
  }
  return {properties.name, 10 * properties.major + properties.minor, properties.multiProcessorCount,
          static_cast<int64_t>(total), static_cast<int64_t>(free)};
}

void* Runtime::New(int64_t bytes) {
  void* data = nullptr;
  (void)stream();
  cudaError_t error = cudaMalloc(&data, Bytes(bytes));
  if (error == cudaErrorMemoryAllocation && pool_.Trim()) {
    cudaGetLastError();  // it is no error of the next launch
    error = cudaMalloc(&data, Bytes(bytes));
  }
  CheckCuda(error, "GPU memory");
  Zero(data, bytes);
  return data;
}

// cudaFree waits for everything that was queued, so a kernel may still be using the memory.
void Runtime::Delete(void* data) {
  Flush();
  CheckCuda(cudaFree(data), "freeing GPU memory");
}

void Runtime::Flush() {
  if (recorder_ != nullptr) recorder_->Flush();
}

void* Runtime::Pinned::New(int64_t bytes) {
  void* data = nullptr;
  CheckCuda(cudaMallocHost(&data, Bytes(bytes)), "pinned memory");
  std::memset(data, 0, Bytes(bytes));
  return data;
}
void Runtime::Pinned::Delete(void* data) { CheckCuda(cudaFreeHost(data), "freeing pinned memory"); }

// From pageable memory: the runtime has copied it when the call returns.
void Runtime::Upload(void* device, const void* host, int64_t bytes) {
  Flush();
  if (bytes > 0) CheckCuda(cudaMemcpyAsync(device, host, Bytes(bytes), cudaMemcpyHostToDevice, stream_), "upload");
}
void Runtime::Upload2D(const TensorView& host, const TensorView& device) {
  Flush();
  CopyRows(host, device, cudaMemcpyHostToDevice, stream_);
}
void Runtime::Download2D(const TensorView& device, const TensorView& host) {
  Flush();
  CopyRows(device, host, cudaMemcpyDeviceToHost, stream_);
  Wait();
}
void Runtime::Zero(void* device, int64_t bytes) {
  Flush();
  CheckCuda(cudaMemsetAsync(device, 0, Bytes(bytes), stream_), "clearing GPU memory");
}
void Runtime::Copy(void* to, const void* from, int64_t bytes) {
  Flush();
  CheckCuda(cudaMemcpyAsync(to, from, Bytes(bytes), cudaMemcpyDeviceToDevice, stream_), "copy");
}
void Runtime::Copy2D(const TensorView& from, const TensorView& to) {
  Flush();
  CopyRows(from, to, cudaMemcpyDeviceToDevice, stream_);
}
void Runtime::Wait() {
  Flush();
  CheckCuda(cudaStreamSynchronize(stream_), "a kernel");
}

Result<bool> Runtime::Done() {
  const cudaError_t error = cudaStreamQuery(stream_);
  if (error == cudaSuccess) return true;
  if (error != cudaErrorNotReady) return Internal(cudaGetErrorString(error));
  cudaGetLastError();  // it is no error of the next launch
  return false;
}

namespace {
struct CudaGraph : Runtime::Graph {
  ~CudaGraph() override { cudaGraphExecDestroy(executable); }
  cudaGraphExec_t executable = nullptr;
};
}  // namespace

// Of this thread alone: what other threads do with the driver meanwhile is none of the graph's.
std::unique_ptr<Runtime::Graph> Runtime::Capture(const std::function<void()>& body) {
  CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "beginning a graph");
  body();
  cudaGraph_t graph = nullptr;
  CheckCuda(cudaStreamEndCapture(stream_, &graph), "ending a graph");
  auto out = std::make_unique<CudaGraph>();
  const cudaError_t error = cudaGraphInstantiate(&out->executable, graph, 0);
  cudaGraphDestroy(graph);
  CheckCuda(error, "making a graph");
  return out;
}

void Runtime::Launch(Graph& graph) {
  CheckCuda(cudaGraphLaunch(static_cast<CudaGraph&>(graph).executable, stream_), "launch of a graph");
}

bool Runtime::IsDevice(const void* data) const {
  cudaPointerAttributes attributes;
  CheckCuda(cudaPointerGetAttributes(&attributes, data), "asking about memory");
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

}  // namespace quern::cuda
