#include "learner/nccl_communicator.h"

#include <dlfcn.h>

#include <thread>

#include "base/strings.h"

namespace quern {

namespace {

// nccl.h of NCCL 2, as far as it is used.
struct NcclId {
  char internal[128];
};
using NcclComm = void*;
enum NcclType : int { kNcclUint8 = 1, kNcclFloat32 = 7, kNcclFloat64 = 8 };
enum NcclOp : int { kNcclSum = 0, kNcclMax = 2 };
constexpr int kNcclSuccess = 0;

struct Nccl {
  int (*get_unique_id)(NcclId*) = nullptr;
  int (*comm_init_rank)(NcclComm*, int, NcclId, int) = nullptr;
  int (*comm_destroy)(NcclComm) = nullptr;
  int (*comm_abort)(NcclComm) = nullptr;
  int (*comm_get_async_error)(NcclComm, int*) = nullptr;
  const char* (*get_error_string)(int) = nullptr;
  int (*all_reduce)(const void*, void*, size_t, int, int, NcclComm, void*) = nullptr;
  int (*reduce)(const void*, void*, size_t, int, int, int, NcclComm, void*) = nullptr;
  int (*broadcast)(const void*, void*, size_t, int, int, NcclComm, void*) = nullptr;
  int (*group_start)() = nullptr;
  int (*group_end)() = nullptr;
};

// Stays loaded.
Result<Nccl> LoadNccl(const std::string& name) {
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return NotFound(StrCat(name, ": ", dlerror(), "; several GPUs need NCCL 2"));
  Nccl nccl;
  std::string missing;
  const auto find = [&]<typename F>(const char* symbol, F& function) {
    function = reinterpret_cast<F>(dlsym(library, symbol));
    if (function == nullptr) missing = symbol;
  };
  find("ncclGetUniqueId", nccl.get_unique_id);
  find("ncclCommInitRank", nccl.comm_init_rank);
  find("ncclCommDestroy", nccl.comm_destroy);
  find("ncclCommAbort", nccl.comm_abort);
  find("ncclCommGetAsyncError", nccl.comm_get_async_error);
  find("ncclGetErrorString", nccl.get_error_string);
  find("ncclAllReduce", nccl.all_reduce);
  find("ncclReduce", nccl.reduce);
  find("ncclBroadcast", nccl.broadcast);
  find("ncclGroupStart", nccl.group_start);
  find("ncclGroupEnd", nccl.group_end);
  if (!missing.empty()) return NotFound(StrCat(name, " has no ", missing, ": not NCCL 2"));
  return nccl;
}

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(HostCommunicator& host, const NcclOptions& options, const Nccl& nccl)
      : host_(host), options_(options), nccl_(nccl) {}
  ~NcclCommunicator() override {
    if (comm_ != nullptr) nccl_.comm_destroy(comm_);
  }

  Status Init() {
    NcclId id = {};
    std::string text;
    if (rank() == 0) {
      QUERN_RETURN_IF_ERROR(Check("ncclGetUniqueId", nccl_.get_unique_id(&id)));
      text.assign(id.internal, sizeof(id.internal));
    }
    QUERN_RETURN_IF_ERROR(host_.BroadcastText(text, 0));
    if (text.size() != sizeof(id.internal)) return Internal("NCCL's id has another size");
    text.copy(id.internal, sizeof(id.internal));
    return Check("ncclCommInitRank", nccl_.comm_init_rank(&comm_, ranks(), id, rank()));
  }

  int rank() const override { return host_.rank(); }
  int ranks() const override { return host_.ranks(); }

  Status AllReduce(const TensorView& x, Reduction reduction) override {
    const int op = reduction == Reduction::kSum ? kNcclSum : kNcclMax;
    QUERN_RETURN_IF_ERROR(
        Check("all_reduce", nccl_.all_reduce(x.data, x.data, Count(x), SumType(x), op, comm_, stream())));
    return Wait("all_reduce");
  }

  // One reduction for each slice: NCCL's own wants slices of one size.
  Status ReduceScatter(const TensorView& x, std::span<const int64_t> bounds) override {
    const int type = SumType(x);
    return Grouped("reduce_scatter", x, bounds, [&](void* data, size_t elements, int root) {
      return nccl_.reduce(data, data, elements, type, kNcclSum, root, comm_, stream());
    });
  }

  Status AllGather(const TensorView& x, std::span<const int64_t> bounds) override {
    const auto size = static_cast<size_t>(DTypeSize(x.dtype));
    return Grouped("all_gather", x, bounds, [&](void* data, size_t elements, int root) {
      return nccl_.broadcast(data, data, elements * size, kNcclUint8, root, comm_, stream());
    });
  }

  Status Broadcast(const TensorView& x, int root) override {
    const size_t bytes = Count(x) * static_cast<size_t>(DTypeSize(x.dtype));
    QUERN_RETURN_IF_ERROR(
        Check("broadcast", nccl_.broadcast(x.data, x.data, bytes, kNcclUint8, root, comm_, stream())));
    return Wait("broadcast");
  }

  Status Barrier() override { return host_.Barrier(); }

 private:
  void* stream() const { return options_.stream; }
  static size_t Count(const TensorView& x) { return static_cast<size_t>(x.rows * x.cols); }
  static int SumType(const TensorView& x) {
    QUERN_CHECK(x.dtype == DType::kF32 || x.dtype == DType::kF64, DTypeName(x.dtype));
    return x.dtype == DType::kF32 ? kNcclFloat32 : kNcclFloat64;
  }

  Status Check(const char* call, int code) const {
    if (code == kNcclSuccess) return {};
    return Internal(StrCat("rank ", rank(), ": ", call, ": NCCL: ", nccl_.get_error_string(code)));
  }

  template <typename Call>
  Status Grouped(const char* name, const TensorView& x, std::span<const int64_t> bounds, const Call& call) {
    QUERN_CHECK(x.rows == 1 && static_cast<int>(bounds.size()) == ranks() + 1 && bounds.back() <= x.cols);
    QUERN_RETURN_IF_ERROR(Check(name, nccl_.group_start()));
    Status status;
    for (int r = 0; status.ok() && r < ranks(); ++r) {
      const auto i = static_cast<size_t>(r);
      const int64_t count = bounds[i + 1] - bounds[i];
      if (count > 0) status = Check(name, call(x.Cols(bounds[i], count).data, static_cast<size_t>(count), r));
    }
    const Status ended = Check(name, nccl_.group_end());
    QUERN_RETURN_IF_ERROR(status);
    QUERN_RETURN_IF_ERROR(ended);
    return Wait(name);
  }

  // A peer that has died shows as an error of NCCL's, or as nothing at all until the deadline.
  Status Wait(const char* call) {
    const Deadline deadline = Deadline::After(options_.timeout);
    while (true) {
      QUERN_ASSIGN_OR_RETURN(const bool done, options_.done());
      if (done) return {};
      int code = kNcclSuccess;
      Status status = Check(call, nccl_.comm_get_async_error(comm_, &code));
      if (status.ok()) status = Check(call, code);
      if (status.ok() && deadline.Expired())
        status = DeadlineExceeded(StrFormat("rank %d of %d: %s: the other ranks did not come within %.0f s", rank(),
                                            ranks(), call, ToSeconds(options_.timeout)));
      if (!status.ok()) {
        nccl_.comm_abort(comm_);
        comm_ = nullptr;
        return status;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }

  HostCommunicator& host_;
  NcclOptions options_;
  Nccl nccl_;
  NcclComm comm_ = nullptr;
};

}  // namespace

Result<std::unique_ptr<Communicator>> NewNcclCommunicator(HostCommunicator& host, const NcclOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const Nccl nccl, LoadNccl(options.library));
  auto communicator = std::make_unique<NcclCommunicator>(host, options, nccl);
  QUERN_RETURN_IF_ERROR(communicator->Init());
  return std::unique_ptr<Communicator>(std::move(communicator));
}

}  // namespace quern
