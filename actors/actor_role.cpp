#include "actors/actor_role.h"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <optional>
#include <thread>

#include "actors/lru_store.h"
#include "actors/records.h"
#include "base/log.h"
#include "base/strings.h"
#include "compute/device.h"
#include "methods/q_sft.h"
#include "model/hf/content_hash.h"
#include "replay/writer.h"
#include "transport/metric_list.h"

namespace quern {

namespace {

constexpr size_t kUidsAtOnce = 4096;
// Records wait this long at most for others to be sent with.
constexpr auto kFlushEvery = std::chrono::seconds(2);

// For tests: QUERN_FAULT_ACTOR_DIES=STAGE/EPISODE is what a prompt does that kills its actor.
bool FaultAt(const std::string& stage, uint64_t episode) {
  static const char* const fault = std::getenv("QUERN_FAULT_ACTOR_DIES");
  return fault != nullptr && StrCat(stage, "/", episode) == fault;
}

class Actor {
 public:
  explicit Actor(const ActorRoleOptions& options)
      : options_(options), metrics_(options.metrics, kRoleActor), pool_(options.threads) {}

  Status Run() {
    QUERN_ASSIGN_OR_RETURN(ops_, NewOps(options_.device, &pool_, options_.device_share));
    engine_.emplace(*ops_, options_.engine);
    QUERN_ASSIGN_OR_RETURN(writer_, ReplayWriter::Open(options_.replay, StrCat("actor-", options_.index),
                                                       Deadline::After(options_.insert_timeout)));
    Clock::time_point last_heartbeat{};
    while (!options_.stop->load()) {
      if (Clock::now() - last_heartbeat > std::chrono::seconds(1)) {
        QUERN_ASSIGN_OR_RETURN(const bool go_on, Heartbeat("waiting for work"));
        if (!go_on) return {};
        last_heartbeat = Clock::now();
      }
      v1::LeaseTaskRequest request;
      request.set_actor(options_.index);
      QUERN_ASSIGN_OR_RETURN(const v1::LeaseTaskReply lease, Call<v1::LeaseTaskReply>("LeaseTask", request));
      if (lease.stop()) return {};
      if (!lease.has_task()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(std::max(5u, lease.retry_ms())));
        continue;
      }
      QUERN_RETURN_IF_ERROR(Work(lease.task()));
    }
    return {};
  }

 private:
  template <typename Reply, typename Request>
  Result<Reply> Call(const std::string& method, const Request& request) {
    return options_.coordinator->Call<Reply>("coordinator." + method, request, Deadline::After(options_.call_timeout));
  }

  Result<bool> Heartbeat(const std::string& activity) {
    v1::HeartbeatRequest request;
    request.set_episode(at_episode_);
    request.set_role("actor");
    request.set_index(options_.index);
    request.set_activity(activity);
    auto& gauges = *request.mutable_gauges();
    gauges["episodes"] = static_cast<double>(episodes_);
    gauges["generated_tokens"] = static_cast<double>(engine_->generated_tokens());
    gauges["duplicates"] = static_cast<double>(writer_->duplicates());
    metrics_->Add(kActorGenerated, static_cast<double>(engine_->generated_tokens()) - counted_tokens_);
    counted_tokens_ = static_cast<double>(engine_->generated_tokens());
    QUERN_ASSIGN_OR_RETURN(const v1::HeartbeatReply reply, Call<v1::HeartbeatReply>("Heartbeat", request));
    return !reply.stop();
  }

  // Plays one task; returns an error only when the actor itself cannot go on.
  Status Work(const v1::RolloutTask& task) {
    const auto begin = Clock::now();
    at_episode_ = 0;
    v1::CompleteTaskRequest done;
    done.set_actor(options_.index);
    done.set_id(task.id());
    Status fatal;
    Clock::time_point last_heartbeat = begin;
    Clock::time_point last_flush = begin;
    size_t spool_bytes = 0;
    const auto show_spool = [&] {
      metrics_->Set(kActorUnacked, static_cast<double>(writer_->unacknowledged()));
      metrics_->Set(kActorSpool, static_cast<double>(spool_bytes));
    };
    const auto flush = [&]() -> Status {
      if (Status flushed = writer_->Flush(Deadline::After(options_.insert_timeout)); !flushed.ok())
        return fatal = flushed;
      metrics_->Add(kActorResent, static_cast<double>(writer_->duplicates()) - counted_duplicates_);
      counted_duplicates_ = static_cast<double>(writer_->duplicates());
      spool_bytes = 0;
      show_spool();
      last_flush = Clock::now();
      return {};
    };
    std::shared_ptr<const EnvironmentFactory> environment = options_.environment;
    std::string environment_name = task.has_environment() ? task.environment().name() : options_.environment_name;
    const auto sink = [&](v1::Trajectory trajectory) -> Status {
      CountEpisode(trajectory, environment_name);
      std::string bytes = trajectory.SerializeAsString();
      spool_bytes += bytes.size();
      writer_->Append(std::move(bytes), trajectory.uid());
      show_spool();
      ++episodes_;
      return {};
    };
    RolloutOptions rollout = options_.rollout;
    rollout.ended = [&](double seconds) { metrics_->Observe(kActorEpisodeSeconds, seconds); };
    rollout.answered = [&](double seconds) {
      metrics_->Observe(kActorEnvSeconds, seconds, {{"env", environment_name}});
    };
    rollout.whole = [&]() -> Status {
      if (!task.one_at_a_time() && writer_->unacknowledged() < static_cast<size_t>(options_.insert_batch) &&
          Clock::now() - last_flush < kFlushEvery)
        return {};
      return flush();
    };
    rollout.stored = [&](const std::vector<std::string>& uids) -> Result<std::vector<bool>> {
      Result<std::vector<bool>> stored = Stored(uids);
      if (!stored.ok()) fatal = stored.status();
      return stored;
    };
    rollout.begin = [&](uint64_t episode) -> Status {
      if (task.one_at_a_time()) {
        at_episode_ = episode + 1;
        const Result<bool> go_on = Heartbeat(StrCat("playing ", task.stage(), ", one episode at a time"));
        if (!go_on.ok()) return fatal = go_on.status();
        if (!*go_on) return Cancelled("the coordinator asked to stop");
      }
      if (FaultAt(task.stage(), episode)) raise(SIGKILL);
      return {};
    };
    uint64_t tokens_at_step = static_cast<uint64_t>(engine_->generated_tokens());
    Clock::time_point step_begin = begin;
    rollout.tick = [&]() -> Status {
      // Only steps that wrote something: the others read prompts or wait for the environment.
      if (const auto tokens = static_cast<uint64_t>(engine_->generated_tokens()); tokens != tokens_at_step) {
        metrics_->Observe(kActorStep, SecondsSince(step_begin));
        tokens_at_step = tokens;
      }
      step_begin = Clock::now();
      if (Clock::now() - last_heartbeat > std::chrono::seconds(1)) {
        last_heartbeat = Clock::now();
        Result<bool> go_on = Heartbeat(StrCat("playing ", task.stage()));
        if (!go_on.ok()) return fatal = go_on.status();
        if (!*go_on) return Cancelled("the coordinator asked to stop");
      }
      return {};
    };
    Engine* engine = nullptr;
    Status status;
    if (task.policy().player().empty()) {
      status = UsePolicy(task.policy());
      engine = &*engine_;
    }
    uint64_t generated = 0;
    if (status.ok() && task.has_environment()) {
      auto other = EnvironmentOf(task.environment());
      status = other.status();
      if (other.ok()) environment = *other;
    }
    if (status.ok()) {
      Result<RolloutCounters> played =
          PlayTask(task, *environment, *options_.tokenizer, rollout, engine, sink, *options_.stop);
      status = played.status();
      if (played.ok()) generated = played->generated_tokens;
      if (played.ok() && played->stored > 0)
        LogInfo(StrCat("task ", task.id(), " of ", task.stage(), ": ", played->stored, " of ", task.episodes(),
                       " episodes were stored already"));
    }
    if (status.ok()) status = flush();
    if (!fatal.ok()) return fatal;
    writer_->Discard();  // of a task that was broken off; else there is nothing left
    spool_bytes = 0;
    show_spool();
    if (status.code() == StatusCode::kCancelled)
      return {};  // the lease runs out; nothing unacknowledged is reported done
    if (!status.ok()) {
      LogError(StrCat("task ", task.id(), " of ", task.stage(), ": ", status.ToString()));
      metrics_->Add(kActorFailures);
      done.set_error(status.ToString());
    }
    done.set_generated_tokens(generated);
    done.set_seconds(SecondsSince(begin));
    return Call<v1::CompleteTaskReply>("CompleteTask", done).status();
  }

  void CountEpisode(const v1::Trajectory& trajectory, const std::string& environment) {
    const char* outcome = trajectory.success() ? "success" : trajectory.done() ? "failure" : "cut";
    metrics_->Add(kActorEpisodes, 1, {{"env", environment}, {"outcome", outcome}});
    metrics_->Add(kActorTurns, trajectory.turns_size(), {{"env", environment}});
    metrics_->Observe(kActorReward, trajectory.episode_return(), {{"env", environment}});
    const std::string& mask = trajectory.loss_mask();
    metrics_->Add(kActorPrompt, static_cast<double>(std::count(mask.begin(), mask.end(), '\0')));
    if (trajectory.source() == v1::SOURCE_REAL) return;  // a scripted player wrote it
    for (const v1::Turn& turn : trajectory.turns()) metrics_->Observe(kActorResponse, turn.end() - turn.begin());
  }

  Result<std::vector<bool>> Stored(const std::vector<std::string>& uids) {
    std::vector<bool> stored;
    for (size_t begin = 0; begin < uids.size(); begin += kUidsAtOnce) {
      v1::ContainsRequest request;
      for (size_t i = begin; i < std::min(uids.size(), begin + kUidsAtOnce); ++i) request.add_uids(uids[i]);
      QUERN_ASSIGN_OR_RETURN(const v1::ContainsReply reply,
                             options_.replay->Contains(request, Deadline::After(options_.insert_timeout)));
      stored.insert(stored.end(), reply.stored().begin(), reply.stored().end());
    }
    return stored;
  }

  Result<std::shared_ptr<const EnvironmentFactory>> EnvironmentOf(const v1::EnvironmentSpec& spec) {
    const Options environment_options(spec.options().begin(), spec.options().end());
    std::string key = spec.name();
    for (const auto& [name, value] : environment_options) key += StrCat("\n", name, "=", value);
    std::shared_ptr<const EnvironmentFactory>& known = environments_[key];
    if (known == nullptr) {
      QUERN_ASSIGN_OR_RETURN(known, MakeEnvironmentFactory(spec.name(), environment_options, options_.base_dir));
    }
    return known;
  }

  Result<std::shared_ptr<const ServedModel>> Model(const v1::WeightVersion& version) {
    const std::string key = StrCat(version.path(), "#", version.content_hash());
    if (const auto* known = models_.Find(key); known != nullptr) return *known;
    const auto begin = Clock::now();
    std::string directory = version.path();
    if (options_.locate != nullptr) {
      QUERN_ASSIGN_OR_RETURN(directory, options_.locate(version, [this]() -> Status {
        QUERN_ASSIGN_OR_RETURN(const bool go_on, Heartbeat("fetching weights"));
        return go_on ? Status() : Cancelled("the coordinator asked to stop");
      }));
    }
    QUERN_ASSIGN_OR_RETURN(const std::string hash, DirectoryContentHash(directory));
    if (!version.content_hash().empty() && hash != version.content_hash()) {
      return DataLoss(StrCat(directory, ": content hash ", hash, ", published as ", version.content_hash()));
    }
    models_.Shrink(kRecentModels - 1);
    QUERN_ASSIGN_OR_RETURN(const std::shared_ptr<ServedModel> model,
                           LoadServedModel(*ops_, directory, options_.precision));
    model->content = hash;
    models_.Keep(key, model, 1);
    metrics_->Observe(kActorWeights, SecondsSince(begin));
    metrics_->Set(kActorVersion, static_cast<double>(version.version()));
    LogInfo(StrFormat("loaded %s version %llu in %.0f ms", version.name().c_str(),
                      static_cast<unsigned long long>(version.version()), 1e3 * SecondsSince(begin)));
    return std::shared_ptr<const ServedModel>(model);
  }

  Status UsePolicy(const v1::PolicySpec& spec) {
    const std::string key = spec.SerializeAsString();
    if (key == policy_key_) return {};
    auto policy = std::make_shared<Policy>();
    policy->label = spec.name();
    policy->compression = CompressionOf(spec.sampling());
    for (const v1::WeightVersion& version : spec.weights()) {
      QUERN_ASSIGN_OR_RETURN(std::shared_ptr<const ServedModel> model, Model(version));
      policy->models.push_back(std::move(model));
    }
    if (policy->models.size() == 2) {
      QSftOptions q;
      q.beta = spec.sampling().q_sft_beta();
      q.rule = spec.sampling().rule() == "paper" ? QSftOptions::Rule::kPaper : QSftOptions::Rule::kRatio;
      q.support_epsilon = spec.support_epsilon();
      q.support_top_p = spec.support_top_p();
      q.reserved_token = spec.reserved_token();
      q.remainder = spec.uniform_remainder() ? QSftOptions::Remainder::kUniform : QSftOptions::Remainder::kDummy;
      policy->head = std::make_shared<QSftHead>(q);
    } else if (policy->models.size() == 1) {
      policy->head = std::make_shared<SingleModelHead>(spec.reserved_token());
    } else {
      return InvalidArgument(
          StrCat("policy ", spec.name(), " has ", policy->models.size(), " weight versions; 1 or 2 are needed"));
    }
    engine_->SetPolicy(policy);
    policy_key_ = key;
    return {};
  }

  const ActorRoleOptions& options_;
  MetricsOrOwn metrics_;
  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  std::optional<Engine> engine_;
  LruStore<std::string, std::shared_ptr<const ServedModel>> models_;  // each counts 1
  std::string policy_key_;
  uint64_t episodes_ = 0;
  uint64_t at_episode_ = 0;  // of a task played one at a time: 1 + the episode under way
  std::map<std::string, std::shared_ptr<const EnvironmentFactory>> environments_;  // by name and options
  std::unique_ptr<ReplayWriter> writer_;
  double counted_tokens_ = 0;      // of engine_, in metrics_
  double counted_duplicates_ = 0;  // of writer_
};

}  // namespace

Status RunActor(const ActorRoleOptions& options) { return Actor(options).Run(); }

}  // namespace quern
