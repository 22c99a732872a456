#include "replay/server.h"

#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "replay/server_address.h"
#include "transport/metric_list.h"

namespace quern {

namespace {

// Handlers that wait for the same sync; more inserts than these wait for the next one.
constexpr int kThreads = 16;

RpcServerOptions WithThreads(RpcServerOptions options) {
  options.threads = std::max(options.threads, kThreads);
  return options;
}

Result<std::string> Insert(Store& store, Metrics& metrics, std::string_view request) {
  const Result<v1::InsertReply> reply = store.InsertBytes(request);
  if (!reply.ok()) {
    // What is invalid the RPC server counts, of every method.
    if (reply.status().code() != StatusCode::kInvalidArgument)
      metrics.Add(kReplayRejected, 1, {{"reason", StatusCodeName(reply.status().code())}});
    return reply.status();
  }
  if (reply->gap()) metrics.Add(kReplayGaps);
  metrics.Add(kReplayDuplicates, static_cast<double>(reply->duplicates()));
  if (reply->inserted() > 0) {
    metrics.Add(kReplayBytes, static_cast<double>(request.size()));
    metrics.Add(kReplayCommitted, static_cast<double>(reply->inserted()));
  }
  return reply->SerializeAsString();
}

// The record log's errors begin with the path of the file.
std::string DamagedFile(const Status& status) {
  const std::string path = status.message().substr(0, status.message().find(": "));
  const std::string name = path.substr(path.rfind('/') + 1);
  return name.ends_with(".data") ? name : "index";
}

const char* SamplerOf(const v1::SampleRequest& request) {
  if (request.selector() == v1::SELECTOR_PRIORITISED) return "prioritised";
  if (request.selector() == v1::SELECTOR_FIFO) return "fifo";
  if (request.parts_size() > 0) return "parts";
  return request.top_fraction() > 0 && request.top_fraction() < 1 ? "top" : "uniform";
}

}  // namespace

ReplayServer::ReplayServer(Store* store, RpcServerOptions options, Metrics* given)
    : store_(store), metrics_(given, kRoleReplay), server_(WithThreads(std::move(options))) {
  Metrics* const metrics = metrics_.get();
  server_.Handle("replay.Insert",
                 [store, metrics](std::string_view request) { return Insert(*store, *metrics, request); });
  store_->ObserveCommits([metrics](double seconds, uint64_t records) {
    metrics->Observe(kReplayCommit, seconds);
    metrics->Observe(kReplayGroup, static_cast<double>(records));
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
                                        QUERN_RETURN_IF_ERROR(store->Backup(request.to(), !request.passing()));
                                        return reply;
                                      }));
  const auto damaged = [metrics](const Status& status) {
    if (status.code() == StatusCode::kDataLoss) metrics->Add(kReplayCorruption, 1, {{"file", DamagedFile(status)}});
  };
  server_.Handle(
      "replay.Sample",
      TypedHandler<v1::SampleRequest, v1::SampleReply>([store, metrics, damaged](const v1::SampleRequest& request) {
        const auto begin = Clock::now();
        Result<v1::SampleReply> reply = store->Sample(request);
        metrics->Observe(kReplaySample, SecondsSince(begin), {{"sampler", SamplerOf(request)}});
        damaged(reply.status());
        return reply;
      }));
  server_.Handle("replay.Query",
                 TypedHandler<v1::QueryRequest, v1::QueryReply>([store, damaged](const v1::QueryRequest& request) {
                   Result<v1::QueryReply> reply = store->Query(request);
                   damaged(reply.status());
                   return reply;
                 }));
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
  store_->ObserveCommits(nullptr);
  if (announced_) RemoveServerAddress(store_->directory());
  announced_ = false;
}

}  // namespace quern
