// The engine under load. Random weights, head apart from the embedding; every token sampled from the whole vocabulary,
// with its log-probability. Many streams of equal length: bench_decode.
//   bench_engine [--models=15m,110m] [--threads=2] [--precision=bf16|fp32|fp8] [--rounds=5] [--streams=64]
//                [--only=prefill,lengths,first]
//                [--peer-prefill=COMMAND]  in turn; the last number it prints is its tokens/s. {model} and {threads}
//                are
//                                          replaced
//                [--profile]               share of the prefill's time by operation
// prefill  a prompt of 512 tokens into an empty engine until its first token: tokens/s of the prompt, the median of 5
//          after one that warms up (as the peer's program does).
// lengths  `streams` requests at a time, a new one for each that ends: tokens/s while all places are taken, with
// answers
//          of equal length, and with lengths evenly between L and 10 L of the same mean.
// first    time to the first token of a prompt of 512 tokens, in an idle engine and beside `streams` - 1 others that
//          decode; and how long these wait for a token meanwhile, against without it.
// Medians of the rounds (min-max).
#include <sstream>

#include "actors/engine.h"
#include "base/random.h"
#include "compute/cpu/cpu_ops.h"
#include "tests/bench/bench_util.h"
#include "tests/bench/models.h"
#include "tests/bench/peer_process.h"
#include "tests/bench/timed_ops.h"

namespace quern::bench {
namespace {

constexpr int64_t kLongPrompt = 512;
constexpr int64_t kShortPrompt = 16;
constexpr int kPrompts = 6;  // of a round's prefill; the first warms up

class Load {
 public:
  Load(Engine& engine, int64_t vocabulary) : engine_(engine), vocabulary_(vocabulary) {}

  // No two requests of a run begin alike.
  int64_t Ask(int64_t prompt, int64_t new_tokens) {
    Random random(77, static_cast<uint64_t>(++asked_));
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < prompt; ++i)
      ids.push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocabulary_))));
    const int64_t id = engine_.Open();
    engine_.Extend(id, ids);
    GenerateOptions options;
    options.max_new_tokens = new_tokens;
    options.seed = static_cast<uint64_t>(asked_);
    engine_.Generate(id, options);
    return id;
  }
  // Closes what ended; how many that were.
  int64_t Step() {
    auto step = engine_.Step();
    QUERN_CHECK(step.ok(), step.status().ToString());
    for (const Completion& completion : *step) engine_.Close(completion.sequence);
    return static_cast<int64_t>(step->size());
  }

 private:
  Engine& engine_;
  int64_t vocabulary_;
  static inline int64_t asked_ = 0;
};

double Prefill(Engine& engine, int64_t vocabulary) {
  Load load(engine, vocabulary);
  std::vector<double> rates;
  for (int i = 0; i < kPrompts; ++i) {
    const double begin = Seconds();
    load.Ask(kLongPrompt, 1);
    while (engine.HasWork()) load.Step();
    if (i > 0) rates.push_back(static_cast<double>(kLongPrompt) / (Seconds() - begin));
  }
  return Summarise(rates).median;
}

double Lengths(Engine& engine, int64_t vocabulary, int64_t streams, bool varying) {
  constexpr int64_t kUnit = 26;
  Load load(engine, vocabulary);
  Random random(5);
  const auto length = [&]() -> int64_t {
    return varying ? kUnit + static_cast<int64_t>(random.Below(9 * kUnit + 1)) : 11 * kUnit / 2;
  };
  int64_t left = 4 * streams;
  // The first ones are of all ages, as they are later on.
  for (int64_t i = 0; i < streams; ++i) load.Ask(kShortPrompt, std::max<int64_t>(1, length() * (i + 1) / streams));
  load.Step();
  const int64_t before = engine.generated_tokens();
  const double begin = Seconds();
  while (left > 0) {
    for (int64_t ended = load.Step(); ended > 0 && left > 0; --ended, --left) load.Ask(kShortPrompt, length());
  }
  const double rate = static_cast<double>(engine.generated_tokens() - before) / (Seconds() - begin);
  while (engine.HasWork()) load.Step();
  return rate;
}

struct FirstToken {
  double milliseconds = 0;
  double longest_step = 0, usual_step = 0;  // with the prompt under way, and without
};

FirstToken First(Engine& engine, int64_t vocabulary, int64_t others) {
  constexpr int kUsual = 8;
  Load load(engine, vocabulary);
  std::vector<int64_t> open;
  for (int64_t i = 0; i < others; ++i) open.push_back(load.Ask(kShortPrompt, 500));
  FirstToken out;
  std::vector<double> usual;
  for (int i = 0; i < kUsual + 4 && others > 0; ++i) {
    const double begin = Seconds();
    load.Step();
    if (i >= 4) usual.push_back(1e3 * (Seconds() - begin));
  }
  out.usual_step = Summarise(usual).median;
  const double begin = Seconds();
  const int64_t id = load.Ask(kLongPrompt, 2);
  while (engine.progress(id).tokens.empty()) {
    const double step = Seconds();
    load.Step();
    out.longest_step = std::max(out.longest_step, 1e3 * (Seconds() - step));
  }
  out.milliseconds = 1e3 * (Seconds() - begin);
  engine.Close(id);
  for (const int64_t other : open) engine.Close(other);
  return out;
}

int Main(int argc, char** argv) {
  const std::string precision = Flag(argc, argv, "precision", "bf16");
  const int rounds = std::stoi(Flag(argc, argv, "rounds", "5"));
  const int64_t streams = std::stoll(Flag(argc, argv, "streams", "64"));
  const std::string threads = Flag(argc, argv, "threads", "2"), peer = Flag(argc, argv, "peer-prefill", "");
  const std::string only = Flag(argc, argv, "only", "prefill,lengths,first");
  const auto wanted = [&](const char* what) { return only.find(what) != std::string::npos; };
  const bool profile = HasFlag(argc, argv, "profile");
  PrintHeader(argc, argv);
  std::printf("# %s, %s; load before: %s\n", cpu::IsaName(cpu::ActiveIsa()), precision.c_str(), LoadAverage().c_str());
  std::istringstream models(Flag(argc, argv, "models", "15m,110m"));
  for (std::string model; std::getline(models, model, ',');) {
    const ModelConfig config = BenchModel(model, /*tied=*/false);
    Parameters parameters(config);
    parameters.Initialize(config, 1);
    ThreadPool pool(std::stoi(threads));
    CpuOps cpu_ops(&pool);
    TimedOps timed(cpu_ops);
    Ops& ops = profile ? static_cast<Ops&>(timed) : cpu_ops;
    auto served = std::make_shared<ServedModel>(ops, config, RecipeOf(precision), config.max_positions);
    QUERN_CHECK(served->weights.Load(parameters.Source()).ok());
    auto policy = std::make_shared<Policy>();
    policy->label = model;
    policy->models = {served};
    policy->head = std::make_shared<SingleModelHead>();
    Engine engine(ops, {});
    engine.SetPolicy(policy);
    std::vector<double> prefill, theirs, equal, varying, idle, loaded, longest, usual, others;
    for (int round = -1; round < rounds; ++round) {
      const OthersWatch watch;
      const auto keep = [&](std::vector<double>& values, double value) {
        if (round >= 0) values.push_back(value);  // the first one warms up
      };
      if (wanted("prefill")) {
        timed.Clear();
        const double begin = Seconds(), cpu_begin = OwnCpuSeconds();
        keep(prefill, Prefill(engine, config.vocab_size));
        if (profile && round == rounds - 1)
          timed.Print("token", kPrompts * kLongPrompt, Seconds() - begin, OwnCpuSeconds() - cpu_begin);
        if (!peer.empty() && round >= 0)
          theirs.push_back(LastNumberOf(Replaced(peer, {{"{model}", model}, {"{threads}", threads}})));
      }
      if (wanted("lengths") && round >= 0) {
        keep(equal, Lengths(engine, config.vocab_size, streams, false));
        keep(varying, Lengths(engine, config.vocab_size, streams, true));
      }
      if (wanted("first")) {
        keep(idle, First(engine, config.vocab_size, 0).milliseconds);
        const FirstToken first = First(engine, config.vocab_size, streams - 1);
        keep(loaded, first.milliseconds);
        keep(longest, first.longest_step);
        keep(usual, first.usual_step);
      }
      keep(others, watch.Share());
    }
    const Spread p = Summarise(prefill), t = Summarise(theirs), e = Summarise(equal), v = Summarise(varying);
    std::printf("%s, %s threads, others %.0f %%\n", model.c_str(), threads.c_str(), 100 * Summarise(others).median);
    if (wanted("prefill"))
      std::printf("  prefill 512     %s tokens/s; peer %s, ratio %.2f\n", Text(p).c_str(), Text(t).c_str(),
                  t.median > 0 ? p.median / t.median : 0);
    if (wanted("lengths"))
      std::printf("  lengths         equal %s tokens/s, varying %s, ratio %.2f\n", Text(e).c_str(), Text(v).c_str(),
                  v.median / e.median);
    if (wanted("first"))
      std::printf("  first token, ms idle %s, loaded %s; a step of the others %s, with the prompt up to %s\n",
                  Text(Summarise(idle)).c_str(), Text(Summarise(loaded)).c_str(), Text(Summarise(usual)).c_str(),
                  Text(Summarise(longest)).c_str());
    std::fflush(stdout);
  }
  std::printf("# load after: %s\n", LoadAverage().c_str());
  return 0;
}

}  // namespace
}  // namespace quern::bench

int main(int argc, char** argv) { return quern::bench::Main(argc, argv); }
