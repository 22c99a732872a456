#include "compute/cuda/emulator.h"

#include <memory>
#include <vector>

#include "base/random.h"

// Saves the registers that a function must keep and the stack pointer, and goes on where `to` was saved.
extern "C" void quern_switch_stack(void** from, void* to);
asm(R"(
  .text
  .globl quern_switch_stack
  .type quern_switch_stack, @function
quern_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size quern_switch_stack, .-quern_switch_stack
)");

namespace quern::cuda::emulator {

namespace {

constexpr size_t kStack = 64 * 1024;
constexpr size_t kLanes = 32;

struct Copy {
  int group;
  void* to;
  const void* from;
  size_t bytes;
};

enum class State { kReady, kBarrier, kWarp, kDone };

struct Thread {
  void* stack_pointer = nullptr;
  dim3 index;
  State state = State::kReady;
  void* args = nullptr;
  void (*op)(void* const*) = nullptr;
  std::vector<Copy> copies;  // not done yet
  int group = 0;             // of the next copy
};

uint64_t order = 0;
std::vector<std::unique_ptr<char[]>> stacks;
std::vector<Thread> threads;
std::unique_ptr<unsigned char[]> shared_memory;
void* scheduler = nullptr;  // its stack pointer while a thread runs
size_t current = 0;
size_t at_barrier = 0;
std::vector<size_t> at_warp;  // lanes of each warp that wait for the others
bool woken = false;           // others, by the thread that ran last
const std::function<void()>* kernel = nullptr;
thread_local std::vector<std::function<void()>>* captured = nullptr;

void Yield() { quern_switch_stack(&threads[current].stack_pointer, scheduler); }

void Enter() {
  (*kernel)();
  QUERN_CHECK(threads[current].copies.empty(), "copies that nobody waited for");
  threads[current].state = State::kDone;
  Yield();
}

void Prepare(size_t i) {
  if (stacks.size() <= i) stacks.push_back(std::make_unique_for_overwrite<char[]>(kStack));
  auto top = reinterpret_cast<uintptr_t>(stacks[i].get() + kStack) / 16 * 16;
  auto* words = reinterpret_cast<void**>(top);
  words[-1] = nullptr;                          // Enter's return address: it never returns
  words[-2] = reinterpret_cast<void*>(&Enter);  // where the first switch goes
  threads[i].stack_pointer = words - 8;         // below: six registers
}

std::vector<size_t> Order(size_t count) {
  std::vector<size_t> out(count);
  Random random(order);
  for (size_t i = 0; i < count; ++i) out[i] = order == 1 ? count - 1 - i : i;
  for (size_t i = count; order > 1 && i > 1; --i) std::swap(out[i - 1], out[random.Below(i)]);
  return out;
}

void RunBlock(const std::vector<size_t>& turns) {
  at_barrier = 0;
  at_warp.assign((threads.size() + kLanes - 1) / kLanes, 0);
  size_t done = 0;
  for (bool moved = true; moved;) {
    moved = false;
    for (const size_t i : turns) {
      if (threads[i].state != State::kReady) continue;
      current = i;
      threadIdx = threads[i].index;
      woken = false;
      quern_switch_stack(&scheduler, threads[i].stack_pointer);
      moved = true;
      done += threads[i].state == State::kDone ? 1 : 0;
      // From the first that can go on again, so that warps run as far ahead as barriers let them.
      if (woken && order % 2 == 1) break;
    }
  }
  QUERN_CHECK(done == threads.size(), "threads of a block wait for others that never come");
}

}  // namespace

void SetOrder(uint64_t new_order) { order = new_order; }

void Capture(std::vector<std::function<void()>>* launches) { captured = launches; }
void Queue(std::function<void()> launch) {
  if (captured == nullptr) return launch();
  captured->push_back(std::move(launch));
}

unsigned char* DynamicShared() { return shared_memory.get(); }

void Barrier() {
  if (++at_barrier < threads.size()) {
    threads[current].state = State::kBarrier;
    return Yield();
  }
  at_barrier = 0;
  woken = true;
  for (Thread& t : threads) {
    QUERN_CHECK(t.state == State::kBarrier || &t == &threads[current]);
    t.state = State::kReady;
  }
}

void WarpOperation(void* args, void (*op)(void* const*)) {
  Thread& self = threads[current];
  self.args = args;
  self.op = op;
  self.state = State::kWarp;
  const size_t first = current / kLanes * kLanes;
  QUERN_CHECK(first + kLanes <= threads.size(), "warp operations need whole warps");
  size_t& waiting = at_warp[first / kLanes];
  if (++waiting < kLanes) return Yield();
  waiting = 0;
  woken = true;
  void* all[kLanes];
  for (size_t i = 0; i < kLanes; ++i) {
    const Thread& t = threads[first + i];
    QUERN_CHECK(t.op == op, "lanes of a warp are at different operations");
    all[i] = t.args;
  }
  op(all);
  for (size_t i = 0; i < kLanes; ++i) threads[first + i].state = State::kReady;
}

void Run(dim3 grid, dim3 block, int64_t shared, const std::function<void()>& body) {
  const DeviceAccess access;
  QUERN_CHECK(kernel == nullptr, "a kernel within a kernel");
  kernel = &body;
  gridDim = grid;
  blockDim = block;
  const size_t count = size_t{block.x} * block.y * block.z;
  threads.resize(count);
  const std::vector<size_t> turns = Order(count);
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t b = order == 1 ? blocks - 1 - i : i;
    blockIdx = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y));
    // Of exactly the size asked for, so that AddressSanitizer sees what goes beyond it.
    shared_memory = std::make_unique_for_overwrite<unsigned char[]>(static_cast<size_t>(shared));
    std::memset(shared_memory.get(), 0xff, static_cast<size_t>(shared));
    for (size_t t = 0; t < count; ++t) {
      threads[t] = {};
      threads[t].index = dim3(static_cast<unsigned>(t % block.x), static_cast<unsigned>(t / block.x % block.y),
                              static_cast<unsigned>(t / block.x / block.y));
      Prepare(t);
    }
    RunBlock(turns);
  }
  kernel = nullptr;
}

}  // namespace quern::cuda::emulator

namespace quern::cuda {

namespace {

float Half(uint32_t word, int which) { return std::bit_cast<float>(which == 0 ? word << 16 : word & 0xffff0000u); }

struct MmaArgs {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

struct MatrixArgs {
  uint32_t* r;
  const uint16_t* row;
};

template <bool kTransposed>
void Matrices(uint32_t (&r)[4], const void* row) {
  QUERN_CHECK(reinterpret_cast<uintptr_t>(row) % 16 == 0);
  MatrixArgs args{r, static_cast<const uint16_t*>(row)};
  emulator::WarpOperation(&args, [](void* const* all) {
    const auto element = [&](int matrix, int row_index, int column) {
      return uint32_t{static_cast<MatrixArgs*>(all[8 * matrix + row_index])->row[column]};
    };
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = 2 * (lane % 4);
      for (int m = 0; m < 4; ++m)
        static_cast<MatrixArgs*>(all[lane])->r[m] =
            kTransposed ? element(m, t, g) | element(m, t + 1, g) << 16 : element(m, g, t) | element(m, g, t + 1) << 16;
    }
  });
}

}  // namespace

void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaArgs args{d, a, {b0, b1}};
  emulator::WarpOperation(&args, [](void* const* all) {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& own = *static_cast<MmaArgs*>(all[lane]);
      const int g = lane / 4, t = 2 * (lane % 4);
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) left[g + 8 * (i % 2)][t + 8 * (i / 2) + half] = Half(own.a[i], half);
        for (int i = 0; i < 2; ++i) right[t + 8 * i + half][g] = Half(own.b[i], half);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      float* out = static_cast<MmaArgs*>(all[lane])->d;
      for (int i = 0; i < 4; ++i) {
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += left[lane / 4 + 8 * (i / 2)][k] * right[k][2 * (lane % 4) + i % 2];
        out[i] += sum;
      }
    }
  });
}

void LoadMatrices(uint32_t (&r)[4], const void* row) { Matrices<false>(r, row); }
void LoadMatricesTransposed(uint32_t (&r)[4], const void* row) { Matrices<true>(r, row); }

void CopyAsync(void* shared, const void* global, int bytes) {
  QUERN_CHECK(reinterpret_cast<uintptr_t>(shared) % 16 == 0 && reinterpret_cast<uintptr_t>(global) % 16 == 0);
  QUERN_CHECK(bytes == 0 || bytes == 16);
  emulator::Thread& self = emulator::threads[emulator::current];
  if (emulator::order % 2 == 1) {
    std::memset(shared, 0, 16);
    std::memcpy(shared, global, static_cast<size_t>(bytes));
    return;
  }
  self.copies.push_back({self.group, shared, global, static_cast<size_t>(bytes)});
}

void CommitCopies() { ++emulator::threads[emulator::current].group; }

void AwaitCopies(int groups) {
  emulator::Thread& self = emulator::threads[emulator::current];
  std::erase_if(self.copies, [&](const emulator::Copy& copy) {
    if (copy.group >= self.group - groups) return false;
    std::memset(copy.to, 0, 16);
    std::memcpy(copy.to, copy.from, copy.bytes);
    return true;
  });
}

}  // namespace quern::cuda
