#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "model/hf/content_hash.h"
#include "service/command.h"
#include "service/job_queue.h"
#include "service/launcher.h"
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

struct ResumeOptions {
  std::string run;
  int64_t actors = 0;
  bool in_process = false;
};

// The roles of a supervisor that was killed leave by themselves, the slowest after 5 s.
constexpr auto kLastRolesLeave = std::chrono::seconds(10);

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
  if (outcome.state == "succeeded") {
    const CollapseSection& study = run.job.collapse;
    const std::string policy = study.real_records.empty() || study.rules.empty()
                                   ? run.job.method
                                   : CollapseRow(study.rules.back(), study.real_records.back());
    std::printf(
        "next: quern eval --run %s --policy %s     quern export --run %s --to DIR     quern replay stats --store "
        "%s/replay\n",
        directory.c_str(), policy.c_str(), directory.c_str(), directory.c_str());
  } else if (outcome.result_json.empty()) {  // with a result there is nothing left to do
    std::printf("next: quern resume %s\n", directory.c_str());
  }
  std::fflush(stdout);
}

Result<int> Supervise(const Run& run, bool in_process) {
  const bool terminal = isatty(STDERR_FILENO) != 0 && getenv("NO_COLOR") == nullptr && !in_process;
  if (!terminal) std::fprintf(stderr, "run directory: %s\n", ShortPath(run.directory).c_str());
  if (in_process) SetLogLevel(LogLevel::kWarning);
  const JobOutcome outcome =
      SuperviseRun(run, {.in_process = in_process, .terminal = terminal, .interrupts = &InstallSupervisorSignals()});
  PrintEnd(run, outcome);
  if (outcome.state == "cancelled") {
    std::fprintf(stderr, "quern: cancelled\n");
    return kExitCancelled;
  }
  if (outcome.state == "succeeded") return kExitOk;
  std::fprintf(stderr, "quern: job failed: %s\n", outcome.error.c_str());
  return kExitJobFailed;
}

Result<int> RunJob(const RunOptions& options) {
  QUERN_ASSIGN_OR_RETURN(Job job, LoadJob(options.job, options.overrides));
  QUERN_RETURN_IF_ERROR(CheckJob(job));
  QUERN_RETURN_IF_ERROR(SettleDevice(job));
  if (options.dry_run) {
    std::printf("%s", JobToJson(job).c_str());
    return kExitOk;
  }
  QUERN_ASSIGN_OR_RETURN(Run run, CreateRun(job));
  QUERN_ASSIGN_OR_RETURN(const RunLock lock, RunLock::Take(run, Duration::zero()));
  QUERN_ASSIGN_OR_RETURN(run.model, PrepareModel(run));
  QUERN_RETURN_IF_ERROR(SetAddresses(run, options.in_process));
  QUERN_RETURN_IF_ERROR(SaveRun(run));
  return Supervise(run, options.in_process);
}

// The state of a job that ended, as result.json has it; nothing when it did not.
std::string EndedState(const Run& run, std::string* result_json) {
  const Result<std::string> text = ReadFile(run.Path("result.json"));
  if (!text.ok()) return {};
  const nlohmann::json json = nlohmann::json::parse(*text, nullptr, false);
  if (!json.is_object()) return {};
  *result_json = *text;
  return json.value("state", "");
}

Result<int> ResumeQueued(const JobQueue& queue, const QueuedJob& job) {
  QUERN_RETURN_IF_ERROR(queue.Requeue(job));
  QUERN_RETURN_IF_ERROR(EnsureLauncher(queue));
  std::fprintf(stderr, "%s: is in the queue again; next: quern logs %s --follow     quern wait %s\n", job.id.c_str(),
               job.id.c_str(), job.id.c_str());
  return kExitOk;
}

Result<int> ResumeJob(const ResumeOptions& options) {
  Result<Run> loaded = LoadRun(options.run);
  if (!loaded.ok()) {
    if (loaded.status().code() != StatusCode::kNotFound) return loaded.status();
    if (!PathExists(options.run)) {
      QUERN_ASSIGN_OR_RETURN(const JobQueue queue, JobQueue::Open());
      if (const Result<QueuedJob> job = queue.Find(options.run); job.ok()) return ResumeQueued(queue, *job);
    }
    std::fprintf(stderr, "quern: %s\n", loaded.status().message().c_str());
    return kExitNotFound;
  }
  Run& run = *loaded;
  QUERN_ASSIGN_OR_RETURN(const RunLock lock, RunLock::Take(run, kLastRolesLeave));
  std::string result_json;
  if (EndedState(run, &result_json) == "succeeded") {
    std::fprintf(stderr, "%s: the job has succeeded, nothing is left to do\n", ShortPath(run.directory).c_str());
    PrintEnd(run, {.state = "succeeded", .error = {}, .result_json = result_json});
    return kExitOk;
  }
  QUERN_ASSIGN_OR_RETURN(const std::string hash, DirectoryContentHash(run.model.directory));
  if (hash != run.model.content_hash)
    return DataLoss(run.model.directory + ": the model has changed since the job began (content hash " + hash +
                    ", then " + run.model.content_hash + "): put back the old one, or run the job anew");
  if (options.actors > 0) run.job.actors = options.actors;
  QUERN_RETURN_IF_ERROR(SettleDevice(run.job));
  QUERN_RETURN_IF_ERROR(SetAddresses(run, options.in_process));
  QUERN_RETURN_IF_ERROR(RemoveTree(run.Path("result.json")));
  QUERN_RETURN_IF_ERROR(SaveRun(run));
  return Supervise(run, options.in_process);
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

void AddResumeCommand(CommandSet& commands) {
  auto options = std::make_shared<ResumeOptions>();
  CLI::App* command = commands.app().add_subcommand("resume", "go on with a job that stopped, for whatever reason");
  command->add_option("run", options->run, "run directory, or the id of a submitted job")->required();
  command->add_option("--actors", options->actors, "another number of actors from now on")->check(CLI::Range(1, 256));
  command->add_flag("--in-process", options->in_process, "every role as a thread of this process, for a debugger");
  commands.SetBody(command, [options] { return ResumeJob(*options); });
}

}  // namespace quern
