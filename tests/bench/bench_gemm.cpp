// Matrix products at model shapes, in turn with a peer library where one was found at build time.
//   bench_gemm [--dtype=bf16|fp32] [--threads=1,2] [--m=1,8,64,512,2048] [--shapes=288x288,...] [--rounds=5] [--ms=10]
//              [--cold]        weights walk through a pool larger than the caches, as in decoding
//              [--grad]        the weight gradient (no peer)
//              [--pack]        packing both orientations from fp32
//              [--neighbour]   two threads beside one busy process, relative to alone
// GFLOP/s: median of the rounds (min-max). Share: of the register-only multiply-add rate measured in the same rounds.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <sstream>
#include <thread>

#include "compute/cpu/gemm.h"
#include "compute/cpu/gemm_kernels.h"
#include "compute/cpu/packed.h"
#include "tests/bench/bench_util.h"
#include "tests/bench/gemm_peer.h"
#include "tests/bench/peak.h"

namespace quern::bench {
namespace {

struct Options {
  DType dtype = DType::kBf16;
  std::vector<int64_t> threads, rows;
  std::vector<std::pair<int64_t, int64_t>> shapes;
  int rounds = 5;
  double seconds = 0.01;
  bool cold = false;
};

std::vector<int64_t> Numbers(const std::string& list) {
  std::vector<int64_t> numbers;
  std::istringstream in(list);
  for (std::string item; std::getline(in, item, ',');) numbers.push_back(std::stoll(item));
  return numbers;
}

std::vector<std::pair<int64_t, int64_t>> Shapes(const std::string& list) {
  std::vector<std::pair<int64_t, int64_t>> shapes;
  std::istringstream in(list);
  for (std::string item; std::getline(in, item, ',');) {
    const size_t x = item.find('x');
    shapes.emplace_back(std::stoll(item.substr(0, x)), std::stoll(item.substr(x + 1)));
  }
  return shapes;
}

void Fill(const TensorView& x) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      const float value = static_cast<float>((r * 7 + c) % 61) / 61.0f - 0.5f;
      if (x.dtype == DType::kBf16) {
        x.Row<Bf16>(r)[c] = Bf16(value);
      } else {
        x.Row<float>(r)[c] = value;
      }
    }
  }
}

class Own {
 public:
  Own(DType dtype, int64_t m, int64_t k, int64_t n, int64_t weights, ThreadPool& pool)
      : pool_(pool), a_(dtype, m, k), c_(dtype, m, n) {
    Fill(a_);
    Tensor weight(dtype, n, k);
    Fill(weight);
    for (int64_t i = 0; i < weights; ++i) {
      weights_.push_back(cpu::NewPacked(dtype, k, n));
      cpu::Pack({.weight = weight, .transposed = false, .out = weights_.back().get()}, pool_);
    }
  }
  void Run(int64_t i) {
    cpu::MatMul({.a = a_, .b = weights_[static_cast<size_t>(i) % weights_.size()].get(), .c = c_, .bias = {}}, pool_,
                scratch_);
  }

 private:
  ThreadPool& pool_;
  Arena scratch_;
  Tensor a_, c_;
  std::vector<std::unique_ptr<PackedMatrix>> weights_;
};

// Operations per second of `run`, called for at least `seconds`; GFLOP/s.
double Rate(double flops, double seconds, const std::function<void(int64_t)>& run) {
  static int64_t i = 0;
  int64_t calls = 1;
  while (true) {
    const double begin = Seconds();
    for (int64_t j = 0; j < calls; ++j) run(i++);
    const double took = Seconds() - begin;
    if (took >= seconds) return flops * static_cast<double>(calls) / took / 1e9;
    calls =
        std::max(calls + 1, static_cast<int64_t>(static_cast<double>(calls) * 1.2 * seconds / std::max(took, 1e-7)));
  }
}

void RunProducts(const Options& options) {
  std::printf("# %s, %s, %s weights; peer: %s\n", cpu::IsaName(cpu::ActiveIsa()), DTypeName(options.dtype),
              options.cold ? "cold" : "hot", GemmPeerName());
  std::printf("%-4s %-11s %5s | %-22s %-7s | %-22s %-6s | %s\n", "thr", "KxN", "M", "own GFLOP/s", "share",
              "peer GFLOP/s", "ratio", "others");
  for (const int64_t threads : options.threads) {
    ThreadPool pool(static_cast<int>(threads));
    SetGemmPeerThreads(static_cast<int>(threads));
    for (const auto& [k, n] : options.shapes) {
      for (const int64_t m : options.rows) {
        const int64_t bytes = k * n * DTypeSize(options.dtype);
        const int64_t weights = options.cold ? std::max<int64_t>(2, (int64_t{96} << 20) / bytes) : 1;
        Own own(options.dtype, m, k, n, weights, pool);
        const auto peer = NewGemmPeer(options.dtype, m, k, n, weights);
        const double flops = 2.0 * static_cast<double>(m * k * n);
        std::vector<double> own_rates, peer_rates, shares, ratios;
        const OthersWatch watch;
        for (int round = -1; round < options.rounds; ++round) {  // the first warms up
          const double peak = PeakGflops(options.dtype, threads);
          // The peer's idle OpenMP thread polls for some milliseconds and would take the second core from us.
          std::this_thread::sleep_for(std::chrono::milliseconds(30));
          const double own_rate = Rate(flops, options.seconds, [&](int64_t i) { own.Run(i); });
          const double peer_rate = peer == nullptr ? 0 : Rate(flops, options.seconds, [&](int64_t i) { peer->Run(i); });
          if (round < 0) continue;
          own_rates.push_back(own_rate);
          peer_rates.push_back(peer_rate);
          shares.push_back(peak > 0 ? own_rate / peak : 0);
          ratios.push_back(peer_rate > 0 ? own_rate / peer_rate : 0);
        }
        char shape[32];
        std::snprintf(shape, sizeof(shape), "%ldx%ld", static_cast<long>(k), static_cast<long>(n));
        std::printf("%-4ld %-11s %5ld | %-22s %5.1f %% | %-22s %6.2f | %4.0f %%\n", static_cast<long>(threads), shape,
                    static_cast<long>(m), Text(Summarise(own_rates)).c_str(), 100 * Summarise(shares).median,
                    Text(Summarise(peer_rates)).c_str(), Summarise(ratios).median, 100 * watch.Share());
        std::fflush(stdout);
      }
    }
  }
}

void RunGradWeight(const Options& options) {
  std::printf("# weight gradient, %s, %s\n", cpu::IsaName(cpu::ActiveIsa()), DTypeName(options.dtype));
  std::printf("%-4s %-11s %6s | %-22s %s\n", "thr", "KxN", "tokens", "GFLOP/s", "share");
  for (const int64_t threads : options.threads) {
    ThreadPool pool(static_cast<int>(threads));
    Arena scratch;
    for (const auto& [k, n] : options.shapes) {
      for (const int64_t tokens : options.rows) {
        Tensor x(options.dtype, tokens, k), dy(options.dtype, tokens, n), dw(DType::kF32, n, k);
        Fill(x);
        Fill(dy);
        std::vector<double> rates, shares;
        for (int round = -1; round < options.rounds; ++round) {
          const double peak = PeakGflops(options.dtype, threads);
          const double rate = Rate(2.0 * static_cast<double>(tokens * k * n), options.seconds, [&](int64_t) {
            cpu::MatMulGradWeight({dy, x, dw}, pool, scratch);
          });
          if (round < 0) continue;
          rates.push_back(rate);
          shares.push_back(peak > 0 ? rate / peak : 0);
        }
        std::printf("%-4ld %5ldx%-5ld %6ld | %-22s %5.1f %%\n", static_cast<long>(threads), static_cast<long>(k),
                    static_cast<long>(n), static_cast<long>(tokens), Text(Summarise(rates)).c_str(),
                    100 * Summarise(shares).median);
      }
    }
  }
}

void RunPack(const Options& options) {
  std::printf("# packing from fp32, GB/s of source read\n%-4s %-11s | %-22s %-22s\n", "thr", "KxN", "[n, k]", "[k, n]");
  for (const int64_t threads : options.threads) {
    ThreadPool pool(static_cast<int>(threads));
    for (const auto& [k, n] : options.shapes) {
      Tensor weight(DType::kF32, n, k), turned(DType::kF32, k, n);
      Fill(weight);
      const auto packed = cpu::NewPacked(options.dtype, k, n);
      std::vector<double> rates[2];
      for (int round = 0; round < options.rounds; ++round) {
        for (int transposed = 0; transposed < 2; ++transposed) {
          rates[transposed].push_back(Rate(static_cast<double>(weight.bytes()), options.seconds, [&](int64_t) {
            cpu::Pack({.weight = transposed == 1 ? turned.view() : weight.view(),
                       .transposed = transposed == 1,
                       .out = packed.get()},
                      pool);
          }));
        }
      }
      std::printf("%-4ld %5ldx%-5ld | %-22s %-22s\n", static_cast<long>(threads), static_cast<long>(k),
                  static_cast<long>(n), Text(Summarise(rates[0])).c_str(), Text(Summarise(rates[1])).c_str());
    }
  }
}

// Two threads alone and beside one busy process, in turn. 1 is no loss; fair shares of three would be 0.67.
void RunNeighbour(const Options& options) {
  std::printf("# two threads beside one busy process; %s; peer: %s\n", DTypeName(options.dtype), GemmPeerName());
  std::printf("%-11s %5s | %-22s %-22s %-6s | %-22s %-22s %s\n", "KxN", "M", "own alone", "own beside", "ratio",
              "peer alone", "peer beside", "ratio");
  ThreadPool pool(2);
  SetGemmPeerThreads(2);
  for (const auto& [k, n] : options.shapes) {
    for (const int64_t m : options.rows) {
      Own own(options.dtype, m, k, n, 1, pool);
      const auto peer = NewGemmPeer(options.dtype, m, k, n, 1);
      const double flops = 2.0 * static_cast<double>(m * k * n);
      std::vector<double> rates[2][2];  // [own, peer][alone, beside]
      for (int round = 0; round < options.rounds; ++round) {
        for (int beside = 0; beside < 2; ++beside) {
          pid_t child = 0;
          if (beside == 1 && (child = fork()) == 0) {
            for (volatile uint64_t x = 0;;) x = x + 1;
          }
          const double seconds = 0.3;  // many time slices
          rates[0][beside].push_back(Rate(flops, seconds, [&](int64_t i) { own.Run(i); }));
          if (peer != nullptr) rates[1][beside].push_back(Rate(flops, seconds, [&](int64_t i) { peer->Run(i); }));
          if (child > 0) {
            kill(child, SIGKILL);
            waitpid(child, nullptr, 0);
          }
        }
      }
      const auto ratio = [&](int who) {
        return Summarise(rates[who][1]).median / std::max(1e-9, Summarise(rates[who][0]).median);
      };
      std::printf("%5ldx%-5ld %5ld | %-22s %-22s %6.2f | %-22s %-22s %.2f\n", static_cast<long>(k),
                  static_cast<long>(n), static_cast<long>(m), Text(Summarise(rates[0][0])).c_str(),
                  Text(Summarise(rates[0][1])).c_str(), ratio(0), Text(Summarise(rates[1][0])).c_str(),
                  Text(Summarise(rates[1][1])).c_str(), ratio(1));
      std::fflush(stdout);
    }
  }
}

int Main(int argc, char** argv) {
  Options options;
  options.dtype = Flag(argc, argv, "dtype", "bf16") == "fp32" ? DType::kF32 : DType::kBf16;
  options.threads = Numbers(Flag(argc, argv, "threads", "1,2"));
  options.rows = Numbers(Flag(argc, argv, "m", "1,8,64,512,2048"));
  options.shapes = Shapes(
      Flag(argc, argv, "shapes", "288x288,288x768,768x288,512x512,768x768,768x2048,1536x1536,4096x4096,288x32000"));
  options.rounds = std::stoi(Flag(argc, argv, "rounds", "5"));
  options.seconds = std::stod(Flag(argc, argv, "ms", "10")) / 1000;
  options.cold = HasFlag(argc, argv, "cold");
  PrintHeader(argc, argv);
  const OthersWatch watch;
  if (HasFlag(argc, argv, "neighbour")) {
    RunNeighbour(options);
  } else if (HasFlag(argc, argv, "grad")) {
    RunGradWeight(options);
  } else if (HasFlag(argc, argv, "pack")) {
    RunPack(options);
  } else {
    RunProducts(options);
  }
  std::printf("# other processes and the hypervisor took %.1f %% of the cores\n", 100 * watch.Share());
  return 0;
}

}  // namespace
}  // namespace quern::bench

int main(int argc, char** argv) { return quern::bench::Main(argc, argv); }
