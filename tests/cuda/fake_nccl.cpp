// A stand-in for libnccl.so.2: the ranks are threads of one process. As with communicators that do not block, calls are
// only posted; a collective happens in the ncclCommGetAsyncError at which every rank has posted it. Arguments that NCCL
// would refuse, and ranks whose calls do not fit together, are complaints.
#include "tests/cuda/fake_nccl.h"

#include <dlfcn.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace {

enum Code : int { kSuccess = 0, kInternalError = 3, kInvalidArgument = 4, kInvalidUsage = 5, kInProgress = 7 };
enum Type : int { kUint8 = 1, kFloat32 = 7, kFloat64 = 8 };
enum Op : int { kSum = 0, kMax = 2 };

struct Id {
  char internal[128];
};
struct Config {
  size_t size;
  unsigned magic, version;
  int blocking;
};

enum class Kind { kInit, kAllReduce, kReduce, kBroadcast };
struct Call {
  Kind kind = Kind::kInit;
  const void* from = nullptr;
  void* to = nullptr;
  size_t count = 0;
  int type = kUint8, op = kSum, root = 0;
  bool Fits(const Call& o) const {
    return kind == o.kind && count == o.count && type == o.type && op == o.op && root == o.root;
  }
};

struct Group {
  int ranks = 0;
  std::vector<std::deque<Call>> posted;  // of each rank
  std::vector<bool> joined;
  int error = kSuccess;  // of all ranks, for good
};

struct Comm {
  std::shared_ptr<Group> group;
  int rank = 0;
};

std::mutex mutex;
std::map<std::string, std::shared_ptr<Group>> groups;  // by id
std::vector<Comm*> alive;
int ended = 0, failure = kSuccess;
bool eager = false;  // a collective happens as soon as every rank has posted it
uint64_t ids = 0;
std::string complaint, taken;
thread_local int depth = 0;  // of ncclGroupStart
thread_local bool group_begins = false;

int Complain(const std::string& what, int code) {
  if (complaint.empty()) complaint = what;
  return code;
}

bool IsAlive(const void* comm) { return std::find(alive.begin(), alive.end(), comm) != alive.end(); }

size_t Size(int type) { return type == kFloat64 ? 8 : type == kFloat32 ? 4 : 1; }

template <typename T>
void Combine(const std::vector<Call>& calls, void* out, size_t count) {
  std::vector<T> sum(count);
  for (size_t r = 0; r < calls.size(); ++r) {
    const T* from = static_cast<const T*>(calls[r].from);
    for (size_t i = 0; i < count; ++i)
      sum[i] = r == 0 ? from[i] : calls[r].op == kMax ? std::max(sum[i], from[i]) : sum[i] + from[i];
  }
  std::memcpy(out, sum.data(), count * sizeof(T));
}

void Happen(std::vector<Call> calls) {
  // The program whose GPU is the emulator has it (compute/cuda/emulator.h).
  static auto* const access = reinterpret_cast<void (*)(int begin)>(dlsym(RTLD_DEFAULT, "QuernDeviceAccess"));
  if (access != nullptr) access(1);
  const Call& first = calls[0];
  std::vector<uint8_t> result(first.count * Size(first.type));
  if (first.kind == Kind::kBroadcast) {
    std::memcpy(result.data(), calls[static_cast<size_t>(first.root)].from, result.size());
  } else if (first.type == kFloat64) {
    Combine<double>(calls, result.data(), first.count);
  } else {
    Combine<float>(calls, result.data(), first.count);
  }
  for (size_t r = 0; r < calls.size(); ++r)
    if (first.kind != Kind::kReduce || static_cast<int>(r) == first.root)
      std::memcpy(calls[r].to, result.data(), result.size());
  if (access != nullptr) access(0);
  ended += static_cast<int>(calls.size());
}

// Every collective that all ranks have posted.
int Progress(Group& group) {
  while (group.error == kSuccess &&
         std::all_of(group.posted.begin(), group.posted.end(), [](const auto& calls) { return !calls.empty(); })) {
    std::vector<Call> calls;
    for (auto& posted : group.posted) {
      calls.push_back(posted.front());
      posted.pop_front();
    }
    for (const Call& call : calls)
      if (!call.Fits(calls[0])) group.error = Complain("ranks at different calls", kInvalidUsage);
    if (group.error != kSuccess || calls[0].kind == Kind::kInit) continue;
    group.error = failure;
    if (failure == kSuccess) Happen(std::move(calls));
  }
  return group.error;
}

int Post(void* comm, const Call& call) {
  const std::lock_guard lock(mutex);
  if (!IsAlive(comm)) return Complain("a call with a communicator that is none", kInvalidArgument);
  const Comm& own = *static_cast<Comm*>(comm);
  if (call.from == nullptr || call.to == nullptr || call.count == 0)
    return Complain("a call with nothing", kInvalidArgument);
  if (call.from != call.to) return Complain("not in place", kInvalidArgument);
  if (reinterpret_cast<uintptr_t>(call.to) % Size(call.type) != 0) return Complain("not aligned", kInvalidArgument);
  if (call.type != kUint8 && call.type != kFloat32 && call.type != kFloat64)
    return Complain("an unexpected type", kInvalidArgument);
  if (call.kind != Kind::kBroadcast && call.type == kUint8) return Complain("a sum of bytes", kInvalidArgument);
  if (call.op != kSum && call.op != kMax) return Complain("an unexpected reduction", kInvalidArgument);
  if (call.root < 0 || call.root >= own.group->ranks) return Complain("no such root", kInvalidArgument);
  auto& posted = own.group->posted[static_cast<size_t>(own.rank)];
  if ((depth == 0 || group_begins) && !posted.empty())
    return Complain("a call while another is under way", kInvalidUsage);
  group_begins = false;
  posted.push_back(call);
  if (eager) (void)Progress(*own.group);
  return depth > 0 ? kSuccess : kInProgress;
}

}  // namespace

extern "C" {

int FakeNcclTakeCount() {
  const std::lock_guard lock(mutex);
  return std::exchange(ended, 0);
}
const char* FakeNcclTakeComplaint() {
  const std::lock_guard lock(mutex);
  taken = std::exchange(complaint, {});
  return taken.c_str();
}
void FakeNcclEager(int is) {
  const std::lock_guard lock(mutex);
  eager = is != 0;
}
void FakeNcclFail(int code) {
  const std::lock_guard lock(mutex);
  failure = code;
}

int ncclGetUniqueId(Id* id) {
  const std::lock_guard lock(mutex);
  std::memset(id->internal, 0x5a, sizeof(id->internal));  // zeros within would be lost in a text
  id->internal[3] = 0;
  std::memcpy(id->internal + 8, &++ids, sizeof(ids));
  return kSuccess;
}

int ncclCommInitRankConfig(void** comm, int ranks, Id id, int rank, const Config* config) {
  const std::lock_guard lock(mutex);
  if (config->size < sizeof(Config) || config->magic != 0xcafebeef || config->version < 21400 || config->blocking != 0)
    return Complain("a configuration that is none, or blocks", kInvalidArgument);
  if (id.internal[0] != 0x5a || id.internal[3] != 0 || id.internal[127] != 0x5a)
    return Complain("not the id of rank 0", kInvalidArgument);
  std::shared_ptr<Group>& group = groups[std::string(id.internal, sizeof(id.internal))];
  if (group == nullptr) {
    group = std::make_shared<Group>();
    group->ranks = ranks;
    group->posted.resize(static_cast<size_t>(ranks));
    group->joined.resize(static_cast<size_t>(ranks));
  }
  if (ranks != group->ranks || rank < 0 || rank >= ranks || group->joined[static_cast<size_t>(rank)])
    return Complain("ranks that do not fit together", kInvalidArgument);
  group->joined[static_cast<size_t>(rank)] = true;
  group->posted[static_cast<size_t>(rank)].push_back({});
  alive.push_back(new Comm{group, rank});
  *comm = alive.back();
  return kInProgress;
}

int ncclCommGetAsyncError(void* comm, int* code) {
  const std::lock_guard lock(mutex);
  if (!IsAlive(comm)) return Complain("asked about a communicator that is none", kInvalidArgument);
  Comm& own = *static_cast<Comm*>(comm);
  *code = Progress(*own.group);
  if (*code == kSuccess && !own.group->posted[static_cast<size_t>(own.rank)].empty()) *code = kInProgress;
  return kSuccess;
}

int ncclCommDestroy(void* comm) {
  const std::lock_guard lock(mutex);
  if (!IsAlive(comm)) return Complain("an end of a communicator that is none", kInvalidArgument);
  std::erase(alive, comm);
  delete static_cast<Comm*>(comm);
  return kSuccess;
}
int ncclCommAbort(void* comm) { return ncclCommDestroy(comm); }
const char* ncclGetErrorString(int code) {
  return code == kInternalError ? "internal error" : code == kInvalidArgument ? "invalid argument" : "another error";
}

int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, void* comm, void*) {
  return Post(comm, {Kind::kAllReduce, from, to, count, type, op, 0});
}
int ncclReduce(const void* from, void* to, size_t count, int type, int op, int root, void* comm, void*) {
  return Post(comm, {Kind::kReduce, from, to, count, type, op, root});
}
int ncclBroadcast(const void* from, void* to, size_t count, int type, int root, void* comm, void*) {
  return Post(comm, {Kind::kBroadcast, from, to, count, type, kSum, root});
}
int ncclGroupStart() {
  group_begins = ++depth == 1;
  return kSuccess;
}
int ncclGroupEnd() { return --depth < 0 ? Complain("a group that never began", kInvalidUsage) : kInProgress; }
}
