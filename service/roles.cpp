#include "service/roles.h"

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <future>
#include <optional>
#include <thread>

#include "actors/actor_role.h"
#include "base/log.h"
#include "base/strings.h"
#include "learner/host_communicator.h"
#include "learner/learner_role.h"
#include "learner/train_stage.h"
#include "model/hf/model_directory.h"
#include "proto/coordinator.pb.h"
#include "replay/client.h"
#include "replay/server.h"
#include "service/chains.h"
#include "service/event_log.h"
#include "service/join.h"
#include "service/memory_plan.h"
#include "service/plan.h"
#include "service/prepare.h"
#include "service/role_http.h"
#include "transport/address.h"
#include "transport/metric_list.h"

namespace quern {

namespace {

constexpr auto kHelloDeadline = std::chrono::seconds(60);
constexpr auto kReadOnlyPatience = std::chrono::seconds(5);

int Cores() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

Result<std::unique_ptr<RpcClient>> ConnectCoordinator(const Run& run, const std::string& role) {
  QUERN_ASSIGN_OR_RETURN(RpcClientOptions options, ClientOptions(run, role, kCoordinatorRole));
  return RpcClient::Connect(run.coordinator_address, std::move(options));
}

Result<std::unique_ptr<ReplayClient>> ConnectReplay(const Run& run, const std::string& role) {
  QUERN_ASSIGN_OR_RETURN(RpcClientOptions options, ClientOptions(run, role, kReplayRole));
  return ReplayClient::Connect(run.replay_address, std::move(options));
}

// In short calls, so that a role whose coordinator never comes can still be asked to leave.
Status SayHello(RpcClient& coordinator, const std::string& role, uint32_t index, const std::atomic<bool>& stop) {
  v1::HelloRequest hello;
  hello.set_role(role);
  hello.set_index(index);
  hello.set_pid(getpid());
  const Deadline deadline = Deadline::After(kHelloDeadline);
  while (true) {
    const Status said =
        coordinator.Call<v1::HelloReply>("coordinator.Hello", hello, Deadline::After(std::chrono::seconds(1))).status();
    if (said.ok() || stop.load() || deadline.Expired()) return stop.load() ? Cancelled("asked to leave") : said;
  }
}

// Ids that end an utterance besides the environment's closing text.
std::vector<int32_t> EndIds(const std::string& directory) {
  const Result<GenerationConfig> config = LoadGenerationConfig(directory);
  return config.ok() ? config->eos_token_ids : std::vector<int32_t>();
}

}  // namespace

namespace {

// When the store's first record was made, unix seconds; nothing while it is empty.
std::optional<double> FirstRecordTime(Store& store) {
  v1::QueryRequest first;
  first.set_limit(1);
  const Result<v1::QueryReply> page = store.Query(first);
  v1::Trajectory trajectory;
  if (!page.ok() || page->trajectories().empty() || !trajectory.ParseFromString(page->trajectories(0)))
    return std::nullopt;
  return 1e-3 * static_cast<double>(trajectory.created_unix_ms());
}

// What is looked at once a second.
class StoreGauges {
 public:
  StoreGauges(Store& store, const ReplayServer& server, Metrics& metrics)
      : store_(store), server_(server), metrics_(metrics) {}
  void Update(bool read_only) {
    const StoreHealth health = store_.Health();
    metrics_.Set(kReplayRecords, static_cast<double>(store_.watermark()));
    metrics_.Set(kReplayStalled, read_only ? 1 : 0);
    metrics_.Set(kReplayLevel0, static_cast<double>(health.level0_files));
    metrics_.Set(kReplayWal, static_cast<double>(health.wal_bytes));
    metrics_.Set(kReplayDisk, static_cast<double>(health.disk_free_bytes));
    metrics_.Set(kReplayOpen, health.open_seconds);
    metrics_.Set(kReplayLag, static_cast<double>(health.waiting_records));
    metrics_.Set(kReplayBackup, health.last_backup_seconds);
    // Asked again each time: retention takes the oldest away.
    const double first = FirstRecordTime(store_).value_or(0);
    metrics_.Set(kReplayOldest, first > 0 ? std::max(0.0, UnixSeconds() - first) : 0);
    const RpcServerCounters now = server_.counters();
    metrics_.Add(kReplayRejected, static_cast<double>(now.malformed - counted_.malformed), {{"reason", "malformed"}});
    metrics_.Add(kReplayConnections, static_cast<double>(now.connections - counted_.connections));
    metrics_.Add(kReplayHandshakes, static_cast<double>(now.handshakes - counted_.handshakes));
    metrics_.Add(kReplayRejected, static_cast<double>(now.rejected - counted_.rejected),
                 {{"reason", StatusCodeName(StatusCode::kInvalidArgument)}});
    counted_ = now;
  }

 private:
  Store& store_;
  const ReplayServer& server_;
  Metrics& metrics_;
  RpcServerCounters counted_;
};

// Of the newest generated records, so many may be what a stage under way trains on: the largest round, for as many
// rounds as play may be ahead of it, and one more.
uint64_t RecordsInUse(const Job& job) {
  uint64_t most = 0;
  for (const PlannedStage& stage : MakePlan(job).stages) {
    if (stage.kind != PlannedStage::Kind::kRollout || stage.evaluation || !stage.player.empty()) continue;
    uint64_t records = 1;  // an episode
    if (!stage.arm.empty()) {
      const Result<v1::ChainProgram> program = MakeChainProgram(job, stage.arm);
      if (program.ok()) records = program->chains() + program->hinted_chains();
    }
    most = std::max(most, stage.episodes * records);
  }
  return most * static_cast<uint64_t>(job.online.max_staleness + 2);
}

// Throws the oldest generated records away while the store serves, as the job says.
class Retention {
 public:
  Retention(Store& store, const Job& job, Metrics& metrics)
      : store_(store), options_(job.replay), metrics_(metrics), keep_newest_(RecordsInUse(job)) {}
  ~Retention() {
    if (running_.valid()) running_.wait();
  }
  void Tick() {
    if (options_.max_bytes == 0 && options_.max_age_s == 0) return;
    if (running_.valid()) {
      if (running_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return;
      Report(running_.get());
    }
    if (SecondsSince(last_) < options_.prune_every_s) return;
    last_ = Clock::now();
    // What the job's table and the losses on held-out records are made of stays.
    PruneOptions prune{
        .real_too = options_.prune_real, .keep_tags = {kEvaluationTag, kHeldoutTag}, .keep_newest = keep_newest_};
    if (options_.max_bytes > 0) prune.max_bytes = static_cast<uint64_t>(options_.max_bytes);
    if (options_.max_age_s > 0) prune.before_unix_ms = static_cast<int64_t>(1e3 * (UnixSeconds() - options_.max_age_s));
    running_ = std::async(std::launch::async, [this, prune] { return store_.Prune(prune); });
  }

 private:
  void Report(const Result<PruneReport>& report) {
    if (!report.ok()) return LogWarning("retention: " + report.status().message());
    metrics_.Add(kReplayPruned, static_cast<double>(report->records));
    if (report->records > 0)
      LogInfo(
          StrCat("retention: pruned ", report->records, " records, ", HumanBytes(static_cast<double>(report->bytes))));
    if (report->spared_real > 0 && !said_)
      LogWarning(StrCat("retention: ", report->spared_real,
                        " real records stay beyond the limits (replay.prune_real prunes them too)"));
    said_ = said_ || report->spared_real > 0;
  }

  Store& store_;
  const ReplaySection& options_;
  Metrics& metrics_;
  uint64_t keep_newest_;
  Clock::time_point last_ = Clock::now();
  bool said_ = false;
  std::future<Result<PruneReport>> running_;
};

}  // namespace

Status RunReplayRole(const Run& run, const std::atomic<bool>& stop) {
  QUERN_ASSIGN_OR_RETURN(const auto http, RoleHttp::Start(run, {.role = kReplayRole}));
  QUERN_ASSIGN_OR_RETURN(std::unique_ptr<Store> store, Store::Open(run.Path("replay")));
  QUERN_ASSIGN_OR_RETURN(RpcServerOptions options, ServerOptions(run, kReplayRole));
  ReplayServer server(store.get(), std::move(options), &http->metrics());
  StoreGauges gauges(*store, server, http->metrics());
  Retention retention(*store, run.job, http->metrics());
  QUERN_RETURN_IF_ERROR(server.Start(run.replay_address));
  QUERN_ASSIGN_OR_RETURN(const auto coordinator, ConnectCoordinator(run, kReplayRole));
  Clock::time_point last_heartbeat{};
  Clock::time_point writable = Clock::now();
  while (!stop.load()) {
    const std::string reason = store->read_only_reason();
    if (reason.empty()) writable = Clock::now();
    if (Clock::now() - writable > kReadOnlyPatience) return ResourceExhausted(reason);
    if (Clock::now() - last_heartbeat > std::chrono::seconds(1)) {
      gauges.Update(!reason.empty());
      if (reason.empty()) retention.Tick();
      http->SetReady(reason);
      v1::HeartbeatRequest heartbeat;
      heartbeat.set_role(kReplayRole);
      heartbeat.set_activity(reason.empty() ? "serving" : "read-only: " + reason);
      (*heartbeat.mutable_gauges())["records"] = static_cast<double>(store->watermark());
      // Without a coordinator the store goes on: what it acknowledged is safe either way.
      const auto reply = coordinator->Call<v1::HeartbeatReply>("coordinator.Heartbeat", heartbeat,
                                                               Deadline::After(std::chrono::seconds(2)));
      if (!reply.ok()) LogWarning(reply.status().message());
      last_heartbeat = Clock::now();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  server.Stop();
  LogInfo(StrCat("closed with ", store->watermark(), " records"));
  return {};
}

namespace {

// This rank's place among the learner's processes; null when it is the only one.
Result<std::unique_ptr<HostCommunicator>> JoinRanks(uint32_t rank, const Run& run, Metrics& metrics,
                                                    const std::atomic<bool>& stop) {
  if (run.job.learner.ranks == 1) return std::unique_ptr<HostCommunicator>();
  PeerGroupOptions options;
  options.rank = static_cast<int>(rank);
  for (int64_t r = 0; r < run.job.learner.ranks; ++r) {
    if (run.coordinator_address.starts_with("inproc://")) {
      options.addresses.push_back(StrCat("inproc://learner-", r, "-", run.directory));
    } else {
      QUERN_ASSIGN_OR_RETURN(std::string address, IpcAddress(run.Path("ipc"), StrCat("learner-", r)));
      options.addresses.push_back(std::move(address));
    }
  }
  options.timeout = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(run.job.progress_timeout_s));
  options.stop = &stop;
  options.strangers = [&metrics](uint64_t count) { metrics.Add(kLearnerStrangers, static_cast<double>(count)); };
  QUERN_ASSIGN_OR_RETURN(std::unique_ptr<PeerGroup> group, PeerGroup::Join(options));
  return std::unique_ptr<HostCommunicator>(std::make_unique<PeerCommunicator>(std::move(group)));
}

}  // namespace

Status RunLearnerRole(uint32_t rank, const Run& run, const std::atomic<bool>& stop) {
  const Job& job = run.job;
  QUERN_ASSIGN_OR_RETURN(const auto http, RoleHttp::Start(run, {.role = kLearnerRole, .index = rank}));
  QUERN_ASSIGN_OR_RETURN(const auto replay, ConnectReplay(run, kLearnerRole));
  std::unique_ptr<RpcClient> coordinator;
  if (rank == 0) {
    QUERN_ASSIGN_OR_RETURN(coordinator, ConnectCoordinator(run, kLearnerRole));
    QUERN_RETURN_IF_ERROR(SayHello(*coordinator, kLearnerRole, 0, stop));
  }
  QUERN_ASSIGN_OR_RETURN(const auto ranks, JoinRanks(rank, run, http->metrics(), stop));
  QUERN_ASSIGN_OR_RETURN(const auto environment, EnvironmentOf(job));
  const std::unique_ptr<Environment> sample = environment->NewEnvironment();
  LearnerRoleOptions options;
  options.coordinator = coordinator.get();
  options.replay = replay.get();
  QUERN_ASSIGN_OR_RETURN(options.tokenizer, Tokenizer::Load(run.model.directory));
  options.model_directory = run.model.directory;
  options.weights_directory = run.Path("weights");
  options.ranks = ranks.get();
  options.shards = job.learner.shards > 0 ? job.learner.shards : job.learner.ranks;
  if (rank == 0) {
    options.metrics_path = run.Path("metrics.jsonl");
    options.tensorboard_directory = run.Path("tensorboard");
    options.metrics = &http->metrics();
  }
  options.batch.max_positions = 0;
  options.batch.rewards.min_return = sample->min_return();
  options.batch.rewards.max_return = sample->max_return();
  options.batch.action_end = sample->action_end();
  options.batch.end_ids = EndIds(run.model.directory);
  QUERN_ASSIGN_OR_RETURN(options.batch.chat_template, ChatTemplateOf(job, run.model.directory));
  options.reserved_token = run.model.reserved_token;
  options.precision = RecipeOf(job.precision, job.smooth_swiglu);
  options.device = job.device;
  options.optimizer = {.fp8_moments = job.optimizer.moments == "fp8",
                       .block = job.optimizer.block,
                       .bf16_masters = job.optimizer.master_weights == "bf16"};
  options.threads =
      job.threads > 0 ? static_cast<int>(job.threads) : std::max(1, Cores() / static_cast<int>(job.learner.ranks));
  options.checkpoints = {.directory = run.Path("checkpoints"),
                         .every_steps = job.checkpoint.every_steps,
                         .every_seconds = job.checkpoint.every_seconds,
                         .keep = job.checkpoint.keep};
  options.on_event = [&run](const std::string& text) { AppendEvent(run, kLearnerRole, text); };
  options.stop = &stop;
  http->SetReady();
  return RunLearner(options);
}

Status RunActorRole(uint32_t index, const Run& run, const std::atomic<bool>& stop) {
  const Job& job = run.job;
  QUERN_ASSIGN_OR_RETURN(const auto http, RoleHttp::Start(run, {.role = kActorRole, .index = index}));
  QUERN_ASSIGN_OR_RETURN(const auto coordinator, ConnectCoordinator(run, kActorRole));
  QUERN_ASSIGN_OR_RETURN(const auto replay, ConnectReplay(run, kActorRole));
  if (!run.joined) QUERN_RETURN_IF_ERROR(SayHello(*coordinator, kActorRole, index, stop));
  ActorRoleOptions options;
  options.index = index;
  options.coordinator = coordinator.get();
  options.replay = replay.get();
  QUERN_ASSIGN_OR_RETURN(options.environment, EnvironmentOf(job));
  options.environment_name = job.environment;
  options.metrics = &http->metrics();
  options.base_dir = job.base_dir;
  QUERN_ASSIGN_OR_RETURN(options.tokenizer, Tokenizer::Load(run.model.directory));
  options.rollout.run = run.name();
  options.rollout.concurrent_episodes = job.rollout.concurrent_episodes;
  options.rollout.max_completion_length = job.max_completion_length;
  options.rollout.end_ids = EndIds(run.model.directory);
  QUERN_ASSIGN_OR_RETURN(options.rollout.chat_template, ChatTemplateOf(job, run.model.directory));
  options.precision = RecipeOf(job.precision, job.smooth_swiglu);
  options.device = job.device;
  options.device_share = run.joined ? index : job.learner.ranks + index;
  const int share = run.joined ? Cores() : std::max(1, Cores() / static_cast<int>(job.actors));
  options.threads = job.actor_threads > 0 ? static_cast<int>(job.actor_threads) : share;
  if (run.joined) {
    options.locate = [&](const v1::WeightVersion& version, const std::function<Status()>& alive) {
      return FetchVersion(run, *coordinator, version, alive);
    };
  }
  QUERN_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(run.model.directory));
  options.engine.kv_bytes = ActorKvBytes(job, config);
  options.stop = &stop;
  http->SetReady();
  return RunActor(options);
}

bool WorthAnotherStart(const Status& status) {
  switch (status.code()) {
    case StatusCode::kUnavailable:
    case StatusCode::kDeadlineExceeded:
    case StatusCode::kInternal:
    case StatusCode::kCancelled: return true;
    default: return false;
  }
}

Status RunRole(const std::string& role, uint32_t index, const Run& run, const std::atomic<bool>& stop) {
  if (role == kCoordinatorRole) return RunCoordinatorRole(run, stop);
  if (role == kReplayRole) return RunReplayRole(run, stop);
  if (role == kLearnerRole) return RunLearnerRole(index, run, stop);
  if (role == kActorRole) return RunActorRole(index, run, stop);
  return InvalidArgument("unknown role '" + role + "'");
}

}  // namespace quern
