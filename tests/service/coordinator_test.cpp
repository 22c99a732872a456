#include "service/coordinator.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/strings.h"
#include "service/result.h"
#include "tests/service/fake_replay.h"
#include "tests/service/test_jobs.h"
#include "tests/transport/temporary_folder.h"
#include "transport/metric_list.h"

namespace quern {
namespace {

using std::chrono::seconds;

// A job's coordinator with a clock that the test turns and members that the test plays.
class CoordinatorTest : public testing::Test {
 protected:
  void Make(const Job& job) {
    CoordinatorOptions options;
    options.job = job;
    options.plan = MakePlan(job);
    options.weights[kBaseModel].set_name(kBaseModel);
    options.weights[kBaseModel].set_path("/base");
    options.counters = &metrics_;
    options.run_directory = run_directory_;
    options.on_event = [this](const std::string& text) { events_.push_back(text); };
    if (journal_folder_) {
      coordinator_.reset();
      options.journal = *Journal::Open(JoinPath(journal_folder_->path(), "journal.jsonl"));
    }
    coordinator_ = std::make_unique<Coordinator>(std::move(options), &store_, now_);
    coordinator_->Tick(now_);
  }

  v1::LeaseTaskReply Lease(uint32_t actor) {
    v1::LeaseTaskRequest request;
    request.set_actor(actor);
    return coordinator_->LeaseTask(request, now_);
  }
  void Complete(uint32_t actor, const v1::RolloutTask& task, const std::string& error = {}) {
    v1::CompleteTaskRequest request;
    request.set_actor(actor);
    request.set_id(task.id());
    request.set_error(error);
    coordinator_->CompleteTask(request, now_);
    coordinator_->Tick(now_);
  }
  // Plays every task there is; each episode returns `value` plus a little that differs.
  std::vector<std::string> PlayAll(const std::function<double(const v1::RolloutTask&)>& value) {
    std::vector<std::string> stages;
    while (true) {
      const v1::LeaseTaskReply reply = Lease(0);
      if (!reply.has_task()) return stages;
      const v1::RolloutTask& task = reply.task();
      if (stages.empty() || stages.back() != task.stage()) stages.push_back(task.stage());
      for (uint64_t e = task.first_episode(); e < task.first_episode() + task.episodes(); ++e)
        store_.Add(StrCat(task.stage(), e), value(task) + 0.1 * static_cast<double>(e % 3), true,
                   {task.tags().begin(), task.tags().end()});
      Complete(0, task);
    }
  }
  std::optional<v1::TrainStage> Next() {
    const v1::NextStageReply reply = coordinator_->NextStage({}, now_);
    return reply.has_stage() ? std::optional(reply.stage()) : std::nullopt;
  }
  Status Publish(const std::string& stage, const std::string& name, uint64_t version) {
    v1::PublishRequest request;
    request.set_stage(stage);
    request.mutable_weights()->set_name(name);
    request.mutable_weights()->set_version(version);
    request.mutable_weights()->set_path(StrCat("/weights/", name, "-", version));
    request.mutable_weights()->set_content_hash(StrCat("hash-", version));
    request.mutable_weights()->set_generation_depth(1);
    return coordinator_->Publish(request, now_).status();
  }
  void Done(const std::string& stage, const std::string& error = {}) {
    v1::StageDoneRequest request;
    request.set_name(stage);
    request.set_error(error);
    (*request.mutable_metrics())["loss"] = 1.5;
    coordinator_->StageDone(request, now_);
    coordinator_->Tick(now_);
  }
  void Train(const v1::TrainStage& stage) {
    const std::string name = nlohmann::json::parse(stage.options_json())["weights_name"];
    ASSERT_TRUE(Publish(stage.name(), name, stage.version()).ok());
    Done(stage.name());
  }
  // The learner's last look at what actors stored.
  void CheckRollouts() {
    const auto stage = Next();
    ASSERT_TRUE(stage);
    EXPECT_EQ(stage->name(), "check:rollouts");
    Done(stage->name());
  }
  void Pass(Duration time) {
    now_ += time;
    coordinator_->Tick(now_);
  }

  FakeReplay store_;
  std::string run_directory_;
  std::optional<TemporaryFolder> journal_folder_;  // with a journal, Make goes on where the coordinator before it was
  Metrics metrics_{kRoleCoordinator};
  std::vector<std::string> events_;
  std::unique_ptr<Coordinator> coordinator_;
  Clock::time_point now_ = Clock::now();
};

double ValueOf(const v1::RolloutTask& task) {
  if (task.stage() == "eval:q_sft") return -2;
  if (task.stage() == "eval:q_sft_online") return -1.5;
  if (task.stage() == "eval:player:best") return -1;
  return -4;
}

TEST_F(CoordinatorTest, AWholeJobInOrder) {
  Make(SmallJob({"online.rounds=1", "online.episodes=40", "require=[{better: q_sft, than: sft}]"}));
  EXPECT_FALSE(Next());
  EXPECT_EQ(PlayAll(ValueOf), (std::vector<std::string>{"eval:player:best", "collect:random"}));
  const auto sft = Next();
  ASSERT_TRUE(sft);
  EXPECT_EQ(sft->name(), "sft");
  EXPECT_EQ(sft->initial(0).name(), kBaseModel);
  EXPECT_EQ(nlohmann::json::parse(sft->options_json())["watermark"], 130);  // 30 of the player, 100 collected
  EXPECT_EQ(Next()->name(), "sft");                                         // asked again: the same
  Train(*sft);
  EXPECT_EQ(Next()->name(), "filtered_sft");
  Train(*Next());
  const auto q_sft = Next();
  ASSERT_EQ(q_sft->name(), "q_sft");
  EXPECT_EQ(q_sft->initial(0).path(), "/weights/sft-1");
  Train(*q_sft);
  EXPECT_FALSE(Next());
  const auto played = PlayAll(ValueOf);
  EXPECT_EQ(std::count(played.begin(), played.end(), "eval:sft"), 1);
  EXPECT_EQ(std::count(played.begin(), played.end(), "eval:q_sft"), 1);
  EXPECT_EQ(std::count(played.begin(), played.end(), "online-1"), 1);
  ASSERT_EQ(Next()->name(), "online-1:sft");
  Train(*Next());
  ASSERT_EQ(Next()->name(), "online-1:q_sft");
  Train(*Next());
  EXPECT_EQ(PlayAll(ValueOf), std::vector<std::string>{"eval:q_sft_online"});
  const auto check = Next();
  ASSERT_TRUE(check);
  std::vector<std::string> checked;
  for (const v1::WeightVersion& weights : check->initial()) checked.push_back(weights.content_hash());
  EXPECT_EQ(checked, (std::vector<std::string>{"hash-1", "hash-2", "hash-3", "hash-4", "hash-5"}));
  CheckRollouts();
  EXPECT_EQ(coordinator_->state(), Coordinator::State::kSucceeded) << coordinator_->error();
  const auto result = ResultFromJson(coordinator_->result_json());
  ASSERT_TRUE(result.ok()) << result.status().ToString();
  ASSERT_EQ(result->rows.size(), 6u);
  EXPECT_EQ(result->rows[0].policy, "data");
  EXPECT_EQ(result->rows[0].episodes, 100u);
  EXPECT_NEAR(result->Find("q_sft")->mean_return, -1.9, 1e-9);
  EXPECT_NEAR(result->Find("q_sft")->std_error, 0.0816 / std::sqrt(30), 1e-4);
  EXPECT_TRUE(result->requirements[0].met);
}

TEST_F(CoordinatorTest, ARequirementThatIsNotMetFailsTheJob) {
  Make(SmallJob({"require=[{better: q_sft, than: sft}]"}));
  PlayAll(ValueOf);
  for (int i = 0; i < 3; ++i) Train(*Next());
  PlayAll([](const v1::RolloutTask&) { return -4.0; });
  CheckRollouts();
  EXPECT_EQ(coordinator_->state(), Coordinator::State::kFailed);
  EXPECT_EQ(coordinator_->error(),
            "not met: q_sft better than sft by more than 2 standard errors (difference 0.000, standard error 0.021)");
  EXPECT_TRUE(ResultFromJson(coordinator_->result_json()).ok());
}

TEST_F(CoordinatorTest, QSftActsWithBothModelsAndSftWithOne) {
  Make(SmallJob({"qsft.beta=3", "evaluate.temperature=0.5"}));
  PlayAll(ValueOf);
  for (int i = 0; i < 3; ++i) Train(*Next());
  std::map<std::string, v1::RolloutTask> tasks;
  for (uint32_t actor = 0; actor < 6; ++actor) {
    const auto reply = Lease(actor);
    if (reply.has_task()) tasks[reply.task().stage()] = reply.task();
  }
  ASSERT_TRUE(tasks.contains("eval:q_sft") && tasks.contains("eval:sft"));
  const v1::PolicySpec& pair = tasks["eval:q_sft"].policy();
  ASSERT_EQ(pair.weights_size(), 2);
  EXPECT_EQ(pair.weights(0).name(), "sft");
  EXPECT_EQ(pair.weights(1).name(), "value");
  EXPECT_EQ(pair.sampling().q_sft_beta(), 3);
  EXPECT_EQ(pair.sampling().temperature(), 0.5);
  EXPECT_EQ(tasks["eval:q_sft"].source(), v1::SOURCE_GENERATED);
  EXPECT_EQ(tasks["eval:q_sft"].generation_depth(), 1u);  // its weights learned from real data
  EXPECT_EQ(tasks["eval:sft"].policy().weights_size(), 1);
  EXPECT_EQ(tasks["eval:sft"].policy().sampling().q_sft_beta(), 0);
}

TEST_F(CoordinatorTest, ARestartedActorsTasksAreGivenOutAgain) {
  Make(SmallJob());
  v1::HelloRequest hello;
  hello.set_role("actor");
  hello.set_index(0);
  hello.set_pid(10);
  coordinator_->Hello(hello, now_);
  const uint64_t id = Lease(0).task().id();
  coordinator_->Hello(hello, now_);  // the same process again: nothing is lost
  EXPECT_EQ(Lease(0).task().id(), id);
  hello.set_pid(11);
  coordinator_->Hello(hello, now_);
  EXPECT_EQ(Lease(1).task().id(), id);
}

TEST_F(CoordinatorTest, ASilentActorsTasksAreGivenOutAgain) {
  Make(SmallJob({"rollout.lease_s=1000"}));
  v1::HeartbeatRequest heartbeat;
  heartbeat.set_role("actor");
  heartbeat.set_index(0);
  coordinator_->Heartbeat(heartbeat, now_);
  const uint64_t id = Lease(0).task().id();
  Pass(seconds(59));
  EXPECT_NE(Lease(1).task().id(), id);
  Pass(seconds(2));
  EXPECT_EQ(Lease(2).task().id(), id);
}

TEST_F(CoordinatorTest, AnActorThatWritesKeepsItsLease) {
  Make(SmallJob({"rollout.lease_s=10"}));
  const auto heartbeat = [&](double tokens) {
    v1::HeartbeatRequest request;
    request.set_role("actor");
    request.set_index(0);
    (*request.mutable_gauges())["generated_tokens"] = tokens;
    coordinator_->Heartbeat(request, now_);
  };
  const uint64_t id = Lease(0).task().id();
  for (int i = 1; i <= 5; ++i) {
    Pass(seconds(8));
    heartbeat(100 * i);
  }
  EXPECT_NE(Lease(1).task().id(), id);
  for (int i = 0; i < 2; ++i) {
    Pass(seconds(8));
    heartbeat(500);  // nothing new
  }
  EXPECT_EQ(Lease(2).task().id(), id);
}

TEST_F(CoordinatorTest, ATaskThatFailsThreeTimesFailsTheJob) {
  Make(SmallJob());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(coordinator_->state(), Coordinator::State::kRunning);
    Pass(seconds(2));
    const v1::RolloutTask task = Lease(0).task();
    ASSERT_EQ(task.stage(), "eval:player:best");
    ASSERT_EQ(task.first_episode(), 0u);
    Complete(0, task, "no such word list");
  }
  EXPECT_EQ(coordinator_->state(), Coordinator::State::kFailed);
  EXPECT_EQ(coordinator_->error(),
            "stage eval:player:best: episodes 0 to 14 failed on actor 0: no such word list (failed 3 times, given up)");
  EXPECT_TRUE(Lease(0).stop());
}

TEST_F(CoordinatorTest, NoProgressNamesTheStage) {
  Make(SmallJob({"progress_timeout_s=30", "evaluate.players=[]"}));
  Complete(0, Lease(0).task());
  Pass(seconds(20));
  v1::HeartbeatRequest heartbeat;
  heartbeat.set_role("actor");
  (*heartbeat.mutable_gauges())["episodes"] = 7;
  coordinator_->Heartbeat(heartbeat, now_);
  for (int i = 0; i < 29; ++i) {
    Pass(seconds(1));
    coordinator_->Heartbeat(heartbeat, now_);  // alive, but the gauge stands still
  }
  EXPECT_EQ(coordinator_->state(), Coordinator::State::kRunning);
  Pass(seconds(1));
  EXPECT_EQ(coordinator_->error(),
            "no progress for 30 s (progress_timeout_s) in stage collect:random (20 of 100 episodes)");
  EXPECT_EQ(coordinator_->state(), Coordinator::State::kFailed);
}

TEST_F(CoordinatorTest, AFailedOrEmptyTrainStageFailsTheJob) {
  Make(SmallJob({"evaluate.players=[]"}));
  PlayAll(ValueOf);
  ASSERT_EQ(Next()->name(), "sft");
  Done("sft", "loss is not finite");
  EXPECT_EQ(coordinator_->error(), "stage sft: loss is not finite");
  Make(SmallJob({"evaluate.players=[]"}));
  PlayAll(ValueOf);
  (void)Next();
  Done("sft");
  EXPECT_EQ(coordinator_->error(), "stage sft: the learner finished without publishing weights");
}

TEST_F(CoordinatorTest, PublishIsCheckedAndRepeatable) {
  Make(SmallJob());
  EXPECT_FALSE(Publish("sft", "sft", 1).ok());  // nothing is being trained
  PlayAll(ValueOf);
  (void)Next();
  EXPECT_TRUE(Publish("sft", "sft", 2).ok());
  EXPECT_TRUE(Publish("sft", "sft", 2).ok());
  EXPECT_FALSE(Publish("sft", "value", 1).ok());
  EXPECT_FALSE(coordinator_->Publish({}, now_).ok());
}

TEST_F(CoordinatorTest, AStoreThatFailsOrIsEmptyFailsTheStage) {
  store_.failure = Unavailable("store is gone");
  Make(SmallJob({"evaluate.players=[]"}));
  PlayAll(ValueOf);
  EXPECT_EQ(coordinator_->error(), "stage sft: store is gone");
  store_.failure = {};
  Make(SmallJob({"evaluate.players=[]"}));
}

TEST_F(CoordinatorTest, GoesOnWhereTheOneBeforeItWas) {
  journal_folder_.emplace();
  const Job job = SmallJob({"online.rounds=1", "online.episodes=40", "compare=[sft]", "evaluate.players=[]"});
  Make(job);
  Complete(0, Lease(0).task());
  const v1::RolloutTask held = Lease(1).task();
  Make(job);
  EXPECT_EQ(Lease(1).task().SerializeAsString(), held.SerializeAsString());  // its actor may be at it still
  EXPECT_EQ(Lease(0).task().first_episode(), 40u);
  Complete(1, held);  // under the id that the coordinator before gave it
  PlayAll(ValueOf);
  const auto sft = Next();
  ASSERT_TRUE(sft);
  EXPECT_EQ(sft->version(), 1u);
  store_.Add("late", 0, true, {"offline"});
  Make(job);
  EXPECT_EQ(Next()->SerializeAsString(), sft->SerializeAsString());  // watermark and all
  ASSERT_TRUE(Publish("sft", "sft", 1).ok());
  Make(job);
  ASSERT_TRUE(Publish("sft", "sft", 1).ok());  // trained to its end again
  EXPECT_EQ(Next()->name(), "sft");
  Done("sft");
  Make(job);
  const auto q_sft = Next();
  ASSERT_EQ(q_sft->name(), "q_sft");
  EXPECT_EQ(q_sft->version(), 2u);
  EXPECT_EQ(q_sft->initial(0).path(), "/weights/sft-1");
  EXPECT_FALSE(Publish("sft", "sft", 3).ok());  // done is done
  Train(*q_sft);
  PlayAll(ValueOf);
  Make(job);
  Train(*Next());
  Train(*Next());
  PlayAll(ValueOf);
  CheckRollouts();
  EXPECT_EQ(coordinator_->state(), Coordinator::State::kSucceeded) << coordinator_->error();
  const std::string result = coordinator_->result_json();
  Make(job);
  const auto table = [](const std::string& json) { return nlohmann::json::parse(json)["table"]; };
  const auto losses = [](const std::string& json) { return nlohmann::json::parse(json)["stages"].back()["metrics"]; };
  EXPECT_EQ(table(coordinator_->result_json()), table(result));
  EXPECT_EQ(losses(coordinator_->result_json()), losses(result));
}

TEST_F(CoordinatorTest, ATaskGivenOutAgainIsPlayedWithThePolicyItWasFirstGivenWith) {
  journal_folder_.emplace();
  const Job job = SmallJob({"online.rounds=2", "online.max_staleness=1", "online.episodes=40", "compare=[]",
                            "evaluate.players=[]", "evaluate.episodes=0"});
  Make(job);
  PlayAll(ValueOf);
  Train(*Next());
  Train(*Next());
  // Round 2 is begun with what there is; then round 1 is learned from.
  while (true) {
    const v1::RolloutTask task = Lease(0).task();
    if (task.stage() == "online-2") break;
    store_.Add(StrCat("x", task.id()), 0, true, {"online"});
    Complete(0, task);
  }
  Train(*Next());
  Train(*Next());
  Make(job);
  EXPECT_EQ(Lease(0).task().policy().weights(1).path(), "/weights/value-2");
  EXPECT_EQ(Lease(1).task().policy().weights(1).path(), "/weights/value-4");
}

TEST_F(CoordinatorTest, StopReachesEveryone) {
  Make(SmallJob());
  coordinator_->Stop("interrupted");
  EXPECT_TRUE(Lease(0).stop());
  EXPECT_TRUE(coordinator_->NextStage({}, now_).stop());
  v1::HeartbeatRequest heartbeat;
  heartbeat.set_role("learner");
  EXPECT_TRUE(coordinator_->Heartbeat(heartbeat, now_).stop());
  EXPECT_EQ(coordinator_->GetStatus({}, now_).state(), "stopping");
}

TEST_F(CoordinatorTest, TheNewestFinishedPolicyPlays) {
  Make(SmallJob(
      {"online.rounds=2", "online.max_staleness=1", "online.episodes=40", "compare=[]", "evaluate.players=[]"}));
  PlayAll(ValueOf);
  Train(*Next());
  Train(*Next());
  std::map<std::string, std::string> acting;
  while (true) {
    const auto reply = Lease(0);
    if (!reply.has_task()) break;
    acting[reply.task().stage()] = reply.task().policy().weights(1).path();
    store_.Add(StrCat("x", reply.task().id()), 0, true, {"online"});
    Complete(0, reply.task());
  }
  // Round 2 may begin before round 1 was learned from: it plays what there is.
  EXPECT_EQ(acting["online-1"], "/weights/value-2");
  EXPECT_EQ(acting["online-2"], "/weights/value-2");
}

TEST_F(CoordinatorTest, WhatPrometheusAndThePageSeeOfIt) {
  Make(SmallJob());
  const auto hello = [&](const char* role, uint32_t index, int64_t pid) {
    v1::HelloRequest request;
    request.set_role(role);
    request.set_index(index);
    request.set_pid(pid);
    coordinator_->Hello(request, now_);
  };
  hello("learner", 0, 10);
  hello("actor", 0, 11);
  hello("actor", 1, 12);
  const auto shows = [&](const std::string& line) {
    coordinator_->UpdateGauges(now_);
    return metrics_.Text().find("\nquern_coordinator_" + line + "\n") != std::string::npos;
  };
  EXPECT_TRUE(shows("members{role=\"actor\",state=\"alive\"} 2"));
  EXPECT_TRUE(shows("job_state{state=\"running\"} 1"));
  EXPECT_TRUE(shows("job_state{state=\"failed\"} 0"));
  EXPECT_TRUE(shows("stage_progress_ratio{stage=\"collect:random\"} 0"));
  EXPECT_TRUE(shows("task_failures_total 0"));
  EXPECT_TRUE(events_.empty());

  const v1::LeaseTaskReply first = Lease(0);
  ASSERT_TRUE(first.has_task());
  Complete(0, first.task());
  EXPECT_EQ(first.task().stage(), "eval:player:best");
  EXPECT_TRUE(shows("stage_progress_ratio{stage=\"eval:player:best\"} 0.5"));
  const v1::LeaseTaskReply second = Lease(1);
  hello("actor", 1, 13);
  EXPECT_TRUE(shows("restarts_total{role=\"actor\"} 1"));
  EXPECT_TRUE(shows("task_failures_total 1"));
  ASSERT_EQ(events_.size(), 2u);
  EXPECT_EQ(events_[0], "actor 1 has started again");
  EXPECT_NE(events_[1].find("given out again"), std::string::npos) << events_[1];
  now_ += seconds(7);
  EXPECT_TRUE(shows("seconds_without_progress 7"));
  EXPECT_TRUE(shows("heartbeat_age_seconds{role=\"learner\"} 7"));
  coordinator_->Stop("enough");
  EXPECT_TRUE(shows("job_state{state=\"stopping\"} 1"));
  EXPECT_TRUE(shows("seconds_without_progress 0"));
}

// The fixture's actor 0 comes back as another process; with `episode` it had said that it is at it.
TEST_F(CoordinatorTest, AnEpisodeThatKillsItsActorsIsLeftOut) {
  journal_folder_.emplace();
  Make(SmallJob({"actors=1"}));
  const auto start = [&](int64_t pid) {
    v1::HelloRequest hello;
    hello.set_role("actor");
    hello.set_pid(pid);
    coordinator_->Hello(hello, now_);
    Pass(seconds(5));
  };
  const auto at = [&](uint64_t episode) {
    v1::HeartbeatRequest heartbeat;
    heartbeat.set_role("actor");
    heartbeat.set_episode(episode + 1);
    coordinator_->Heartbeat(heartbeat, now_);
  };
  start(1);
  const v1::RolloutTask first = Lease(0).task();
  EXPECT_FALSE(first.one_at_a_time());
  start(2);
  EXPECT_TRUE(Lease(0).task().one_at_a_time());
  EXPECT_EQ(Lease(0).task().id(), first.id());
  for (int64_t other = 0; other < 6; ++other) {  // dies at another episode each time: nobody's fault
    at(first.first_episode() + 5 + static_cast<uint64_t>(other));
    start(3 + other);
    EXPECT_EQ(Lease(0).task().skip_size(), 0);
  }
  at(first.first_episode() + 3);
  start(20);
  EXPECT_EQ(Lease(0).task().skip_size(), 0);
  at(first.first_episode() + 3);
  start(21);
  ASSERT_EQ(Lease(0).task().skip_size(), 1);
  EXPECT_EQ(Lease(0).task().skip(0), first.first_episode() + 3);
  EXPECT_EQ(coordinator_->state(), Coordinator::State::kRunning);
  EXPECT_NE(events_.back().find("episode 3 killed 3 actors"), std::string::npos) << events_.back();

  Make(SmallJob({"actors=1"}));  // the coordinator started again knows it
  ASSERT_EQ(Lease(0).task().skip_size(), 1);
  start(30);
  at(first.first_episode() + 4);
  start(31);
  ASSERT_TRUE(Lease(0).has_task());
  at(first.first_episode() + 4);
  start(32);
  EXPECT_EQ(coordinator_->state(), Coordinator::State::kFailed);  // one in a hundred is allowed
  EXPECT_NE(coordinator_->error().find("max_quarantined allows 1"), std::string::npos) << coordinator_->error();
}

TEST_F(CoordinatorTest, AJobThatFailsLeavesAFlightRecord) {
  const TemporaryFolder folder;
  run_directory_ = folder.path();
  Make(SmallJob());
  const v1::RolloutTask task = Lease(1).task();
  for (int i = 0; i < 3; ++i) {
    Complete(1, task, "the environment is broken");
    Pass(seconds(5));
    (void)Lease(1);
  }
  ASSERT_EQ(coordinator_->state(), Coordinator::State::kFailed);
  const auto record = nlohmann::json::parse(*ReadFile(JoinPath(folder.path(), "flight_record.json")));
  EXPECT_EQ(record["error"], coordinator_->error());
  ASSERT_GT(record["last"].size(), 4u);
  EXPECT_NE(record["last"].back()["what"].get<std::string>().find("the environment is broken"), std::string::npos);
  EXPECT_NE(record["last"].front()["what"].get<std::string>().find("actor 1 is given episodes 0 to"),
            std::string::npos);
}

}  // namespace
}  // namespace quern
