#include "replay/server.h"

#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "replay/server_address.h"

namespace quern {

namespace {

// One sync for all inserts that wait.
std::vector<Result<std::string>> InsertAll(Store& store, const RecordLimits& limits,
                                           const std::vector<std::string_view>& payloads) {
  std::vector<Result<std::string>> results(payloads.size(), Internal("unset"));
  std::vector<v1::InsertRequest> requests(payloads.size());
  std::vector<const v1::InsertRequest*> good;
  std::vector<size_t> places;
  for (size_t i = 0; i < payloads.size(); ++i) {
    const bool small = CountField(payloads[i], v1::InsertRequest::kTrajectoriesFieldNumber,
                                  limits.records_per_insert) <= limits.records_per_insert;
    if (!small || !requests[i].ParseFromArray(payloads[i].data(), static_cast<int>(payloads[i].size()))) {
      results[i] = InvalidArgument(small ? "the request does not parse as an InsertRequest"
                                         : "the insert has more than " + std::to_string(limits.records_per_insert) +
                                               " trajectories: send fewer at once");
      continue;
    }
    good.push_back(&requests[i]);
    places.push_back(i);
  }
  const std::vector<Result<v1::InsertReply>> replies = store.InsertGroup(good);
  for (size_t k = 0; k < replies.size(); ++k) {
    if (replies[k].ok())
      results[places[k]] = replies[k]->SerializeAsString();
    else
      results[places[k]] = replies[k].status();
  }
  return results;
}

}  // namespace

ReplayServer::ReplayServer(Store* store, RpcServerOptions options) : store_(store), server_(std::move(options)) {
  server_.HandleBatch("replay.Insert", [store](const std::vector<std::string_view>& payloads) {
    return InsertAll(*store, RecordLimits(), payloads);
  });
  server_.Handle("replay.OpenWriter",
                 TypedHandler<v1::OpenWriterRequest, v1::OpenWriterReply>(
                     [store](const v1::OpenWriterRequest& request) { return store->OpenWriter(request); }));
  server_.Handle("replay.Contains", [store](std::string_view payload) -> Result<std::string> {
    const size_t most = RecordLimits().uids_per_question;
    if (CountField(payload, v1::ContainsRequest::kUidsFieldNumber, most) > most)
      return InvalidArgument("more than " + std::to_string(most) + " uids: ask for fewer at once");
    return TypedHandler<v1::ContainsRequest, v1::ContainsReply>(
        [store](const v1::ContainsRequest& request) { return store->Contains(request); })(payload);
  });
  server_.Handle("replay.Backup", TypedHandler<v1::BackupRequest, v1::BackupReply>(
                                      [store](const v1::BackupRequest& request) -> Result<v1::BackupReply> {
                                        if (!request.to().starts_with('/'))
                                          return InvalidArgument("backup: '" + request.to() + "' is no absolute path");
                                        v1::BackupReply reply;
                                        reply.set_watermark(store->watermark());
                                        QUERN_RETURN_IF_ERROR(store->Backup(request.to()));
                                        return reply;
                                      }));
  server_.Handle("replay.Sample", TypedHandler<v1::SampleRequest, v1::SampleReply>(
                                      [store](const v1::SampleRequest& request) { return store->Sample(request); }));
  server_.Handle("replay.Query", TypedHandler<v1::QueryRequest, v1::QueryReply>(
                                     [store](const v1::QueryRequest& request) { return store->Query(request); }));
  server_.Handle("replay.Stats", TypedHandler<v1::StatsRequest, v1::StatsReply>(
                                     [store](const v1::StatsRequest& request) { return store->Stats(request); }));
}

ReplayServer::~ReplayServer() { Stop(); }

Status ReplayServer::Start(const std::string& address) {
  QUERN_RETURN_IF_ERROR(server_.Start(address));
  if (server_.address().starts_with("inproc:")) return {};  // of no use to another process
  if (const Status status = WriteServerAddress(store_->directory(), server_.address()); status.ok())
    announced_ = true;
  else
    LogWarning("commands that are given the directory will not find this server: " + status.message());
  return {};
}

void ReplayServer::Stop() {
  server_.Stop();
  if (announced_) RemoveServerAddress(store_->directory());
  announced_ = false;
}

}  // namespace quern
