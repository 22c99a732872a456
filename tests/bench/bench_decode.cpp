// Generation through the engine: prompts of 16 tokens, then new ones, sampled from the whole vocabulary with their
// log-probabilities. Random weights, head apart from the embedding.
//   bench_decode [--models=15m,110m] [--threads=1,2] [--streams=1] [--new=128] [--precision=bf16|fp32|fp8]
//                [--rounds=5]
//                [--prompt=16]     tokens of a prompt
//                [--key-channels=N]  ThinK: keys of N channels once a prompt is read
//                [--greedy]        the likeliest token instead of a drawn one
//                [--neighbour]     also beside one busy process, and the share of speed kept
//                [--profile]       share of the time by operation
//                [--peer=COMMAND]  in turn; the last number that COMMAND prints is its tokens/s. {model}, {threads}
//                                  and {streams} are replaced
// Tokens/s of the new tokens after the first of each stream, all streams together: median of the rounds (min-max).
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <sstream>

#include "actors/engine.h"
#include "compute/cpu/cpu_ops.h"
#include "tests/bench/bench_util.h"
#include "tests/bench/models.h"
#include "tests/bench/peer_process.h"
#include "tests/bench/timed_ops.h"

namespace quern::bench {
namespace {

std::vector<std::string> Words(const std::string& list) {
  std::vector<std::string> words;
  std::istringstream in(list);
  for (std::string item; std::getline(in, item, ',');) words.push_back(item);
  return words;
}

// A process that keeps one core busy while it lives.
class Neighbour {
 public:
  Neighbour() : child_(fork()) {
    if (child_ != 0) return;
    for (volatile uint64_t x = 0;;) x = x + 1;
  }
  Neighbour(const Neighbour&) = delete;
  Neighbour& operator=(const Neighbour&) = delete;
  ~Neighbour() {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }

 private:
  pid_t child_;
};

double Generate(Engine& engine, int64_t streams, int64_t prompt_tokens, int64_t new_tokens, int64_t vocabulary,
                bool greedy) {
  std::vector<int64_t> open;
  for (int64_t s = 0; s < streams; ++s) {
    std::vector<int32_t> prompt;
    for (int64_t i = 0; i < prompt_tokens; ++i)
      prompt.push_back(static_cast<int32_t>((s * 131 + i * 7919) % vocabulary));
    open.push_back(engine.Open());
    engine.Extend(open.back(), prompt);
    GenerateOptions options;
    options.max_new_tokens = new_tokens;
    options.sampling.temperature = greedy ? 0.0f : 1.0f;
    options.seed = static_cast<uint64_t>(s);
    engine.Generate(open.back(), options);
  }
  // Until every prompt is in and every stream has its first token.
  while (engine.prompt_tokens() % (streams * prompt_tokens) != 0 ||
         engine.generated_tokens() % (streams * new_tokens) == 0) {
    QUERN_CHECK(engine.Step().ok());
  }
  const int64_t before = engine.generated_tokens();
  const double begin = Seconds();
  while (engine.HasWork()) QUERN_CHECK(engine.Step().ok());
  const double rate = static_cast<double>(engine.generated_tokens() - before) / (Seconds() - begin);
  for (const int64_t id : open) engine.Close(id);
  return rate;
}

int Main(int argc, char** argv) {
  const std::string precision = Flag(argc, argv, "precision", "bf16");
  const int64_t new_tokens = std::stoll(Flag(argc, argv, "new", "128"));
  const int64_t prompt = std::stoll(Flag(argc, argv, "prompt", "16"));
  const int rounds = std::stoi(Flag(argc, argv, "rounds", "5"));
  const bool greedy = HasFlag(argc, argv, "greedy"), beside = HasFlag(argc, argv, "neighbour");
  const bool profile = HasFlag(argc, argv, "profile");
  const std::string peer = Flag(argc, argv, "peer", "");
  PrintHeader(argc, argv);
  std::printf("# %s, %s; load before: %s\n", cpu::IsaName(cpu::ActiveIsa()), precision.c_str(), LoadAverage().c_str());
  std::printf("%-5s %3s %7s | %-24s %-6s | %-24s %-6s | %-24s %-6s | %s\n", "model", "thr", "streams", "own tokens/s",
              "others", "peer tokens/s", "ratio", "beside a busy process", "kept", "peer beside, kept");
  for (const std::string& model : Words(Flag(argc, argv, "models", "15m,110m"))) {
    const ModelConfig config = BenchModel(model, /*tied=*/false);
    Parameters parameters(config);
    parameters.Initialize(config, 1);
    for (const std::string& threads : Words(Flag(argc, argv, "threads", "1,2"))) {
      ThreadPool pool(std::stoi(threads));
      CpuOps cpu_ops(&pool);
      TimedOps ops(cpu_ops);
      auto served = std::make_shared<ServedModel>(profile ? static_cast<Ops&>(ops) : cpu_ops, config,
                                                  RecipeOf(precision), config.max_positions);
      QUERN_CHECK(served->weights.Load(parameters.Source()).ok());
      auto policy = std::make_shared<Policy>();
      policy->label = model;
      policy->models = {served};
      policy->head = std::make_shared<SingleModelHead>();
      policy->compression.key_channels = std::stoll(Flag(argc, argv, "key-channels", "0"));
      if (policy->compression.key_channels > 0) {
        const KvLayout layout = served->transformer.kv_layout();
        CompressedCache cache(cpu_ops, layout, policy->compression, prompt);
        for (const int64_t tokens : std::vector<int64_t>{prompt, new_tokens}) {
          cache.Reserve(tokens);
          cache.Advance(tokens);
        }
        const int64_t pages = (prompt + new_tokens + KvLayout::kPageTokens - 1) / KvLayout::kPageTokens;
        std::printf("# keys and values of a sequence at its end: %lld bytes, %lld with all channels\n",
                    static_cast<long long>(cache.bytes()), static_cast<long long>(pages * layout.page_bytes()));
      }
      for (const std::string& count : Words(Flag(argc, argv, "streams", "1"))) {
        const int64_t streams = std::stoll(count);
        // Every round computes its prompts.
        Engine engine(profile ? static_cast<Ops&>(ops) : cpu_ops, {.share_prefixes = false});
        engine.SetPolicy(policy);
        const auto generate = [&] { return Generate(engine, streams, prompt, new_tokens, config.vocab_size, greedy); };
        const std::string command = Replaced(peer, {{"{model}", model}, {"{threads}", threads}, {"{streams}", count}});
        std::vector<double> own, others, own_beside, theirs, theirs_beside;
        generate();
        ops.Clear();
        double seconds = 0, cpu_seconds = 0;
        for (int round = 0; round < rounds; ++round) {
          const OthersWatch watch;
          const double begin = Seconds(), cpu_begin = OwnCpuSeconds();
          own.push_back(generate());
          seconds += Seconds() - begin;
          cpu_seconds += OwnCpuSeconds() - cpu_begin;
          others.push_back(watch.Share());
          if (!peer.empty()) theirs.push_back(LastNumberOf(command));
          if (!beside) continue;
          const Neighbour neighbour;
          own_beside.push_back(generate());
          if (!peer.empty()) theirs_beside.push_back(LastNumberOf(command));
        }
        const Spread a = Summarise(own), b = Summarise(theirs), c = Summarise(own_beside), d = Summarise(theirs_beside);
        std::printf("%-5s %3s %7s | %-24s %4.0f %% | %-24s %6.2f | %-24s %6.2f | %-24s %.2f\n", model.c_str(),
                    threads.c_str(), count.c_str(), Text(a).c_str(), 100 * Summarise(others).median, Text(b).c_str(),
                    b.median > 0 ? a.median / b.median : 0, Text(c).c_str(), c.median / a.median, Text(d).c_str(),
                    b.median > 0 ? d.median / b.median : 0);
        std::fflush(stdout);
        if (profile && !beside) {
          ops.Print("token", static_cast<double>(rounds * streams * new_tokens), seconds, cpu_seconds);
        }
      }
    }
  }
  std::printf("# load after: %s\n", LoadAverage().c_str());
  return 0;
}

}  // namespace
}  // namespace quern::bench

int main(int argc, char** argv) { return quern::bench::Main(argc, argv); }
