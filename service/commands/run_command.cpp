#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "base/log.h"
#include "base/strings.h"
#include "service/command.h"
#include "service/prepare.h"
#include "service/result.h"
#include "service/run_directory.h"
#include "service/supervised.h"
#include "service/supervisor.h"

namespace quern {

namespace {

struct RunOptions {
  std::string job;
  std::vector<std::string> overrides;
  bool dry_run = false;
  bool in_process = false;
};

// As a person would type it.
std::string ShortPath(const std::string& path) {
  std::error_code error;
  const std::filesystem::path relative = std::filesystem::relative(path, error);
  return error || relative.empty() || relative.string().starts_with("..") ? path : relative.string();
}

void PrintEnd(const Run& run, const JobOutcome& outcome) {
  const std::string directory = ShortPath(run.directory);
  if (!outcome.result_json.empty()) {
    const Result<JobResult> result = ResultFromJson(outcome.result_json);
    if (result.ok()) std::printf("%s", FormatTable(*result).c_str());
  }
  std::printf("run directory: %s\n", directory.c_str());
  if (outcome.state != "succeeded") return;
  const CollapseSection& study = run.job.collapse;
  const std::string policy = study.real_records.empty() || study.rules.empty()
                                 ? run.job.method
                                 : CollapseRow(study.rules.back(), study.real_records.back());
  std::printf(
      "next: quern eval --run %s --policy %s     quern export --run %s --to DIR     quern replay stats --store "
      "%s/replay\n",
      directory.c_str(), policy.c_str(), directory.c_str(), directory.c_str());
}

Result<int> RunJob(const RunOptions& options) {
  QUERN_ASSIGN_OR_RETURN(Job job, LoadJob(options.job, options.overrides));
  QUERN_RETURN_IF_ERROR(CheckJob(job));
  if (options.dry_run) {
    std::printf("%s", JobToJson(job).c_str());
    return kExitOk;
  }
  QUERN_ASSIGN_OR_RETURN(Run run, CreateRun(job));
  QUERN_ASSIGN_OR_RETURN(run.model, PrepareModel(run));
  QUERN_RETURN_IF_ERROR(SetAddresses(run, options.in_process));
  QUERN_RETURN_IF_ERROR(SaveRun(run));
  const bool terminal = isatty(STDERR_FILENO) != 0 && getenv("NO_COLOR") == nullptr && !options.in_process;
  if (!terminal) std::fprintf(stderr, "run directory: %s\n", ShortPath(run.directory).c_str());
  if (options.in_process) SetLogLevel(LogLevel::kWarning);
  const JobOutcome outcome = SuperviseRun(
      run, {.in_process = options.in_process, .terminal = terminal, .interrupts = &InstallSupervisorSignals()});
  PrintEnd(run, outcome);
  std::fflush(stdout);
  if (outcome.state == "cancelled") {
    std::fprintf(stderr, "quern: cancelled\n");
    return kExitCancelled;
  }
  if (outcome.state == "succeeded") return kExitOk;
  std::fprintf(stderr, "quern: job failed: %s\n", outcome.error.c_str());
  return kExitJobFailed;
}

}  // namespace

void AddRunCommand(CommandSet& commands) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command = commands.app().add_subcommand("run", "run a whole job on this machine");
  command->add_option("job", options->job, "job file (YAML)")->required();
  command->add_option("overrides", options->overrides, "key.path=value, any number");
  command->add_flag("--dry-run", options->dry_run,
                    "check the job, print it with every default filled in, start nothing");
  command->add_flag("--in-process", options->in_process, "every role as a thread of this process, for a debugger");
  commands.SetBody(command, [options]() -> Result<int> {
    for (const std::string& text : options->overrides) {
      if (text.find('=') == std::string::npos || text[0] == '=')
        return UsageError("'" + text + "': an override is written key.path=value");
    }
    return RunJob(*options);
  });
}

}  // namespace quern
