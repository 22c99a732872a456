#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/strings.h"
#include "model/hf/model_directory.h"
#include "service/command.h"
#include "service/commands/generate_commands.h"
#include "service/evaluate.h"
#include "service/help.h"
#include "service/policies.h"
#include "service/prepare.h"
#include "service/supervised.h"

namespace quern {

namespace {

struct EvalOptions {
  std::string run;
  std::string policy;
  std::string set;
  uint64_t episodes = 0;
  uint64_t seed = 0;
  bool has_seed = false;
  double temperature = -1;
  std::string device;  // empty: the job's
  std::string output = "text";
};

struct ExportOptions {
  std::string run;
  std::string to;
  std::string policy;
  std::string precision = "bf16";
  double max_shard_gb = 5;
};

Result<Run> OpenRun(const std::string& directory, int& code) {
  Result<Run> run = LoadRun(directory);
  if (!run.ok() && run.status().code() == StatusCode::kNotFound) code = kExitNotFound;
  return run;
}

int Complain(const Status& status, int code) {
  std::fprintf(stderr, "quern: %s\n", status.message().c_str());
  return code;
}

Result<int> Evaluate(const EvalOptions& options) {
  int code = kExitError;
  const Result<Run> run = OpenRun(options.run, code);
  if (!run.ok()) return Complain(run.status(), code);
  Result<v1::PolicySpec> policy = FindPolicy(*run, options.policy);
  if (!policy.ok())
    return Complain(policy.status(), policy.status().code() == StatusCode::kNotFound ? kExitNotFound : kExitError);
  if (options.temperature >= 0) policy->mutable_sampling()->set_temperature(static_cast<float>(options.temperature));
  if (!policy->player().empty()) {
    QUERN_ASSIGN_OR_RETURN(const auto environment, EnvironmentOf(run->job));
    QUERN_RETURN_IF_ERROR(environment->NewPlayer(policy->player(), {}).status());
  }
  const std::atomic<bool>& stop = InstallRoleSignals();
  uint64_t episodes = static_cast<uint64_t>(run->job.evaluate.episodes);
  for (const EvaluationSet& set : run->job.evaluate.sets)
    if (set.name == options.set && set.episodes > 0) episodes = static_cast<uint64_t>(set.episodes);
  if (options.episodes > 0) episodes = options.episodes;
  const uint64_t seed = options.has_seed ? options.seed : run->job.evaluate.seed;
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto progress = [&](uint64_t done) {
    if (terminal)
      std::fprintf(stderr, "\r%llu / %llu episodes", static_cast<unsigned long long>(done),
                   static_cast<unsigned long long>(episodes));
  };
  const Result<Evaluation> result =
      EvaluatePolicy(*run, *policy, episodes, seed, progress, stop, options.set, options.device);
  if (terminal) std::fprintf(stderr, "\r\033[K");
  if (!result.ok() && result.status().code() == StatusCode::kCancelled)
    return Complain(Cancelled("cancelled"), kExitCancelled);
  if (!result.ok()) return result.status();
  if (options.output == "json") {
    const nlohmann::ordered_json json = {{"policy", policy->name()},
                                         {"episodes", result->episodes},
                                         {"mean_return", result->mean_return},
                                         {"std_error", result->std_error},
                                         {"success_rate", result->success_rate},
                                         {"mean_turns", result->mean_turns},
                                         {"mean_tokens", result->mean_tokens},
                                         {"seed", seed},
                                         {"set", options.set}};
    std::printf("%s\n", json.dump().c_str());
  } else {
    std::printf("%s%s: mean return %.3f +- %.3f, success %.1f%%, %llu episodes\n", policy->name().c_str(),
                options.set.empty() ? "" : (" @ " + options.set).c_str(), result->mean_return, result->std_error,
                100 * result->success_rate, static_cast<unsigned long long>(result->episodes));
  }
  return kExitOk;
}

Status ExportModel(const std::string& from, const std::string& to, DType dtype, double max_shard_gb) {
  QUERN_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(from));
  QUERN_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(from));
  if (Status matches = checkpoint->CheckMatches(config); !matches.ok()) return matches.Annotate(from);
  return SaveModelDirectory(to, config, FoldSmoothScales(config, checkpoint->Source()),
                            {.dtype = dtype,
                             .source_dir = from,
                             .generation = std::nullopt,
                             .max_shard_bytes = static_cast<int64_t>(max_shard_gb * 1e9)});
}

Result<int> Export(const ExportOptions& options) {
  int code = kExitError;
  const Result<Run> run = OpenRun(options.run, code);
  if (!run.ok()) return Complain(run.status(), code);
  const Result<v1::PolicySpec> policy = FindPolicy(*run, options.policy);
  if (!policy.ok())
    return Complain(policy.status(), policy.status().code() == StatusCode::kNotFound ? kExitNotFound : kExitError);
  if (policy->weights().empty()) return UsageError("'" + policy->name() + "' is a scripted player: it has no weights");
  if (PathExists(options.to) && !std::filesystem::is_empty(options.to))
    return AlreadyExists(options.to + ": exists and is not empty; choose another --to");
  const DType dtype = options.precision == "fp32" ? DType::kF32 : DType::kBf16;
  const std::vector<std::string> folders =
      policy->weights_size() == 1 ? std::vector<std::string>{"."} : std::vector<std::string>{"behaviour", "value"};
  QUERN_RETURN_IF_ERROR(MakeDirectories(options.to));
  for (int i = 0; i < policy->weights_size(); ++i) {
    const std::string& folder = folders[static_cast<size_t>(i)];
    const std::string to = folder == "." ? options.to : JoinPath(options.to, folder);
    QUERN_RETURN_IF_ERROR(ExportModel(policy->weights(i).path(), to, dtype, options.max_shard_gb));
    std::printf("%s\n", to.c_str());
  }
  const std::string path = JoinPath(options.to, "policy.json");
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(path, PolicyJson(*run, *policy, folders)));
  std::printf("%s\n", path.c_str());
  return kExitOk;
}

}  // namespace

void AddPolicyCommands(CommandSet& commands) {
  auto eval = std::make_shared<EvalOptions>();
  CLI::App* command =
      commands.app().add_subcommand("eval", "play a run's environment with one of its policies and measure it");
  command->add_option("--run", eval->run, "run directory")->required();
  command->add_option(
      "--policy", eval->policy,
      "behaviour, sft, filtered_sft, q_sft, q_sft_online, regenesis, regenesis-1, base, player:NAME, or a "
      "model directory; "
      "default: what the run ended with");
  command->add_option("--set", eval->set, "one of the job's evaluate.sets; default: the job's environment");
  command->add_option("--episodes", eval->episodes, "default: the job's evaluate.episodes")
      ->check(CLI::Range(1u, 1u << 30));
  CLI::Option* seed = command->add_option("--seed", eval->seed, "of the tasks; default: the job's evaluate.seed");
  command->add_option("--temperature", eval->temperature, "default: the job's")->check(AtLeastZero());
  AddDeviceOption(command, eval->device);
  command->add_option("-o,--output", eval->output, "text or json")->check(CLI::IsMember({"text", "json"}));
  commands.SetBody(command, [eval, seed]() -> Result<int> {
    eval->has_seed = seed->count() > 0;
    return Evaluate(*eval);
  });

  auto options = std::make_shared<ExportOptions>();
  CLI::App* out =
      commands.app().add_subcommand("export", "write a run's policy as Hugging Face directories and policy.json");
  out->add_option("--run", options->run, "run directory")->required();
  out->add_option("--to", options->to, "directory to write; must be new or empty")->required();
  out->add_option("--policy", options->policy, "as for eval; default: what the run ended with");
  out->add_option("--precision", options->precision, "bf16 or fp32")->check(CLI::IsMember({"bf16", "fp32"}));
  out->add_option("--max-shard-gb", options->max_shard_gb, "larger weights are cut into files of so many 10^9 bytes")
      ->check(AboveZero());
  commands.SetBody(out, [options]() -> Result<int> { return Export(*options); });
}

}  // namespace quern
