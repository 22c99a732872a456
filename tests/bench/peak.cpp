#include "tests/bench/peak.h"

#include "tests/bench/bench_util.h"

namespace quern::bench {

double RegisterOnlyFlops(cpu::Isa isa, DType dtype, double seconds) {
#if defined(__x86_64__)
  double (*loop)(int64_t) = nullptr;
  if (isa == cpu::Isa::kAvx512Bf16 && dtype == DType::kBf16) {
    loop = &PeakAvx512Bf16;
  } else if (isa >= cpu::Isa::kAvx512 && (dtype == DType::kF32 || isa == cpu::Isa::kAvx512)) {
    loop = &PeakAvx512;
  }
  if (loop == nullptr) return 0;
  double flops = 0;
  for (const double end = Seconds() + seconds; Seconds() < end;) flops += loop(20000);
  return flops;
#else
  (void)isa, (void)dtype, (void)seconds;
  return 0;
#endif
}

}  // namespace quern::bench
