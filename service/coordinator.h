#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "proto/coordinator.pb.h"
#include "replay/replay.h"
#include "service/flight_record.h"
#include "service/job.h"
#include "service/journal.h"
#include "service/metrics_log.h"
#include "service/plan.h"
#include "service/task_table.h"
#include "transport/metrics.h"

namespace quern {

struct CoordinatorOptions {
  Job job;
  Plan plan;
  std::string run_directory;
  std::string replay_address;                             // told to the roles
  std::map<std::string, v1::WeightVersion> weights;       // what train stages outside the plan published; kBaseModel
  std::map<std::string, v1::ChainProgram> programs;       // of method regenesis, by arm
  int32_t reserved_token = -1;                            // Q-SFT's dummy action
  double heartbeat_timeout_s = 60;                        // an actor unheard of for this long has lost its leases
  std::unique_ptr<MetricsLog> metrics;                    // may be null
  Metrics* counters = nullptr;                            // of role "coordinator"; may be null
  std::function<void(const std::string& text)> on_event;  // something went wrong that the job survives; may be null
  std::unique_ptr<Journal> journal;                       // may be null; what is in it is gone on with
};

// Drives a job's plan: hands out leases and train stages, knows members and weights, notices when nothing moves. Logic
// only: no sockets, no threads; time is passed in. Thread-safe. Every method that answers a request is idempotent,
// because a client sends again after a lost connection.
class Coordinator {
 public:
  enum class State { kRunning, kSucceeded, kFailed, kStopping };

  // `store` must outlive the coordinator; it is asked outside the lock.
  Coordinator(CoordinatorOptions options, Replay* store, Clock::time_point now);

  v1::HelloReply Hello(const v1::HelloRequest& request, Clock::time_point now);
  v1::HeartbeatReply Heartbeat(const v1::HeartbeatRequest& request, Clock::time_point now);
  v1::LeaseTaskReply LeaseTask(const v1::LeaseTaskRequest& request, Clock::time_point now);
  v1::CompleteTaskReply CompleteTask(const v1::CompleteTaskRequest& request, Clock::time_point now);
  v1::NextStageReply NextStage(const v1::NextStageRequest& request, Clock::time_point now);
  v1::StageDoneReply StageDone(const v1::StageDoneRequest& request, Clock::time_point now);
  Result<v1::PublishReply> Publish(const v1::PublishRequest& request, Clock::time_point now);
  // A version that was published, or the untrained model; NotFound for any other.
  Result<v1::WeightVersion> FindWeights(const v1::OpenWeightsRequest& request) const;
  v1::StatusReply GetStatus(const v1::StatusRequest& request, Clock::time_point now);
  // Puts gauges of members, stages and the job's state into the counters' metrics.
  void UpdateGauges(Clock::time_point now);
  void Stop(const std::string& reason);

  // To be called several times a second from one thread: starts stages (imports run here), re-issues expired leases,
  // checks deadlines, and when all stages are done measures the result from the store.
  void Tick(Clock::time_point now);

  State state() const;
  std::string error() const;
  std::string result_json() const;  // of a job that ended: everything result.json holds

 private:
  enum class StageState { kPending, kRunning, kDone, kFailed };
  struct Stage {
    PlannedStage plan;
    StageState state = StageState::kPending;
    bool asked_for = false;  // train: the learner has it
    uint64_t version = 0;    // train: of what it publishes: its place in the plan, whoever is ready first
    uint64_t watermark = 0;  // train: the newest record it may use
    uint64_t done = 0;
    uint64_t total = 0;
    double seconds = 0;
    Clock::time_point begin;
    std::string detail;
    v1::WeightVersion published;  // train: the newest of the stage
    std::map<std::string, double> metrics;
    // Rollout with `newest`: the policy that each task was first given with, by first episode.
    std::map<uint64_t, std::vector<std::string>> task_weights;
    std::map<uint64_t, int64_t> kills;  // actors that died at an episode which they had named
    std::set<uint64_t> quarantined;     // episodes that are not played any more
  };
  struct MemberState {
    v1::Member member;
    Clock::time_point heard;
    bool gone = false;
    uint64_t episode = 0;  // actor: 1 + the episode that it is at, where it plays one at a time
  };

  void Restore(const JournalState& state, Clock::time_point now);
  void RestoreTasks(Stage& stage, const JournalState::Stage& before, Clock::time_point now);
  bool DependenciesDone(const Stage& stage) const;
  void FinishStage(Stage& stage, Clock::time_point now);
  void Fail(const std::string& message);
  void StartRollout(Stage& stage, Clock::time_point now);
  void StartTrain(size_t index, std::unique_lock<std::mutex>& lock, Clock::time_point now);
  std::string Starvation(const Stage& train, uint64_t stored) const;
  void EndChains(size_t index, std::unique_lock<std::mutex>& lock);
  void RunImport(size_t index, std::unique_lock<std::mutex>& lock, Clock::time_point now);
  void ExpireLeases(Clock::time_point now);
  void CheckMembers(Clock::time_point now);
  void CheckProgress(Clock::time_point now);
  void Finish(std::unique_lock<std::mutex>& lock, Clock::time_point now);
  // The actor died or fell silent: what it held is given out again. An episode that does this again and again is left
  // out.
  void LoseActor(MemberState& actor, const std::string& reason, Clock::time_point now);
  void Quarantine(Stage& stage, uint64_t episode);
  void HandleTaskFailure(const TaskTable::Failure& failure);
  // The train stages that published under the same name, oldest first.
  std::vector<const Stage*> DoneBefore(const Stage& stage) const;
  uint32_t ChunkOf(const Stage& stage) const;
  // The train stages whose weights play: those of the newest finished policy where the stage asks for that.
  std::vector<std::string> WeightsToPlay(const Stage& stage) const;
  v1::PolicySpec PolicyOf(const Stage& stage, const std::vector<std::string>& weights) const;
  const v1::WeightVersion* WeightsOf(const std::string& stage) const;
  Stage* FindStage(const std::string& name);
  void SavePublished() const;
  void Note(const std::string& text);  // an event, and a line of the log
  void WriteFlightRecord() const;      // of a job that failed
  bool JournalWritten();               // false, and the job has failed, when it could not be
  void RecordProgress(Clock::time_point now) { last_progress_ = now; }

  mutable std::mutex mutex_;
  CoordinatorOptions options_;
  Replay* store_;
  std::string job_json_;
  std::vector<Stage> stages_;
  TaskTable tasks_;
  std::map<std::pair<std::string, uint32_t>, MemberState> members_;
  std::map<std::string, v1::WeightVersion> newest_;  // by weights' name
  Clock::time_point begin_;
  Clock::time_point last_progress_;
  FlightRecord flight_;  // requests that changed something
  State state_ = State::kRunning;
  std::string error_;
  std::string result_json_;
};

const char* StateName(Coordinator::State state);

}  // namespace quern
