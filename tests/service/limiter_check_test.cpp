#include "service/limiter_check.h"

#include "tests/service/test_jobs.h"

namespace quern {
namespace {

const PlannedStage& StageOf(const Plan& plan, const std::string& name) {
  for (const PlannedStage& stage : plan.stages)
    if (stage.name == name) return stage;
  ADD_FAILURE() << "no stage " << name;
  return plan.stages.front();
}

std::vector<std::string> Feeding(const Plan& plan, const std::string& name) {
  std::vector<std::string> names;
  for (const PlannedStage* stage : StagesThatFeed(plan, StageOf(plan, name))) names.push_back(stage->name);
  return names;
}

TEST(LimiterCheck, AStageMayWaitForWhatDoesNotWaitForIt) {
  const std::vector<std::string> job = {"method=sft", "compare=[]", "online.rounds=3",
                                        "data.heldout=[{player: random, episodes: 5}]"};
  std::vector<std::string> stale = job;
  stale.push_back("online.max_staleness=1");
  std::vector<std::string> fresh = job;
  fresh.push_back("online.max_staleness=0");
  using Names = std::vector<std::string>;
  const Plan ahead = MakePlan(SmallJob(stale)), behind = MakePlan(SmallJob(fresh));
  EXPECT_EQ(Feeding(ahead, "sft"), Names({"collect:random"})) << "play begins with what it publishes";
  EXPECT_EQ(Feeding(ahead, "online-1:sft"), Names({"collect:random", "online-1", "online-2"}));
  EXPECT_EQ(Feeding(behind, "sft"), Names({"collect:random"}));
  EXPECT_EQ(Feeding(behind, "online-1:sft"), Names({"collect:random", "online-1"}));
}

TEST(LimiterCheck, WhatAJobCanNeverStoreIsFoundBeforeItStarts) {
  const auto find = [](const std::string& limit, std::string& key) {
    Job job = SmallJob({"method=sft", "compare=[]", "sft.max_steps=10", "sft.batch_size=10", "online.rounds=2",
                        "online.episodes=50", "online.max_staleness=0"});
    if (limit == "none") return FindStarvation(MakePlan(job), key);
    if (limit == "min") job.sft.min_records = 101;
    if (limit == "just") job.sft.samples_per_insert = 1;
    if (limit == "ratio") job.sft.samples_per_insert = 0.99;
    return FindStarvation(MakePlan(job), key);
  };
  std::string key;
  EXPECT_EQ(find("none", key), "");
  EXPECT_EQ(find("just", key), "") << "100 draws of 100 records";
  EXPECT_NE(find("ratio", key).find("sft needs 102 records, but no more than 100"), std::string::npos);
  EXPECT_EQ(key, "sft.samples_per_insert");
  EXPECT_NE(find("min", key).find("sft needs 101 records, but no more than 100"), std::string::npos);
  EXPECT_EQ(key, "sft.min_records");
}

}  // namespace
}  // namespace quern
