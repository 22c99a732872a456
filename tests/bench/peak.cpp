#include "tests/bench/peak.h"

#include <ctime>
#include <thread>
#include <vector>

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

double PeakGflops(DType dtype, int64_t threads) {
  constexpr double kTime = 0.003;
  std::vector<double> rate(static_cast<size_t>(threads));
  std::vector<std::thread> others;
  // By CPU time: a thread that other processes keep from its core is no slower core.
  const auto cpu_seconds = [] {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  const auto measure = [&](size_t t) {
    const double begin = cpu_seconds();
    const double flops = RegisterOnlyFlops(cpu::ActiveIsa(), dtype, kTime);
    rate[t] = flops / (cpu_seconds() - begin) / 1e9;
  };
  for (size_t t = 1; t < rate.size(); ++t) others.emplace_back(measure, t);
  measure(0);
  for (std::thread& other : others) other.join();
  double sum = 0;
  for (const double r : rate) sum += r;
  return sum;
}

}  // namespace quern::bench
