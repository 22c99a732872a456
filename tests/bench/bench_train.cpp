// One training step through the learner's trainer: forward, backward, clipping, AdamW, new working weights. Random
// weights and tokens, sequences of 256, every token has a loss.
//   bench_train [--models=15m,110m] [--tokens=1024,4096] [--precision=bf16|fp32|fp8] [--threads=0] [--steps=5]
//               [--profile]       share of a step's time by operation
//               [--peer=COMMAND]  in turn with another program, step by step: for every line on its standard input it
//                                 does one step and prints "WALL CPU", the seconds and CPU-seconds the step took.
//                                 {model}, {batch} and {dtype} (bf16 for fp8) in COMMAND are replaced
// Tokens/s: median of the steps (min-max). CPU: tokens per CPU-second, which a busy machine disturbs less. Share: of
// the register-only multiply-add rate measured between the steps.
#include <ctime>
#include <map>
#include <memory>
#include <sstream>

#include "base/random.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/trainer.h"
#include "methods/sft.h"
#include "model/recipe.h"
#include "tests/bench/bench_util.h"
#include "tests/bench/models.h"
#include "tests/bench/peak.h"
#include "tests/bench/peer_process.h"
#include "tests/bench/timed_ops.h"

namespace quern::bench {
namespace {

constexpr int64_t kSequence = 256;

std::vector<std::string> Words(const std::string& list) {
  std::vector<std::string> words;
  std::istringstream in(list);
  for (std::string item; std::getline(in, item, ',');) words.push_back(item);
  return words;
}

TrainingBatch RandomBatch(int64_t vocabulary, int64_t tokens) {
  TrainingBatch batch;
  Random random(1, static_cast<uint64_t>(tokens));
  std::vector<int32_t> ids(kSequence + 1);
  for (int64_t row = 0; row < tokens; row += kSequence, ++batch.episodes) {
    for (int32_t& id : ids) id = static_cast<int32_t>(random.UniformFloat() * static_cast<float>(vocabulary));
    batch.tokens.Add(ids.data(), kSequence, 0, nullptr);
    for (int64_t i = 0; i < kSequence; ++i) batch.rows.push_back({.row = row + i, .target = ids[size_t(i) + 1]});
  }
  return batch;
}

// Of the products and of causal attention; the backward pass of the products does twice the forward's, that of
// attention five products for two.
double FlopsPerToken(const ModelConfig& c) {
  const auto d = static_cast<double>(c.hidden_size), layers = static_cast<double>(c.layers);
  const double weights =
      layers * (4 * d * d + 3 * d * static_cast<double>(c.intermediate_size)) + d * static_cast<double>(c.vocab_size);
  return 6 * weights + layers * (2 + 5) * 2 * d * (kSequence + 1) / 2;
}

struct Timing {
  std::vector<double> wall, cpu;  // tokens per second, tokens per CPU-second
};

int Main(int argc, char** argv) {
  const std::string precision = Flag(argc, argv, "precision", "bf16");
  const Recipe recipe = RecipeOf(precision);
  const int steps = std::stoi(Flag(argc, argv, "steps", "5"));
  const std::string peer_command = Flag(argc, argv, "peer", "");
  PrintHeader(argc, argv);
  ThreadPool pool(std::stoi(Flag(argc, argv, "threads", "0")));
  std::printf("# %d threads, %s, %s; load before: %s\n", pool.threads(), cpu::IsaName(cpu::ActiveIsa()),
              precision.c_str(), LoadAverage().c_str());
  std::printf("%-5s %6s | %-24s %-9s %-14s | %-24s %-9s | %-6s %-6s | %s\n", "model", "tokens", "own tokens/s", "CPU",
              "share, of CPU", "peer tokens/s", "CPU", "ratio", "CPU", "others");
  for (const std::string& model : Words(Flag(argc, argv, "models", "15m,110m"))) {
    const ModelConfig config = BenchModel(model, /*tied=*/true);
    CpuOps cpu_ops(&pool);
    TimedOps ops(cpu_ops);
    Trainer trainer(ops, config, recipe, kSequence, {});
    trainer.parameters().Initialize(config, 1);
    QUERN_CHECK(trainer.Begin({}, std::nullopt).ok());
    for (const std::string& count : Words(Flag(argc, argv, "tokens", "1024,4096"))) {
      const int64_t tokens = std::stoll(count);
      QUERN_CHECK(tokens > 0 && tokens % kSequence == 0, "--tokens takes multiples of 256");
      const TrainingBatch batch = RandomBatch(config.vocab_size, tokens);
      std::unique_ptr<PeerProcess> peer;
      if (!peer_command.empty()) {
        peer = std::make_unique<PeerProcess>(
            Replaced(peer_command, {{"{model}", model},
                                    {"{batch}", std::to_string(tokens / kSequence)},
                                    {"{dtype}", recipe.act == DType::kF32 ? "fp32" : "bf16"}}));
      }
      Timing own, other;
      std::vector<double> shares, cpu_shares, others;
      double all_seconds = 0, all_cpu = 0;
      for (int step = -1; step < steps; ++step) {  // the first warms up
        const double peak = PeakGflops(recipe.act, pool.threads());
        if (step == 0) ops.Clear();
        const OthersWatch watch;
        const double cpu_begin = OwnCpuSeconds(), begin = Seconds();
        const auto report = trainer.Step(batch, SftObjective(), nullptr);
        const double took = Seconds() - begin, cpu_took = OwnCpuSeconds() - cpu_begin;
        QUERN_CHECK(report.ok(), report.status().message());
        const double others_share = watch.Share();
        double peer_wall = 0, peer_cpu = 0;
        if (peer) std::istringstream(peer->Ask("step")) >> peer_wall >> peer_cpu;
        if (step < 0) continue;
        const auto n = static_cast<double>(tokens);
        all_seconds += took;
        all_cpu += cpu_took;
        own.wall.push_back(n / took);
        own.cpu.push_back(n / cpu_took);
        others.push_back(others_share);
        if (peak > 0) {
          shares.push_back(FlopsPerToken(config) * n / took / 1e9 / peak);
          cpu_shares.push_back(FlopsPerToken(config) * n / cpu_took / 1e9 / (peak / pool.threads()));
        }
        if (peer_wall > 0) {
          other.wall.push_back(n / peer_wall);
          other.cpu.push_back(n / std::max(peer_cpu, 1e-9));
        }
      }
      const Spread a = Summarise(own.wall), b = Summarise(other.wall);
      const double a_cpu = Summarise(own.cpu).median, b_cpu = Summarise(other.cpu).median;
      std::printf("%-5s %6ld | %-24s %-9.0f %4.1f %%, %4.1f %% | %-24s %-9.0f | %-6.2f %-6.2f | %.0f %%\n",
                  model.c_str(), static_cast<long>(tokens), Text(a).c_str(), a_cpu, 100 * Summarise(shares).median,
                  100 * Summarise(cpu_shares).median, Text(b).c_str(), b_cpu, b.median > 0 ? a.median / b.median : 0,
                  b_cpu > 0 ? a_cpu / b_cpu : 0, 100 * Summarise(others).median);
      std::fflush(stdout);
      if (HasFlag(argc, argv, "profile")) ops.Print("step", steps, all_seconds, all_cpu);
    }
  }
  std::printf("# load after: %s\n", LoadAverage().c_str());
  return 0;
}

}  // namespace
}  // namespace quern::bench

int main(int argc, char** argv) { return quern::bench::Main(argc, argv); }
