#pragma once

#include <memory>
#include <string>

#include "base/deadline.h"
#include "base/status.h"
#include "proto/replay.pb.h"
#include "transport/rpc.h"

namespace quern {

// What a replay store can do, whether it is a directory opened here (Store) or a server (ReplayClient). Semantics:
// proto/replay.proto. Thread-safe.
class Replay {
 public:
  virtual ~Replay() = default;
  // All or nothing; returns when the records are on disk. Retrying with the same bytes is always safe.
  virtual Result<v1::InsertReply> Insert(const v1::InsertRequest& request, Deadline deadline) = 0;
  virtual Result<v1::OpenWriterReply> OpenWriter(const v1::OpenWriterRequest& request, Deadline deadline) = 0;
  virtual Result<v1::ContainsReply> Contains(const v1::ContainsRequest& request, Deadline deadline) = 0;
  virtual Result<v1::SampleReply> Sample(const v1::SampleRequest& request, Deadline deadline) = 0;
  virtual Result<v1::QueryReply> Query(const v1::QueryRequest& request, Deadline deadline) = 0;
  virtual Result<v1::StatsReply> Stats(const v1::StatsRequest& request, Deadline deadline) = 0;
};

struct OpenReplayOptions {
  bool create_if_missing = false;
  bool read_only = false;   // of a directory: nothing in it is locked or changed, a server may begin to use it
  RpcClientOptions client;  // for addresses
};
// `where`: a directory or a running store's address (ipc://, tcp://, inproc://). A directory that a server of this
// machine has open is reached through that server.
Result<std::unique_ptr<Replay>> OpenReplay(const std::string& where, const OpenReplayOptions& options = {});

// Whether another process writes to the store in this directory. Not for a process that does so itself: closing the
// file that is looked at would end its lock.
bool StoreInUse(const std::string& directory);

}  // namespace quern
