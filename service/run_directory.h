#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "base/deadline.h"
#include "base/status.h"
#include "service/job.h"
#include "transport/rpc.h"

namespace quern {

// The untrained model of a run and what belongs to it.
struct BaseModel {
  std::string directory;  // absolute
  std::string content_hash;
  int32_t reserved_token = -1;  // Q-SFT's dummy action; -1: the vocabulary has no id to spare
};

// Everything a role needs to know, kept in RUN/job.json (the resolved job) and RUN/run.json.
struct Run {
  std::string directory;  // absolute
  Job job;
  BaseModel model;
  std::string coordinator_address;
  std::string replay_address;
  bool joined = false;  // an actor's view from a host that has nothing of the run's disk (service/join.h)

  std::string Path(const std::string& name) const;
  std::string name() const;  // the directory's own name, unique among runs beside it: the `run` of its records
};

// job.output_dir, or the first runs/NAME-N that does not exist. Makes the folder, logs/ and weights/. A directory that
// holds a run already is refused.
Result<Run> CreateRun(const Job& job);
// Addresses by job.network and, for tcp, the keys of every role; in_process: inproc:// addresses.
Status SetAddresses(Run& run, bool in_process);
Status SaveRun(const Run& run);
Result<Run> LoadRun(const std::string& directory);

// Held by a job's supervisor and every process it starts: while one of them lives, nobody else can have it. `patience`:
// the roles of a supervisor that was killed take a while to leave.
class RunLock {
 public:
  static Result<RunLock> Take(const Run& run, Duration patience);
  RunLock(RunLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~RunLock();

 private:
  explicit RunLock(int fd) : fd_(fd) {}
  int fd_;
};

// What a role needs to serve and to call: nothing on ipc and inproc, CURVE keys from RUN/keys on tcp.
Result<RpcServerOptions> ServerOptions(const Run& run, const std::string& role);
Result<RpcClientOptions> ClientOptions(const Run& run, const std::string& role, const std::string& server_role);

}  // namespace quern
