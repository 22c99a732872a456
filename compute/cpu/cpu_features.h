#pragma once

namespace quern::cpu {

// Instruction sets with kernels of their own, each a superset of the ones before it.
enum class Isa {
  kScalar,      // any CPU
  kAvx2,        // AVX2, FMA, F16C
  kAvx512,      // AVX-512 F, BW, VL, DQ
  kAvx512Bf16,  // and VDPBF16PS
  kAmx,         // and bf16 tiles, with the kernel's permission to use them
};

const char* IsaName(Isa isa);  // as in QUERN_CPU_ISA: scalar, avx2, avx512, avx512bf16, amx

// What this CPU and operating system support. Thread-safe.
Isa BestIsa();
inline bool IsaAvailable(Isa isa) { return isa <= BestIsa(); }

// What kernels use: BestIsa(), or less where the environment variable QUERN_CPU_ISA (read once) asks for less. An
// unknown name or one the CPU lacks ends the process.
Isa ActiveIsa();

}  // namespace quern::cpu
