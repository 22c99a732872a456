#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>

#include "base/file.h"
#include "base/strings.h"
#include "service/command.h"
#include "service/role_runner.h"
#include "service/supervised.h"

extern char** environ;

namespace quern {

namespace {

// How a role says why it left. Kept in memory: a disk that is full has no room for a log either.
std::string LastWords(int words_fd, const std::string& log) {
  char buffer[4096];
  const ssize_t size = pread(words_fd, buffer, sizeof(buffer), 0);
  if (size > 0) return std::string(buffer, static_cast<size_t>(size));
  const Result<std::string> text = ReadFile(log);
  if (!text.ok()) return {};
  std::string words;
  for (const std::string& line : StrSplit(*text, '\n')) {
    if (line.starts_with("quern: ")) words = line.substr(7);
    if (line.find("CHECK failed") != std::string::npos || line.find("terminate called") != std::string::npos)
      words = line;
  }
  return words;
}

class ProcessRunner : public RoleRunner {
 public:
  explicit ProcessRunner(const Run& run) : run_(run) {}

  ~ProcessRunner() override {
    for (const Child& child : children_) kill(child.pid, SIGKILL);
    for (const Child& child : children_) {
      waitpid(child.pid, nullptr, 0);
      close(child.words);
    }
  }

  Status Start(const std::string& role, uint32_t index) override {
    // A job that is resumed has logs of the attempts before.
    int& attempt = attempts_[{role, index}];
    const auto log = [&] { return run_.Path(StrCat("logs/", role, "-", index, ".", attempt, ".log")); };
    while (PathExists(log())) ++attempt;
    Child child{.role = role, .index = index, .pid = 0, .log = log(), .words = memfd_create("last words", MFD_CLOEXEC)};
    if (child.words < 0) return FromErrno(errno, "starting " + role);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, child.log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, child.words, kLastWordsFd);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setpgroup(&attributes, 0);
    sigset_t signals;
    sigemptyset(&signals);
    posix_spawnattr_setsigmask(&attributes, &signals);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) sigaddset(&signals, signal);
    posix_spawnattr_setsigdefault(&attributes, &signals);

    std::vector<std::string> arguments = {"quern", role, "--job", run_.directory, "--index", std::to_string(index)};
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    std::string supervisor = StrCat(kSupervisorVariable, "=", getpid());
    std::vector<char*> environment;
    for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
    environment.push_back(supervisor.data());
    environment.push_back(nullptr);
    const int error = posix_spawn(&child.pid, "/proc/self/exe", &actions, &attributes, argv.data(), environment.data());
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (error != 0) {
      close(child.words);
      return FromErrno(error, "starting " + role);
    }
    children_.push_back(child);
    return {};
  }

  std::vector<RoleExit> Poll() override {
    std::vector<RoleExit> exits;
    for (size_t i = 0; i < children_.size();) {
      int status = 0;
      if (waitpid(children_[i].pid, &status, WNOHANG) != children_[i].pid) {
        ++i;
        continue;
      }
      const Child child = children_[i];
      children_.erase(children_.begin() + static_cast<std::ptrdiff_t>(i));
      RoleExit& exit = exits.emplace_back(RoleExit{
          .role = child.role, .index = child.index, .clean = false, .reason = {}, .log = child.log, .hopeless = false});
      exit.clean = WIFEXITED(status) && WEXITSTATUS(status) == 0;
      const std::string words = exit.clean ? "" : LastWords(child.words, child.log);
      close(child.words);
      if (exit.clean) continue;
      if (WIFSIGNALED(status)) {
        exit.reason = StrCat("killed by signal ", WTERMSIG(status), " (", strsignal(WTERMSIG(status)), ")");
        if (WTERMSIG(status) == SIGABRT && !words.empty()) exit.reason += ": " + words;
      } else {
        exit.reason = words.empty() ? StrCat("exit code ", WEXITSTATUS(status)) : words;
        exit.hopeless = WEXITSTATUS(status) == kExitHopeless;
      }
    }
    return exits;
  }

  int Running(const std::string& role) override {
    int count = 0;
    for (const Child& child : children_) count += child.role == role ? 1 : 0;
    return count;
  }
  void Ask(const std::string& role) override { Signal(role, SIGTERM); }
  void Kill(const std::string& role) override { Signal(role, SIGKILL); }

 private:
  struct Child {
    std::string role;
    uint32_t index = 0;
    pid_t pid = 0;
    std::string log;
    int words = -1;  // a file in memory, see LeaveLastWords
  };
  void Signal(const std::string& role, int signal) {
    for (const Child& child : children_)
      if (child.role == role) kill(child.pid, signal);
  }

  const Run& run_;
  std::vector<Child> children_;
  std::map<std::pair<std::string, uint32_t>, int> attempts_;
};

}  // namespace

std::unique_ptr<RoleRunner> NewProcessRunner(const Run& run) { return std::make_unique<ProcessRunner>(run); }

}  // namespace quern
