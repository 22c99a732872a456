#include "service/launcher.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <thread>

#include "base/deadline.h"
#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "service/command.h"

extern char** environ;

namespace quern {

namespace {

constexpr auto kTick = std::chrono::milliseconds(100);
constexpr auto kIdleEnd = std::chrono::seconds(10);
// A job whose whole process group dies under it (killed, out of memory) is taken up again so many times.
constexpr int kMostAttempts = 4;

// Starts this program with `arguments`, output to `log`, as the leader of a session of its own.
Result<pid_t> Spawn(std::vector<std::string> arguments, const std::string& log) {
  arguments.insert(arguments.begin(), "quern");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  sigset_t signals;
  sigemptyset(&signals);
  posix_spawnattr_setsigmask(&attributes, &signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) sigaddset(&signals, signal);
  posix_spawnattr_setsigdefault(&attributes, &signals);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, "/proc/self/exe", &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return FromErrno(error, "starting quern " + arguments[1]);
  return pid;
}

int TakeLauncherLock(const JobQueue& queue) {
  const int fd = open(JoinPath(queue.home(), "launcher.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  if (fd >= 0) close(fd);
  return -1;
}

class Launcher {
 public:
  explicit Launcher(const JobQueue& queue) : queue_(queue) {}

  // True while there is something to do.
  Result<bool> Tick() {
    QUERN_RETURN_IF_ERROR(Reap());
    QUERN_ASSIGN_OR_RETURN(const std::vector<QueuedJob> jobs, queue_.List());
    int running = 0;
    bool waiting = false;
    for (const QueuedJob& job : jobs) running += job.held || children_.contains(job.id) ? 1 : 0;
    for (const QueuedJob& job : jobs) {
      if (const auto child = children_.find(job.id); child != children_.end()) {
        // A wish that came before the run had its lock; until then a signal just ends it.
        if (job.cancel_asked && !job.held) kill(child->second, SIGINT);
        if (job.cancel_asked && job.held && !job.cancel_told) QUERN_RETURN_IF_ERROR(queue_.TellToEnd(job));
        continue;
      }
      if (job.held && job.cancel_asked && !job.cancel_told) QUERN_RETURN_IF_ERROR(queue_.TellToEnd(job));
      if (job.held || PathExists(job.Path("ended.json"))) continue;
      if (job.cancel_asked) {
        QUERN_RETURN_IF_ERROR(queue_.RecordEnd(job, "cancelled", ""));
        continue;
      }
      waiting = true;
      if (running >= queue_.slots()) continue;
      QUERN_RETURN_IF_ERROR(Start(job));
      ++running;
    }
    return waiting || running > 0;
  }

 private:
  Status Start(const QueuedJob& job) {
    if (job.attempts >= kMostAttempts) {
      return queue_.RecordEnd(
          job, "failed", StrCat("died ", job.attempts, " times without a word; see ", job.AttemptLog(job.attempts)));
    }
    const bool begun = PathExists(JoinPath(job.run_directory, "job.json"));
    const std::vector<std::string> arguments = begun ? std::vector<std::string>{"resume", job.run_directory}
                                                     : std::vector<std::string>{"run", job.Path("job.json")};
    Result<pid_t> pid = Spawn(arguments, job.AttemptLog(job.attempts + 1));
    if (!pid.ok()) return queue_.RecordEnd(job, "failed", pid.status().message());
    LogInfo(StrCat(job.id, ": attempt ", job.attempts + 1, ", process ", *pid));
    children_[job.id] = *pid;
    return {};
  }

  Status Reap() {
    for (auto it = children_.begin(); it != children_.end();) {
      int status = 0;
      if (waitpid(it->second, &status, WNOHANG) != it->second) {
        ++it;
        continue;
      }
      const std::string id = it->first;
      it = children_.erase(it);
      const Result<QueuedJob> job = queue_.Find(id);
      if (!job.ok()) continue;  // deleted meanwhile
      if (WIFSIGNALED(status)) {
        LogWarning(StrCat(id, ": killed by signal ", WTERMSIG(status), " (", strsignal(WTERMSIG(status)), ")"));
        continue;  // it is in the queue again
      }
      const int code = WEXITSTATUS(status);
      const std::string state = code == kExitOk ? "succeeded" : code == kExitCancelled ? "cancelled" : "failed";
      std::string error;
      if (state == "failed") {
        error = job->progress.starts_with("quern: ") ? job->progress.substr(7) : StrCat("exit code ", code);
        if (error.starts_with("job failed: ")) error = error.substr(12);
      }
      LogInfo(StrCat(id, ": ", state, error.empty() ? "" : ": ", error));
      QUERN_RETURN_IF_ERROR(queue_.RecordEnd(*job, state, error));
    }
    return {};
  }

  const JobQueue& queue_;
  std::map<std::string, pid_t> children_;
};

}  // namespace

Status RunLauncher(const JobQueue& queue, const std::atomic<bool>& stop) {
  const int lock = TakeLauncherLock(queue);
  if (lock < 0) return {};
  Launcher launcher(queue);
  Deadline idle = Deadline::After(kIdleEnd);
  Status status;
  while (!stop && !idle.Expired()) {
    const Result<bool> busy = launcher.Tick();
    if (!busy.ok() && busy.status().message() != status.message()) LogError(busy.status().message());
    status = busy.status();
    if (!busy.ok() || *busy) idle = Deadline::After(kIdleEnd);
    std::this_thread::sleep_for(kTick);
  }
  close(lock);
  return {};
}

Status EnsureLauncher(const JobQueue& queue) {
  const int lock = TakeLauncherLock(queue);
  if (lock < 0) return {};
  close(lock);
  return Spawn({"launcher"}, JoinPath(queue.home(), "launcher.log")).status();
}

}  // namespace quern
