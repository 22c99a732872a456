#include "replay/server.h"

#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "replay/server_address.h"
#include "transport/metric_list.h"

namespace quern {

namespace {

// One sync for all inserts that wait.
std::vector<Result<std::string>> InsertAll(Store& store, Metrics& metrics, const RecordLimits& limits,
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
  const auto begin = Clock::now();
  const std::vector<Result<v1::InsertReply>> replies = store.InsertGroup(good);
  uint64_t inserted = 0;
  for (size_t k = 0; k < replies.size(); ++k) {
    if (!replies[k].ok()) {
      results[places[k]] = replies[k].status();
      continue;
    }
    results[places[k]] = replies[k]->SerializeAsString();
    inserted += replies[k]->inserted();
    if (replies[k]->gap()) metrics.Add(kReplayGaps);
    metrics.Add(kReplayDuplicates, static_cast<double>(replies[k]->duplicates()));
    if (replies[k]->inserted() > 0) metrics.Add(kReplayBytes, static_cast<double>(payloads[places[k]].size()));
  }
  if (inserted > 0) {
    metrics.Observe(kReplayCommit, SecondsSince(begin));
    metrics.Observe(kReplayGroup, static_cast<double>(inserted));
    metrics.Add(kReplayCommitted, static_cast<double>(inserted));
  }
  for (const Result<std::string>& result : results)
    if (!result.ok()) metrics.Add(kReplayRejected, 1, {{"reason", StatusCodeName(result.status().code())}});
  return results;
}

const char* SamplerOf(const v1::SampleRequest& request) {
  if (request.parts_size() > 0) return "parts";
  return request.top_fraction() > 0 && request.top_fraction() < 1 ? "top" : "uniform";
}

}  // namespace

ReplayServer::ReplayServer(Store* store, RpcServerOptions options, Metrics* given)
    : store_(store), metrics_(given, kRoleReplay), server_(std::move(options)) {
  Metrics* const metrics = metrics_.get();
  server_.HandleBatch("replay.Insert", [store, metrics](const std::vector<std::string_view>& payloads) {
    return InsertAll(*store, *metrics, RecordLimits(), payloads);
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
  const auto damaged = [metrics](const Status& status) {
    if (status.code() == StatusCode::kDataLoss) metrics->Add(kReplayCorruption);
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
  if (announced_) RemoveServerAddress(store_->directory());
  announced_ = false;
}

}  // namespace quern
