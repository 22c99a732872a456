#include "compute/cpu/cpu_features.h"

#include <cstdlib>
#include <string_view>

#include "base/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace quern::cpu {

namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx"};

#if defined(__x86_64__)
// AMX needs the CPU's tile and bf16 bits, the operating system's saving of tile state, and its leave to use 8 KiB of it
// (Linux: Documentation/x86/xstate.rst); asked once for the process, threads started later inherit it.
bool AmxUsable() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) return false;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Isa Detect() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kScalar;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx2;
  }
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::kAvx512;
  return AmxUsable() ? Isa::kAmx : Isa::kAvx512Bf16;
}
#else
Isa Detect() { return Isa::kScalar; }
#endif

Isa ReadActive() {
  const char* wanted = std::getenv("QUERN_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return BestIsa();
  for (int i = 0; i <= static_cast<int>(BestIsa()); ++i) {
    if (std::string_view(wanted) == kNames[i]) return static_cast<Isa>(i);
  }
  CheckFailed(__FILE__, __LINE__, "QUERN_CPU_ISA is known and supported",
              std::string("QUERN_CPU_ISA=") + wanted + "; this machine has up to " + IsaName(BestIsa()));
}

}  // namespace

const char* IsaName(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa BestIsa() {
  static const Isa best = Detect();
  return best;
}

Isa ActiveIsa() {
  static const Isa active = ReadActive();
  return active;
}

}  // namespace quern::cpu
