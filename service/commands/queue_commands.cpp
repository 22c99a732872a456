#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "base/deadline.h"
#include "base/duration.h"
#include "base/file.h"
#include "base/strings.h"
#include "service/command.h"
#include "service/help.h"
#include "service/job_queue.h"
#include "service/launcher.h"
#include "service/prepare.h"
#include "service/role_http.h"
#include "service/roles.h"
#include "service/run_directory.h"
#include "service/supervised.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

struct QueueOptions {
  std::string job;  // a file of submit, an id of the others
  std::vector<std::string> overrides;
  std::string submission_id;
  std::string on = "local";
  bool dry_run = false;
  std::string output = "text";
  bool exit_code = false;
  double timeout = 0;
  bool follow = false;
  std::string role;
  uint64_t tail = 0;
  std::string since;
  bool now = false;
  int slots = 0;
};
using Shared = std::shared_ptr<QueueOptions>;

int ExitCodeOf(const QueuedJob& job) {
  if (job.state == "succeeded") return kExitOk;
  if (job.state == "failed") return kExitJobFailed;
  if (job.state == "cancelled") return kExitCancelled;
  return kExitNotFinished;
}

std::string TimeText(int64_t unix_ms) {
  if (unix_ms == 0) return "-";
  const std::time_t seconds = unix_ms / 1000;
  std::tm local{};
  localtime_r(&seconds, &local);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &local);
  return text;
}

// Where the coordinator of a job that runs shows the page; empty: nowhere.
std::string PageOf(const QueuedJob& job) {
  if (job.state != "running") return {};
  const Result<Run> run = LoadRun(job.run_directory);
  return run.ok() ? RoleUrl(*run, kCoordinatorRole, 0) : std::string();
}

Json ToJson(const QueuedJob& job) {
  return {{"job", job.id},
          {"state", job.state},
          {"error", job.error},
          {"attempts", job.attempts},
          {"submitted_unix_ms", job.submitted_unix_ms},
          {"ended_unix_ms", job.ended_unix_ms},
          {"progress", job.progress},
          {"run_directory", job.run_directory},
          {"page", PageOf(job)}};
}

// The queue with a launcher at work when there is something to do: wherever the last one was killed, the next command
// starts another.
Result<JobQueue> OpenQueue() {
  QUERN_ASSIGN_OR_RETURN(JobQueue queue, JobQueue::Open());
  QUERN_ASSIGN_OR_RETURN(const std::vector<QueuedJob> jobs, queue.List());
  if (std::any_of(jobs.begin(), jobs.end(), [](const QueuedJob& job) { return !job.ended(); }))
    QUERN_RETURN_IF_ERROR(EnsureLauncher(queue));
  return queue;
}

// Runs `body` on the named job; an unknown id is exit code 102.
Result<int> WithJob(const QueueOptions& options,
                    const std::function<Result<int>(const JobQueue&, const QueuedJob&)>& body) {
  QUERN_ASSIGN_OR_RETURN(const JobQueue queue, OpenQueue());
  const Result<QueuedJob> job = queue.Find(options.job);
  if (!job.ok()) {
    if (job.status().code() != StatusCode::kNotFound) return job.status();
    std::fprintf(stderr, "quern: %s\n", job.status().message().c_str());
    return kExitNotFound;
  }
  return body(queue, *job);
}

Result<int> Submit(const QueueOptions& options) {
  if (options.on != "local")
    return Unimplemented("--on " + options.on + ": only local so far: jobs run on the machine they are submitted on");
  QUERN_ASSIGN_OR_RETURN(Job job, LoadJob(options.job, options.overrides));
  QUERN_RETURN_IF_ERROR(CheckJob(job));
  QUERN_RETURN_IF_ERROR(SettleDevice(job));
  if (options.dry_run) {
    std::printf("%s", JobToJson(job).c_str());
    return kExitOk;
  }
  QUERN_ASSIGN_OR_RETURN(JobQueue queue, JobQueue::Open());
  bool again = false;
  QUERN_ASSIGN_OR_RETURN(const std::string id, queue.Submit(job, options.submission_id, &again));
  QUERN_RETURN_IF_ERROR(EnsureLauncher(queue));
  std::printf("%s\n", id.c_str());
  std::fprintf(stderr, "%s; next: quern logs %s --follow     quern wait %s     quern cancel %s\n",
               again ? "was submitted before, not queued again" : "queued", id.c_str(), id.c_str(), id.c_str());
  return kExitOk;
}

Result<int> List(const QueueOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const JobQueue queue, OpenQueue());
  QUERN_ASSIGN_OR_RETURN(const std::vector<QueuedJob> jobs, queue.List());
  if (options.output == "json") {
    for (const QueuedJob& job : jobs) std::printf("%s\n", ToJson(job).dump().c_str());
    return kExitOk;
  }
  if (jobs.empty()) {
    std::fprintf(stderr, "no jobs; next: quern submit JOB.yaml\n");
    return kExitOk;
  }
  size_t width = 3;
  for (const QueuedJob& job : jobs) width = std::max(width, job.id.size());
  std::printf("%-*s  %-9s  %-19s  %s\n", static_cast<int>(width), "job", "state", "submitted", "last line");
  for (const QueuedJob& job : jobs) {
    const std::string last = job.state == "failed" ? job.error : job.ended() ? job.run_directory : job.progress;
    std::printf("%-*s  %-9s  %-19s  %s\n", static_cast<int>(width), job.id.c_str(), job.state.c_str(),
                TimeText(job.submitted_unix_ms).c_str(), last.c_str());
  }
  return kExitOk;
}

Result<int> ShowStatus(const QueueOptions& options) {
  return WithJob(options, [&](const JobQueue&, const QueuedJob& job) -> Result<int> {
    if (options.output == "json") {
      std::printf("%s\n", ToJson(job).dump().c_str());
    } else {
      std::printf("job            %s\nstate          %s\n", job.id.c_str(), job.state.c_str());
      if (!job.error.empty()) std::printf("error          %s\n", job.error.c_str());
      std::printf("submitted      %s\nended          %s\nattempts       %d\n", TimeText(job.submitted_unix_ms).c_str(),
                  TimeText(job.ended_unix_ms).c_str(), job.attempts);
      if (!job.progress.empty()) std::printf("last line      %s\n", job.progress.c_str());
      std::printf("run directory  %s\n", job.run_directory.c_str());
      if (const std::string page = PageOf(job); !page.empty()) std::printf("page           %s\n", page.c_str());
    }
    return options.exit_code ? ExitCodeOf(job) : kExitOk;
  });
}

Result<int> Wait(const QueueOptions& options) {
  return WithJob(options, [&](const JobQueue& queue, QueuedJob job) -> Result<int> {
    const Deadline deadline =
        Deadline::After(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(options.timeout)));
    for (int tick = 1; !job.ended() && (options.timeout == 0 || !deadline.Expired()); ++tick) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      if (tick % 10 == 0) QUERN_RETURN_IF_ERROR(EnsureLauncher(queue));
      QUERN_ASSIGN_OR_RETURN(job, queue.Find(job.id));
    }
    std::printf("%s\n", job.state.c_str());
    if (!job.error.empty()) std::fprintf(stderr, "quern: %s: %s\n", job.id.c_str(), job.error.c_str());
    return ExitCodeOf(job);
  });
}

Result<int> Cancel(const QueueOptions& options) {
  return WithJob(options, [&](const JobQueue& queue, const QueuedJob& job) -> Result<int> {
    if (job.ended()) {
      std::fprintf(stderr, "%s: is %s already\n", job.id.c_str(), job.state.c_str());
      return kExitOk;
    }
    QUERN_RETURN_IF_ERROR(queue.Cancel(job, options.now));
    std::fprintf(stderr, "%s: asked to end; what was acknowledged stays. next: quern wait %s     quern resume %s\n",
                 job.id.c_str(), job.id.c_str(), job.id.c_str());
    return kExitOk;
  });
}

Result<int> Delete(const QueueOptions& options) {
  return WithJob(options, [&](const JobQueue& queue, const QueuedJob& job) -> Result<int> {
    QUERN_RETURN_IF_ERROR(queue.Delete(job));
    return kExitOk;
  });
}

Result<int> Slots(const QueueOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const JobQueue queue, JobQueue::Open());
  if (options.slots > 0) QUERN_RETURN_IF_ERROR(queue.SetSlots(options.slots));
  std::printf("%d\n", queue.slots());
  return kExitOk;
}

Result<int> Launch() {
  QUERN_ASSIGN_OR_RETURN(const JobQueue queue, JobQueue::Open());
  QUERN_RETURN_IF_ERROR(RunLauncher(queue, InstallRoleSignals()));
  return kExitOk;
}

CLI::App* AddJobCommand(CommandSet& commands, const char* name, const char* help, const Shared& options,
                        Result<int> (*body)(const QueueOptions&)) {
  CLI::App* command = commands.app().add_subcommand(name, help);
  command->add_option("job", options->job, "job id, as quern submit printed it")->required();
  commands.SetBody(command, [options, body] { return body(*options); });
  return command;
}

// Log lines begin with the time of day, "HH:MM:SS."; lines without one belong to the line before.
class SinceFilter {
 public:
  explicit SinceFilter(std::optional<int64_t> seconds) : seconds_(seconds), passes_(!seconds) {}
  bool Passes(const std::string& line) {
    if (!seconds_) return true;
    int hour = 0, minute = 0, second = 0;
    if (std::sscanf(line.c_str(), "%2d:%2d:%2d.", &hour, &minute, &second) == 3) {
      const std::time_t now = std::time(nullptr);
      std::tm local{};
      localtime_r(&now, &local);
      const int64_t day = 86400;
      const int64_t age =
          ((local.tm_hour - hour) * 3600 + (local.tm_min - minute) * 60 + local.tm_sec - second + day) % day;
      passes_ = age <= *seconds_;
    }
    return passes_;
  }

 private:
  std::optional<int64_t> seconds_;
  bool passes_;
};

// The files of a job's log: what its attempts printed or, with a role, what that role's processes wrote.
std::vector<std::string> LogFiles(const QueuedJob& job, const std::string& role) {
  std::vector<std::string> files;
  if (role.empty()) {
    for (int attempt = 1; attempt <= job.attempts; ++attempt) files.push_back(job.AttemptLog(attempt));
    return files;
  }
  const std::string folder = JoinPath(job.run_directory, "logs");
  const Result<std::vector<std::string>> names = ListDirectory(folder);
  if (!names.ok()) return files;
  std::vector<std::pair<timespec, std::string>> found;
  for (const std::string& name : *names) {
    // ROLE-INDEX.ATTEMPT.log: of every process of the role, or of the one that is named with its index.
    if (!name.starts_with(role + "-") && !name.starts_with(role + ".")) continue;
    struct stat info {};
    const std::string path = JoinPath(folder, name);
    if (stat(path.c_str(), &info) == 0) found.emplace_back(info.st_mtim, path);
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first.tv_sec, a.first.tv_nsec) < std::pair(b.first.tv_sec, b.first.tv_nsec);
  });
  for (auto& [time, path] : found) files.push_back(std::move(path));
  return files;
}

Result<int> Logs(const QueueOptions& options) {
  std::optional<int64_t> since;
  if (!options.since.empty()) {
    since = ParseSeconds(options.since);
    if (!since) return UsageError("--since '" + options.since + "': expected as 90s, 15m, 2h or 1d");
  }
  return WithJob(options, [&](const JobQueue& queue, QueuedJob job) -> Result<int> {
    std::map<std::string, size_t> shown;  // bytes of each file
    SinceFilter filter(since);
    bool first = true;
    while (true) {
      const bool ended = job.ended();  // before reading: what is written last is shown
      std::vector<std::string> lines;
      for (const std::string& path : LogFiles(job, options.role)) {
        const Result<std::string> text = ReadFile(path);
        if (!text.ok()) continue;
        size_t& from = shown[path];
        size_t end = text->rfind('\n');
        end = end == std::string::npos ? 0 : end + 1;
        if (!options.follow || ended) end = text->size();
        if (end <= from) continue;
        for (const std::string& line : StrSplit(text->substr(from, end - from), '\n')) lines.push_back(line);
        if (!lines.empty() && lines.back().empty()) lines.pop_back();
        from = end;
      }
      std::erase_if(lines, [&](const std::string& line) { return !filter.Passes(line); });
      const size_t skip = first && options.tail > 0 && lines.size() > options.tail ? lines.size() - options.tail : 0;
      for (size_t i = skip; i < lines.size(); ++i) std::printf("%s\n", lines[i].c_str());
      if (std::fflush(stdout) != 0) return kExitError;
      first = false;
      if (!options.follow || ended) return kExitOk;
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      QUERN_RETURN_IF_ERROR(EnsureLauncher(queue));
      QUERN_ASSIGN_OR_RETURN(job, queue.Find(job.id));
    }
  });
}

}  // namespace

void AddQueueCommands(CommandSet& commands) {
  {
    auto options = std::make_shared<QueueOptions>();
    CLI::App* command = commands.app().add_subcommand("submit", "queue a job; prints its id");
    command->add_option("file", options->job, "job file (YAML)")->required();
    command->add_option("overrides", options->overrides, "key.path=value, any number");
    command->add_option("--submission-id", options->submission_id,
                        "the job's id: submitted again with it, the job is not queued twice");
    command->add_option("--on", options->on, "where")->check(CLI::IsMember({"local", "slurm", "k8s"}));
    command->add_flag("--dry-run", options->dry_run, "check the job and print it, queue nothing");
    commands.SetBody(command, [options] { return Submit(*options); });
  }
  {
    auto options = std::make_shared<QueueOptions>();
    CLI::App* command = commands.app().add_subcommand("list", "the jobs of the queue");
    command->add_option("-o,--output", options->output, "text or json")->check(CLI::IsMember({"text", "json"}));
    commands.SetBody(command, [options] { return List(*options); });
  }
  {
    auto options = std::make_shared<QueueOptions>();
    CLI::App* command = AddJobCommand(commands, "status", "one job of the queue", options, ShowStatus);
    command->add_option("-o,--output", options->output, "text or json")->check(CLI::IsMember({"text", "json"}));
    command->add_flag("--exit-code", options->exit_code, "0 succeeded, 100 failed, 101 not finished, 103 cancelled");
  }
  {
    auto options = std::make_shared<QueueOptions>();
    CLI::App* command = AddJobCommand(commands, "wait", "wait for a job's end; exit code as of status", options, Wait);
    command->add_option("--timeout", options->timeout, "seconds, then exit code 101 (0: none)")->check(AtLeastZero());
  }
  {
    auto options = std::make_shared<QueueOptions>();
    CLI::App* command = AddJobCommand(commands, "logs", "what a job printed", options, Logs);
    command->add_flag("-f,--follow", options->follow, "until the job ends");
    command->add_option("--role", options->role, "coordinator, replay-server, learner, actor, actor-0, ...");
    command->add_option("--tail", options->tail, "only the last so many lines of what is there");
    command->add_option("--since", options->since, "with --role: lines of the last 90s, 15m, 2h");
  }
  {
    auto options = std::make_shared<QueueOptions>();
    CLI::App* command = AddJobCommand(commands, "cancel", "end a job in order", options, Cancel);
    command->add_flag("--now", options->now, "at once");
  }
  {
    auto options = std::make_shared<QueueOptions>();
    AddJobCommand(commands, "delete", "forget an ended job, with its files in the queue", options, Delete);
  }
  {
    auto options = std::make_shared<QueueOptions>();
    CLI::App* command = commands.app().add_subcommand("slots", "how many jobs may run at once");
    command->add_option("slots", options->slots, "set it")->check(CLI::Range(1, 1024));
    commands.SetBody(command, [options] { return Slots(*options); });
  }
  {
    CLI::App* command = commands.app().add_subcommand("launcher", "run the queue's jobs (started by the others)");
    command->group("");  // not in the help
    commands.SetBody(command, Launch);
  }
}

}  // namespace quern
