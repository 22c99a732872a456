#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <thread>

#include "actors/records.h"
#include "base/log.h"
#include "base/strings.h"
#include "base/thread_pool.h"
#include "compute/device.h"
#include "service/api_server.h"
#include "service/command.h"
#include "service/commands/compression_options.h"
#include "service/commands/generate_commands.h"
#include "service/plan.h"
#include "service/policies.h"
#include "service/run_directory.h"
#include "service/supervised.h"

namespace quern {

namespace {

constexpr int kLooksEvery = 10;  // of 50 ms, for new weights

struct ServeOptions {
  std::string model, run, policy;
  bool follow = false;
  std::string name;
  std::string token_file;
  std::string precision;
  std::string device = "auto";
  int threads = 0;
  int64_t kv_cache_mib = 2048;
  CompressionOptions compression;
  ApiServerOptions server;
};

Result<v1::PolicySpec> FoundPolicy(const ServeOptions& options) {
  if (options.run.empty()) return LoadPolicyDirectory(options.model);
  QUERN_ASSIGN_OR_RETURN(const Run run, LoadRun(options.run));
  Result<v1::PolicySpec> found = FindPolicy(run, options.policy);
  if (!options.follow || found.status().code() != StatusCode::kNotFound) return found;
  return FindPolicy(run, kBaseModel);  // nothing is trained yet
}

Result<v1::PolicySpec> PolicyOf(const ServeOptions& options) {
  QUERN_ASSIGN_OR_RETURN(v1::PolicySpec spec, FoundPolicy(options));
  QUERN_RETURN_IF_ERROR(SetCompression(options.compression, spec));
  return spec;
}

bool SameWeights(const v1::PolicySpec& a, const v1::PolicySpec& b) {
  return std::equal(a.weights().begin(), a.weights().end(), b.weights().begin(), b.weights().end(),
                    [](const auto& x, const auto& y) { return x.content_hash() == y.content_hash(); });
}

Result<int> Serve(ServeOptions options) {
  Result<v1::PolicySpec> spec = PolicyOf(options);
  if (!spec.ok() && spec.status().code() == StatusCode::kNotFound) {
    std::fprintf(stderr, "quern: %s\n", spec.status().message().c_str());
    return kExitNotFound;
  }
  if (!spec.ok()) return spec.status();
  if (!options.token_file.empty()) {
    QUERN_ASSIGN_OR_RETURN(options.server.http.token, ReadTokenFile(options.token_file));
  }
  ThreadPool pool(options.threads);
  QUERN_ASSIGN_OR_RETURN(const std::unique_ptr<Ops> ops, NewOps(options.device, &pool));
  QUERN_ASSIGN_OR_RETURN(ServedPolicy served, LoadServedPolicy(*ops, *spec, options.precision));
  ApiServerOptions& server_options = options.server;
  server_options.engine.kv_bytes = options.kv_cache_mib << 20;
  server_options.model_name = options.name;
  if (options.name.empty()) {
    const std::filesystem::path directory = std::filesystem::path(options.model).lexically_normal();
    server_options.model_name = !options.run.empty()       ? spec->name()
                                : directory.has_filename() ? directory.filename().string()
                                                           : directory.parent_path().filename().string();
  }
  const std::atomic<bool>& stop = InstallRoleSignals();
  const std::string version = served.version;
  QUERN_ASSIGN_OR_RETURN(const auto server, ApiServer::Start(*ops, std::move(served), server_options));
  LogInfo(StrCat("serving ", server_options.model_name, ", weights ", version));
  std::printf("http://%s:%d\n", server_options.http.host.c_str(), server->port());
  std::fflush(stdout);
  for (int waited = 1; !stop.load(); ++waited) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (!options.follow || waited % kLooksEvery != 0) continue;
    Result<v1::PolicySpec> newest = PolicyOf(options);
    if (!newest.ok() || SameWeights(*newest, *spec)) continue;
    spec = std::move(newest);
    server->Replace(
        [&ops, spec = *spec, precision = options.precision] { return LoadServedPolicy(*ops, spec, precision); });
  }
  return kExitOk;
}

}  // namespace

void AddServeCommand(CommandSet& commands) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* command = commands.app().add_subcommand("serve", "answer OpenAI's completions and chat API over HTTP");
  CLI::Option* model = command->add_option("--model", options->model, "model directory, or an exported policy");
  CLI::Option* run = command->add_option("--run", options->run, "serve a policy of this run");
  command->add_option("--policy", options->policy, "of the run; default: what it ended with")->needs(run);
  model->excludes(run);
  command->add_flag("--follow", options->follow, "go on with the weights that the run publishes, while it goes on")
      ->needs(run);
  command->add_option("--host", options->server.http.host, "IP address; other than loopback only with --token-file");
  command->add_option("--port", options->server.http.port, "0: a free one")
      ->default_val(8000)
      ->check(CLI::Range(0, 65535));
  command->add_option("--token-file", options->token_file, "the bearer token that requests must show: its first line");
  command->add_option("--name", options->name, "of the model in requests; default: the directory's, or the policy's");
  command->add_option("--max-requests", options->server.max_choices, "answers under way; 503 beyond them")
      ->check(CLI::Range(1, 65536));
  command->add_option("--timeout", options->server.timeout_s, "seconds, for one answer")->check(CLI::Range(1, 86400));
  command->add_option("--kv-cache-mib", options->kv_cache_mib, "memory for keys and values")
      ->check(CLI::Range(1, 1 << 24));
  AddCompressionOptions(command, options->compression);
  command->add_option("--precision", options->precision, "bf16, fp32 or fp8; default: as the weights are stored")
      ->check(CLI::IsMember({"bf16", "fp32", "fp8"}));
  AddDeviceOption(command, options->device);
  command->add_option("--threads", options->threads, "default: all cores")->check(CLI::Range(0, 1024));
  commands.SetBody(command, [options]() -> Result<int> {
    if (options->model.empty() && options->run.empty()) return UsageError("serve: --model or --run is needed");
    return Serve(*options);
  });
}

}  // namespace quern
