#include "replay/client.h"

#include <algorithm>
#include <thread>

namespace quern {

Result<std::unique_ptr<ReplayClient>> ReplayClient::Connect(const std::string& address, RpcClientOptions options) {
  QUERN_ASSIGN_OR_RETURN(std::unique_ptr<RpcClient> rpc, RpcClient::Connect(address, std::move(options)));
  return std::unique_ptr<ReplayClient>(new ReplayClient(std::move(rpc)));
}

Result<v1::InsertReply> ReplayClient::Insert(const v1::InsertRequest& request, Deadline deadline) {
  std::chrono::milliseconds pause(50);
  while (true) {
    Result<v1::InsertReply> reply = rpc_->Call<v1::InsertReply>("replay.Insert", request, deadline);
    const StatusCode code = reply.status().code();
    const bool passing = code == StatusCode::kResourceExhausted || code == StatusCode::kUnavailable;
    if (!passing || deadline.Left() <= pause) return reply;
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, std::chrono::milliseconds(1000));
  }
}

Result<v1::OpenWriterReply> ReplayClient::OpenWriter(const v1::OpenWriterRequest& request, Deadline deadline) {
  return rpc_->Call<v1::OpenWriterReply>("replay.OpenWriter", request, deadline);
}

Result<v1::ContainsReply> ReplayClient::Contains(const v1::ContainsRequest& request, Deadline deadline) {
  return rpc_->Call<v1::ContainsReply>("replay.Contains", request, deadline);
}

Result<v1::BackupReply> ReplayClient::Backup(const std::string& to, Deadline deadline, bool passing) {
  v1::BackupRequest request;
  request.set_to(to);
  request.set_passing(passing);
  return rpc_->Call<v1::BackupReply>("replay.Backup", request, deadline);
}

Result<v1::SampleReply> ReplayClient::Sample(const v1::SampleRequest& request, Deadline deadline) {
  return rpc_->Call<v1::SampleReply>("replay.Sample", request, deadline);
}

Result<v1::QueryReply> ReplayClient::Query(const v1::QueryRequest& request, Deadline deadline) {
  return rpc_->Call<v1::QueryReply>("replay.Query", request, deadline);
}

Result<v1::StatsReply> ReplayClient::Stats(const v1::StatsRequest& request, Deadline deadline) {
  return rpc_->Call<v1::StatsReply>("replay.Stats", request, deadline);
}

}  // namespace quern
