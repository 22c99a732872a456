#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "replay/client.h"
#include "service/chains.h"
#include "service/coordinator.h"
#include "service/event_log.h"
#include "service/page.h"
#include "service/resume_check.h"
#include "service/role_http.h"
#include "service/roles.h"
#include "transport/metric_list.h"
#include "transport/weight_server.h"

namespace quern {

namespace {

constexpr int64_t kMostRequestBytes = int64_t{4} << 20;

// `weights` is null where actors share the run's disk.
void Serve(RpcServer& server, Coordinator& coordinator, WeightServer* weights) {
  server.Handle("coordinator.OpenWeights",
                TypedHandler<v1::OpenWeightsRequest, v1::OpenWeightsReply>(
                    [&coordinator, weights](const auto& request) -> Result<v1::OpenWeightsReply> {
                      if (weights == nullptr)
                        return FailedPrecondition("actors of this run map its weights: network.transport is not tcp");
                      QUERN_ASSIGN_OR_RETURN(const v1::WeightVersion found, coordinator.FindWeights(request));
                      return weights->Offer(StrCat(found.name(), "-", found.version(), "-", found.content_hash()),
                                            found.path());
                    }));
  server.Handle("coordinator.Hello", TypedHandler<v1::HelloRequest, v1::HelloReply>([&](const auto& request) {
                  return Result<v1::HelloReply>(coordinator.Hello(request, Clock::now()));
                }));
  server.Handle("coordinator.Heartbeat",
                TypedHandler<v1::HeartbeatRequest, v1::HeartbeatReply>([&](const auto& request) {
                  return Result<v1::HeartbeatReply>(coordinator.Heartbeat(request, Clock::now()));
                }));
  server.Handle("coordinator.LeaseTask",
                TypedHandler<v1::LeaseTaskRequest, v1::LeaseTaskReply>([&](const auto& request) {
                  return Result<v1::LeaseTaskReply>(coordinator.LeaseTask(request, Clock::now()));
                }));
  server.Handle("coordinator.CompleteTask",
                TypedHandler<v1::CompleteTaskRequest, v1::CompleteTaskReply>([&](const auto& request) {
                  return Result<v1::CompleteTaskReply>(coordinator.CompleteTask(request, Clock::now()));
                }));
  server.Handle("coordinator.NextStage",
                TypedHandler<v1::NextStageRequest, v1::NextStageReply>([&](const auto& request) {
                  return Result<v1::NextStageReply>(coordinator.NextStage(request, Clock::now()));
                }));
  server.Handle("coordinator.StageDone",
                TypedHandler<v1::StageDoneRequest, v1::StageDoneReply>([&](const auto& request) {
                  return Result<v1::StageDoneReply>(coordinator.StageDone(request, Clock::now()));
                }));
  server.Handle("coordinator.Publish", TypedHandler<v1::PublishRequest, v1::PublishReply>([&](const auto& request) {
                  return coordinator.Publish(request, Clock::now());
                }));
  server.Handle("coordinator.Status", TypedHandler<v1::StatusRequest, v1::StatusReply>([&](const auto& request) {
                  return Result<v1::StatusReply>(coordinator.GetStatus(request, Clock::now()));
                }));
  server.Handle("coordinator.Stop", TypedHandler<v1::StopRequest, v1::StopReply>([&](const auto& request) {
                  coordinator.Stop(request.reason());
                  return Result<v1::StopReply>(v1::StopReply());
                }));
}

Status WriteFailure(const Run& run, const Coordinator& coordinator) {
  const nlohmann::ordered_json json = {{"job", run.job.name},
                                       {"seed", run.job.seed},
                                       {"state", StateName(coordinator.state())},
                                       {"error", coordinator.error()}};
  return WriteFileAtomic(run.Path("result.json"), json.dump(2) + "\n");
}

}  // namespace

Status RunCoordinatorRole(const Run& run, const std::atomic<bool>& stop) {
  QUERN_ASSIGN_OR_RETURN(RpcClientOptions client, ClientOptions(run, kCoordinatorRole, kReplayRole));
  QUERN_ASSIGN_OR_RETURN(const auto replay, ReplayClient::Connect(run.replay_address, std::move(client)));
  CoordinatorOptions options;
  options.job = run.job;
  options.plan = MakePlan(run.job);
  options.run_directory = run.directory;
  options.replay_address = run.replay_address;
  options.reserved_token = run.model.reserved_token;
  for (const std::string& arm : ArmsOf(run.job)) {
    QUERN_ASSIGN_OR_RETURN(options.programs[arm], MakeChainProgram(run.job, arm));
  }
  QUERN_ASSIGN_OR_RETURN(options.metrics, MetricsLog::Open(run.Path("metrics.jsonl")));
  QUERN_ASSIGN_OR_RETURN(options.journal, Journal::Open(run.Path("journal.jsonl")));
  const JournalState& before = options.journal->state();
  if (before.attempts > 0)
    QUERN_RETURN_IF_ERROR(CheckStoreHolds(before, options.plan, *replay, Deadline::After(std::chrono::seconds(60))));
  v1::WeightVersion& base = options.weights[kBaseModel];
  base.set_name(kBaseModel);
  base.set_path(run.model.directory);
  base.set_content_hash(run.model.content_hash);
  // A client of its own: what people look at does not hold up the coordinator.
  QUERN_ASSIGN_OR_RETURN(RpcClientOptions page_client, ClientOptions(run, kCoordinatorRole, kReplayRole));
  QUERN_ASSIGN_OR_RETURN(auto page_store, ReplayClient::Connect(run.replay_address, std::move(page_client)));
  const auto page = std::make_unique<RunPage>(run, std::move(page_store));
  QUERN_ASSIGN_OR_RETURN(const auto http,
                         RoleHttp::Start(run, {.role = kCoordinatorRole,
                                               .port = static_cast<int>(run.job.network.http_port),
                                               .open_paths = {"/"},
                                               .more = [&page](HttpRequest request, std::shared_ptr<HttpReply> reply) {
                                                 page->Handle(std::move(request), std::move(reply));
                                               }}));
  options.counters = &http->metrics();
  options.on_event = [&run](const std::string& text) { AppendEvent(run, kCoordinatorRole, text); };
  Coordinator coordinator(std::move(options), replay.get(), Clock::now());
  page->ShowLive([&coordinator] { return coordinator.GetStatus(v1::StatusRequest(), Clock::now()); });
  const struct Detach {
    RunPage& page;
    ~Detach() { page.ShowLive(nullptr); }
  } detach{*page};

  QUERN_ASSIGN_OR_RETURN(RpcServerOptions server_options, ServerOptions(run, kCoordinatorRole));
  std::unique_ptr<WeightServer> weights;
  if (server_options.keys) {
    WeightServerOptions weight_options;
    weight_options.host = run.job.network.host;
    weight_options.port = static_cast<int>(run.job.network.weights_port);
    QUERN_ASSIGN_OR_RETURN(weights, WeightServer::Start(weight_options));
  }
  server_options.limits.max_message_bytes = kMostRequestBytes;
  RpcServer server(std::move(server_options));
  Serve(server, coordinator, weights.get());
  QUERN_RETURN_IF_ERROR(server.Start(run.coordinator_address));
  LogInfo("serving " + run.job.name + " at " + server.address());
  http->SetReady();
  bool ended = false;
  RpcServerCounters counted;
  WeightServerCounters weights_counted;
  Clock::time_point last_gauges{};
  while (!stop.load()) {
    coordinator.Tick(Clock::now());
    if (Clock::now() - last_gauges > std::chrono::seconds(1)) {
      last_gauges = Clock::now();
      coordinator.UpdateGauges(last_gauges);
      const RpcServerCounters counters = server.counters();
      http->metrics().Add(kRpcMalformed, static_cast<double>(counters.malformed + counters.rejected -
                                                             counted.malformed - counted.rejected));
      http->metrics().Add(kConnections, static_cast<double>(counters.connections - counted.connections));
      http->metrics().Add(kHandshakes, static_cast<double>(counters.handshakes - counted.handshakes));
      counted = counters;
      if (weights != nullptr) {
        const WeightServerCounters w = weights->counters();
        http->metrics().Add(kWeightConnections, static_cast<double>(w.connections - weights_counted.connections));
        http->metrics().Add(kWeightRefused, static_cast<double>(w.refused - weights_counted.refused));
        http->metrics().Add(kWeightSent, static_cast<double>(w.sent_bytes - weights_counted.sent_bytes));
        weights_counted = w;
      }
    }
    const Coordinator::State state = coordinator.state();
    if (!ended && state != Coordinator::State::kRunning) {
      ended = true;
      if (coordinator.result_json().empty()) QUERN_RETURN_IF_ERROR(WriteFailure(run, coordinator));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  server.Stop();
  return {};
}

}  // namespace quern
