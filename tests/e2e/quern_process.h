#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/strings.h"

extern char** environ;

namespace quern {

// The built binary, run as a user would, in a folder of its own.
class QuernProcess {
 public:
  struct Ended {
    int code = -1;  // 128 + signal for a killed process
    std::string out;
    std::string err;
  };

  // A folder that is removed at the end of the test.
  class Folder {
   public:
    Folder() {
      char name[] = "/tmp/quern-e2e-XXXXXX";
      path_ = mkdtemp(name);
    }
    ~Folder() { (void)RemoveTree(path_).ok(); }
    std::string File(const std::string& name) const { return JoinPath(path_, name); }
    const std::string& path() const { return path_; }

   private:
    std::string path_;
  };

  QuernProcess(const Folder& folder, const std::vector<std::string>& arguments) : folder_(folder) {
    out_ = folder.File(StrCat("out-", ++count_));
    err_ = folder.File(StrCat("err-", count_));
    std::vector<std::string> all = {"sh", "-c", "cd \"$0\" && exec \"$@\"", folder.path(), Binary()};
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& argument : all) argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    posix_spawn_file_actions_addopen(&actions, 2, err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    EXPECT_EQ(posix_spawn(&pid_, "/bin/sh", &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
  }
  ~QuernProcess() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }

  pid_t pid() const { return pid_; }
  const std::string& out() const { return out_; }  // the file that its standard output goes to
  void Signal(int signal) const { kill(pid_, signal); }

  Ended Wait(std::chrono::seconds limit = std::chrono::seconds(60)) {
    Ended ended;
    const auto until = std::chrono::steady_clock::now() + limit;
    int status = 0;
    while (waitpid(pid_, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > until) {
        ADD_FAILURE() << "still running after " << limit.count() << " s";
        kill(pid_, SIGKILL);
        waitpid(pid_, &status, 0);
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    pid_ = 0;
    ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    ended.out = *ReadFile(out_);
    ended.err = *ReadFile(err_);
    return ended;
  }

  static Ended Run(const Folder& folder, const std::vector<std::string>& arguments) {
    return QuernProcess(folder, arguments).Wait();
  }

  static std::string Binary() {
    const char* binary = getenv("QUERN_BINARY");
    return binary == nullptr ? "quern" : binary;
  }

 private:
  const Folder& folder_;
  std::string out_, err_;
  pid_t pid_ = 0;
  static inline int count_ = 0;
};

// Tries until it is true, at most `seconds`.
inline bool Eventually(const std::function<bool()>& condition, double seconds = 30) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

// Process ids whose command line holds `text`, found in /proc; not this process. A zombie has no command line.
inline std::vector<pid_t> ProcessesWith(const std::vector<std::string>& texts) {
  std::vector<pid_t> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const pid_t pid = atoi(entry.path().filename().c_str());
    if (pid <= 0 || pid == getpid()) continue;
    const Result<std::string> line = ReadFile(entry.path() / "cmdline");
    if (!line.ok() || line->empty()) continue;
    bool all = true;
    for (const std::string& text : texts) all = all && line->find(text) != std::string::npos;
    if (all) found.push_back(pid);
  }
  return found;
}

inline size_t CountLines(const std::string& text) {
  return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace quern
