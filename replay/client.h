#pragma once

#include <memory>
#include <string>

#include "replay/replay.h"
#include "transport/rpc.h"

namespace quern {

// Typed calls to a replay server. Thread-safe, one call at a time.
class ReplayClient : public Replay {
 public:
  static Result<std::unique_ptr<ReplayClient>> Connect(const std::string& address, RpcClientOptions options = {});

  // Repeated with the same bytes until acknowledged, refused for good, or the deadline passes: a store that is
  // restarting or out of disk space is waited for.
  Result<v1::InsertReply> Insert(const v1::InsertRequest& request, Deadline deadline) override;
  Result<v1::OpenWriterReply> OpenWriter(const v1::OpenWriterRequest& request, Deadline deadline) override;
  Result<v1::ContainsReply> Contains(const v1::ContainsRequest& request, Deadline deadline) override;
  Result<v1::SampleReply> Sample(const v1::SampleRequest& request, Deadline deadline) override;
  Result<v1::QueryReply> Query(const v1::QueryRequest& request, Deadline deadline) override;
  Result<v1::StatsReply> Stats(const v1::StatsRequest& request, Deadline deadline) override;
  // On the server's machine; `to` is absolute.
  Result<v1::BackupReply> Backup(const std::string& to, Deadline deadline, bool passing = false);
  const std::string& address() const { return rpc_->address(); }

 private:
  explicit ReplayClient(std::unique_ptr<RpcClient> rpc) : rpc_(std::move(rpc)) {}
  std::unique_ptr<RpcClient> rpc_;
};

}  // namespace quern
