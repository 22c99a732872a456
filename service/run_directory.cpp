#include "service/run_directory.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/file.h"
#include "base/strings.h"
#include "service/join.h"
#include "transport/address.h"
#include "transport/curve_keys.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr auto kAMoment = std::chrono::milliseconds(200);
constexpr const char* kKeyRoles[] = {"coordinator", "replay-server", "learner", "actor", "supervisor"};

bool IsTcp(const Run& run) { return run.coordinator_address.starts_with("tcp://"); }

Result<std::string> MakeNumberedDirectory(const std::string& name) {
  QUERN_RETURN_IF_ERROR(MakeDirectories("runs"));
  for (int n = 1; n < 1000000; ++n) {
    const std::string path = StrCat("runs/", name, "-", n);
    if (mkdir(path.c_str(), 0755) == 0) return path;
    if (errno != EEXIST) return FromErrno(errno, path);
  }
  return ResourceExhausted("runs/: too many runs named " + name);
}

}  // namespace

std::string Run::Path(const std::string& file) const { return JoinPath(directory, file); }

std::string Run::name() const { return std::filesystem::path(directory).filename(); }

Result<Run> CreateRun(const Job& job) {
  Run run;
  run.job = job;
  std::string path = job.output_dir;
  if (path.empty()) {
    QUERN_ASSIGN_OR_RETURN(path, MakeNumberedDirectory(job.name));
  } else {
    if (PathExists(JoinPath(path, "job.json")))
      return AlreadyExists(path + ": holds a run already; go on with it (quern resume " + path +
                           ") or choose another output_dir");
    QUERN_RETURN_IF_ERROR(MakeDirectories(path));
  }
  std::error_code error;
  run.directory = std::filesystem::canonical(path, error);
  if (error) return FromErrno(error.value(), path);
  run.job.output_dir = run.directory;
  QUERN_RETURN_IF_ERROR(MakeDirectories(run.Path("logs")));
  QUERN_RETURN_IF_ERROR(MakeDirectories(run.Path("weights")));
  return run;
}

Status SetAddresses(Run& run, bool in_process) {
  const NetworkSection& network = run.job.network;
  if (in_process) {
    // Threads of this process: the name only has to be unique in it.
    run.coordinator_address = "inproc://coordinator-" + run.directory;
    run.replay_address = "inproc://replay-" + run.directory;
  } else if (network.transport == "tcp") {
    run.coordinator_address = StrCat("tcp://", network.host, ":", network.coordinator_port);
    run.replay_address = StrCat("tcp://", network.host, ":", network.replay_port);
    for (const char* role : kKeyRoles) QUERN_RETURN_IF_ERROR(LoadOrCreateKeys(run.Path("keys"), role).status());
    QUERN_RETURN_IF_ERROR(WriteJoinToken(run));
  } else {
    QUERN_ASSIGN_OR_RETURN(run.coordinator_address, IpcAddress(run.Path("ipc"), "coordinator"));
    QUERN_ASSIGN_OR_RETURN(run.replay_address, IpcAddress(run.Path("ipc"), "replay"));
  }
  return {};
}

Status SaveRun(const Run& run) {
  const Json json = {{"coordinator_address", run.coordinator_address},
                     {"replay_address", run.replay_address},
                     {"model",
                      {{"directory", run.model.directory},
                       {"content_hash", run.model.content_hash},
                       {"reserved_token", run.model.reserved_token}}}};
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(run.Path("run.json"), json.dump(2) + "\n"));
  // Last: a directory with a job.json is a run.
  return WriteFileAtomic(run.Path("job.json"), JobToJson(run.job));
}

Result<Run> LoadRun(const std::string& directory) {
  Run run;
  std::error_code error;
  run.directory = std::filesystem::canonical(directory, error);
  if (error) return NotFound(directory + ": no such run directory");
  if (!PathExists(run.Path("job.json"))) return NotFound(directory + ": not a run directory (it has no job.json)");
  QUERN_ASSIGN_OR_RETURN(run.job, LoadJob(run.Path("job.json"), {}));
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(run.Path("run.json")));
  try {
    const Json json = Json::parse(text);
    run.coordinator_address = json.at("coordinator_address");
    run.replay_address = json.at("replay_address");
    run.model.directory = json.at("model").at("directory");
    run.model.content_hash = json.at("model").at("content_hash");
    run.model.reserved_token = json.at("model").at("reserved_token");
  } catch (const nlohmann::json::exception& problem) {
    return DataLoss(run.Path("run.json") + ": " + problem.what());
  }
  return run;
}

Result<RunLock> RunLock::Take(const Run& run, Duration patience) {
  const std::string path = run.Path("run.lock");
  const int low = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (low < 0) return FromErrno(errno, path);
  // Above the numbers that roles are started with; kept open by them.
  RunLock lock(fcntl(low, F_DUPFD, 64));
  close(low);
  if (lock.fd_ < 0) return FromErrno(errno, path);
  // Whoever only looks whether it is held (quern status) holds it for a moment.
  const Deadline deadline = Deadline::After(std::max<Duration>(patience, kAMoment));
  while (flock(lock.fd_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return FromErrno(errno, path);
    char holder[32] = {};
    const bool supervised = pread(lock.fd_, holder, sizeof(holder) - 1, 0) > 0 && atoi(holder) > 0 &&
                            (kill(atoi(holder), 0) == 0 || errno == EPERM);
    if (supervised || deadline.Expired()) {
      return FailedPrecondition(
          run.directory + ": the run is going on: one of its processes holds run.lock; wait for its end, or stop it");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const std::string pid = StrCat(getpid(), "\n");
  if (ftruncate(lock.fd_, 0) != 0 || pwrite(lock.fd_, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size()))
    return FromErrno(errno, path);
  return lock;
}

RunLock::~RunLock() {
  if (fd_ >= 0) close(fd_);
}

Result<RpcServerOptions> ServerOptions(const Run& run, const std::string& role) {
  RpcServerOptions options;
  if (!IsTcp(run)) return options;
  QUERN_ASSIGN_OR_RETURN(options.keys, LoadKeys(run.Path("keys"), role));
  QUERN_ASSIGN_OR_RETURN(options.allowed_clients, LoadPublicKeys(run.Path("keys")));
  return options;
}

Result<RpcClientOptions> ClientOptions(const Run& run, const std::string& role, const std::string& server_role) {
  RpcClientOptions options;
  if (!IsTcp(run)) return options;
  QUERN_ASSIGN_OR_RETURN(options.keys, LoadKeys(run.Path("keys"), role));
  QUERN_ASSIGN_OR_RETURN(options.server_key, LoadPublicKey(run.Path("keys"), server_role));
  return options;
}

}  // namespace quern
