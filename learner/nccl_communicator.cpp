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
constexpr const char* kReduceScatter = "reduce_scatter";
constexpr int kNcclSuccess = 0, kNcclInProgress = 7;
// ncclConfig_t of 2.14, the first one: newer libraries take what is not there as their default. Not blocking: calls
// come back at once, and a rank that never comes does not hold this one for ever.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef;
  unsigned version = 21400;
  int blocking = 0;
};

struct Nccl {
  int (*get_unique_id)(NcclId*) = nullptr;
  int (*comm_init_rank_config)(NcclComm*, int, NcclId, int, NcclConfig*) = nullptr;
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
  if (library == nullptr) return NotFound(StrCat(name, ": ", dlerror(), "; several GPUs need NCCL 2.14 or newer"));
  Nccl nccl;
  std::string missing;
  const auto find = [&]<typename F>(const char* symbol, F& function) {
    function = reinterpret_cast<F>(dlsym(library, symbol));
    if (function == nullptr) missing = symbol;
  };
  find("ncclGetUniqueId", nccl.get_unique_id);
  find("ncclCommInitRankConfig", nccl.comm_init_rank_config);
  find("ncclCommDestroy", nccl.comm_destroy);
  find("ncclCommAbort", nccl.comm_abort);
  find("ncclCommGetAsyncError", nccl.comm_get_async_error);
  find("ncclGetErrorString", nccl.get_error_string);
  find("ncclAllReduce", nccl.all_reduce);
  find("ncclReduce", nccl.reduce);
  find("ncclBroadcast", nccl.broadcast);
  find("ncclGroupStart", nccl.group_start);
  find("ncclGroupEnd", nccl.group_end);
  if (!missing.empty()) return NotFound(StrCat(name, " has no ", missing, ": not NCCL 2.14 or newer"));
  return nccl;
}

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(HostCommunicator& host, Ops& ops, const NcclOptions& options, const Nccl& nccl)
      : host_(host), ops_(ops), options_(options), nccl_(nccl) {}
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
    (void)ops_.stream();  // chooses the GPU
    NcclConfig config;
    return Run("ncclCommInitRank", "",
               [&] { return nccl_.comm_init_rank_config(&comm_, ranks(), id, rank(), &config); });
  }

  int rank() const override { return host_.rank(); }
  int ranks() const override { return host_.ranks(); }

  Status AllReduce(const TensorView& x, Reduction reduction) override {
    const bool sum = reduction == Reduction::kSum;
    const int type = SumType(x);
    return Run("all_reduce", StrCat(Elements(x), sum ? " sum" : " max"), [&] {
      return nccl_.all_reduce(x.data, x.data, Count(x), type, sum ? kNcclSum : kNcclMax, comm_, ops_.stream());
    });
  }

  // One reduction for each slice: NCCL's own wants slices of one size.
  Status ReduceScatter(const TensorView& x, std::span<const int64_t> bounds) override {
    return Run(kReduceScatter, Elements(x), [&] { return ReduceSlices(x, bounds, ops_.stream()); });
  }

  // In the second stream, behind what was computed so far. What NCCL has not put into it yet would come behind what it
  // need not wait for, or before what it must.
  Status BeginReduceScatter(const TensorView& x, std::span<const int64_t> bounds) override {
    if (under_way_) QUERN_RETURN_IF_ERROR(Settle(kReduceScatter, /*in_stream=*/true));
    under_way_ = true;
    return Start(kReduceScatter, Elements(x), [&] { return ReduceSlices(x, bounds, ops_.ForkStream()); });
  }

  Status Finish() override {
    if (!under_way_) return {};
    under_way_ = false;
    QUERN_RETURN_IF_ERROR(Settle(kReduceScatter, /*in_stream=*/true));
    ops_.JoinStream();
    return Settle(kReduceScatter, /*in_stream=*/false);
  }

  Status AllGather(const TensorView& x, std::span<const int64_t> bounds) override {
    const auto size = static_cast<size_t>(DTypeSize(x.dtype));
    return Run("all_gather", Elements(x), [&] {
      return ForSlices(x, bounds, [&](void* data, size_t elements, int root) {
        return nccl_.broadcast(data, data, elements * size, kNcclUint8, root, comm_, ops_.stream());
      });
    });
  }

  Status Broadcast(const TensorView& x, int root) override {
    const size_t bytes = Count(x) * static_cast<size_t>(DTypeSize(x.dtype));
    return Run("broadcast", StrCat(Elements(x), " of rank ", root),
               [&] { return nccl_.broadcast(x.data, x.data, bytes, kNcclUint8, root, comm_, ops_.stream()); });
  }

  Status Barrier() override { return host_.Barrier(); }

 private:
  static size_t Count(const TensorView& x) { return static_cast<size_t>(x.rows * x.cols); }
  static std::string Elements(const TensorView& x) { return StrCat(Count(x), " ", DTypeName(x.dtype)); }
  static int SumType(const TensorView& x) {
    QUERN_CHECK(x.dtype == DType::kF32 || x.dtype == DType::kF64, DTypeName(x.dtype));
    return x.dtype == DType::kF32 ? kNcclFloat32 : kNcclFloat64;
  }

  Status Check(const char* call, int code) const {
    if (code == kNcclSuccess || code == kNcclInProgress) return {};
    return Internal(StrCat("rank ", rank(), ": ", call, ": NCCL: ", nccl_.get_error_string(code)));
  }

  template <typename Call>
  int ForSlices(const TensorView& x, std::span<const int64_t> bounds, const Call& call) {
    QUERN_CHECK(x.rows == 1 && static_cast<int>(bounds.size()) == ranks() + 1 && bounds.back() <= x.cols);
    int code = nccl_.group_start();
    for (size_t r = 0; code == kNcclSuccess && r + 1 < bounds.size(); ++r) {
      const int64_t count = bounds[r + 1] - bounds[r];
      if (count > 0) code = call(x.Cols(bounds[r], count).data, static_cast<size_t>(count), static_cast<int>(r));
      if (code == kNcclInProgress) code = kNcclSuccess;
    }
    const int ended = nccl_.group_end();
    return code == kNcclSuccess ? ended : code;
  }

  int ReduceSlices(const TensorView& x, std::span<const int64_t> bounds, void* stream) {
    const int type = SumType(x);
    return ForSlices(x, bounds, [&](void* data, size_t elements, int root) {
      return nccl_.reduce(data, data, elements, type, kNcclSum, root, comm_, stream);
    });
  }

  // All ranks meet on the host; then NCCL has its turn.
  template <typename Call>
  Status Start(const char* name, const std::string& what, const Call& call) {
    if (lost_) return FailedPrecondition(StrCat("rank ", rank(), ": ", name, ": an earlier call of NCCL failed"));
    QUERN_RETURN_IF_ERROR(Meet(StrCat(name, " ", what)));
    const Status status = Check(name, call());
    return status.ok() ? status : GiveUp(status);
  }
  template <typename Call>
  Status Run(const char* name, const std::string& what, const Call& call) {
    QUERN_RETURN_IF_ERROR(Finish());
    QUERN_RETURN_IF_ERROR(Start(name, what, call));
    return Settle(name, /*in_stream=*/false);
  }

  // What every rank says, which must be the same.
  Status Meet(const std::string& words) {
    QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> all, host_.AllGatherTexts(words));
    for (size_t r = 0; r < all.size(); ++r) {
      if (all[r] == words) continue;
      lost_ = true;
      return Internal(StrCat("rank ", rank(), " is at ", words, "; rank ", r, " at ", all[r]));
    }
    return {};
  }

  // Waits until the last call is in its stream, or all that was called is done.
  Status Settle(const char* name, bool in_stream) {
    if (lost_) return FailedPrecondition(StrCat("rank ", rank(), ": ", name, ": an earlier call of NCCL failed"));
    const Status status = Await(name, in_stream);
    return status.ok() ? status : GiveUp(status);
  }

  Status Await(const char* name, bool in_stream) {
    const Deadline deadline = Deadline::After(options_.timeout);
    while (true) {
      int code = kNcclSuccess;
      QUERN_RETURN_IF_ERROR(Check(name, nccl_.comm_get_async_error(comm_, &code)));
      QUERN_RETURN_IF_ERROR(Check(name, code));
      if (code == kNcclSuccess) {
        if (in_stream) return {};
        QUERN_ASSIGN_OR_RETURN(const bool done, ops_.Done());
        if (done) return {};
      }
      if (deadline.Expired())
        return DeadlineExceeded(
            StrFormat("rank %d of %d: %s: not done within %g s", rank(), ranks(), name, ToSeconds(options_.timeout)));
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }

  // A peer that has died shows as an error of NCCL's, or as nothing at all: the host knows who is there.
  Status GiveUp(const Status& why) {
    lost_ = true;
    if (comm_ != nullptr) nccl_.comm_abort(comm_);
    comm_ = nullptr;
    const Result<std::vector<std::string>> others = host_.AllGatherTexts(why.message());
    if (!others.ok()) return Status(why.code(), StrCat(why.message(), "; ", others.status().message()));
    std::string message = why.message();
    for (size_t r = 0; r < others->size(); ++r)
      if (static_cast<int>(r) != rank()) message += StrCat("; rank ", r, " says: ", (*others)[r]);
    return Status(why.code(), message);
  }

  HostCommunicator& host_;
  Ops& ops_;
  NcclOptions options_;
  Nccl nccl_;
  NcclComm comm_ = nullptr;
  bool lost_ = false;
  bool under_way_ = false;  // what BeginReduceScatter began
};

}  // namespace

Status FindNccl(const NcclOptions& options) { return LoadNccl(options.library).status(); }

Result<std::unique_ptr<Communicator>> NewNcclCommunicator(HostCommunicator& host, Ops& ops,
                                                          const NcclOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const Nccl nccl, LoadNccl(options.library));
  auto communicator = std::make_unique<NcclCommunicator>(host, ops, options, nccl);
  QUERN_RETURN_IF_ERROR(communicator->Init());
  return std::unique_ptr<Communicator>(std::move(communicator));
}

}  // namespace quern
