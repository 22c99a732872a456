#include "service/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/service/test_jobs.h"

namespace quern {
namespace {

const PlannedStage& Find(const Plan& plan, const std::string& name) {
  for (const PlannedStage& stage : plan.stages)
    if (stage.name == name) return stage;
  ADD_FAILURE() << "no stage " << name;
  return plan.stages.front();
}

std::vector<std::string> Names(const Plan& plan) {
  std::vector<std::string> names;
  for (const PlannedStage& stage : plan.stages) names.push_back(stage.name);
  return names;
}

TEST(Plan, OfflineStagesAndRows) {
  const Plan plan = MakePlan(SmallJob());
  EXPECT_EQ(Names(plan), (std::vector<std::string>{"eval:player:best", "collect:random", "sft", "filtered_sft", "q_sft",
                                                   "eval:sft", "eval:filtered_sft", "eval:q_sft", "check:rollouts"}));
  EXPECT_EQ(Find(plan, "sft").after, std::vector<std::string>{"collect:random"});
  EXPECT_EQ(Find(plan, "q_sft").initial, (std::vector<std::string>{"sft", "sft"}));
  EXPECT_EQ(Find(plan, "eval:q_sft").weights, (std::vector<std::string>{"sft", "q_sft"}));
  EXPECT_EQ(Find(plan, "eval:q_sft").after, (std::vector<std::string>{"sft", "q_sft"}));
  std::vector<std::string> labels;
  for (const PlannedRow& row : plan.rows) labels.push_back(row.label);
  EXPECT_EQ(labels,
            (std::vector<std::string>{"data mean", "SFT", "filtered SFT", "Q-SFT", "best known player (best)"}));
}

TEST(Plan, TrainingNeverSeesEvaluation) {
  const Plan plan = MakePlan(SmallJob({"online.rounds=2"}));
  for (const PlannedStage& stage : plan.stages) {
    const bool tagged = std::find(stage.tags.begin(), stage.tags.end(), kEvaluationTag) != stage.tags.end();
    EXPECT_EQ(tagged, stage.evaluation) << stage.name;
    if (stage.kind != PlannedStage::Kind::kTrain) continue;
    const auto options = nlohmann::json::parse(stage.options_json);
    EXPECT_EQ(options["without_tags"], nlohmann::json::array({kEvaluationTag, "heldout"})) << stage.name;
    EXPECT_EQ(options["mixture"]["policy"], "fixed") << stage.name;
  }
}

TEST(Plan, OnlineRoundsAlternateOrOverlap) {
  const Plan in_turn = MakePlan(SmallJob({"online.rounds=3"}));
  EXPECT_EQ(Find(in_turn, "online-1").after, (std::vector<std::string>{"sft", "q_sft"}));
  EXPECT_EQ(Find(in_turn, "online-2").after, (std::vector<std::string>{"online-1:sft", "online-1:q_sft", "online-1"}));
  EXPECT_EQ(Find(in_turn, "online-2:sft").initial, std::vector<std::string>{"online-1:sft"});
  EXPECT_EQ(Find(in_turn, "online-2:q_sft").initial, (std::vector<std::string>{"online-2:sft", "online-1:q_sft"}));
  EXPECT_EQ(Find(in_turn, "eval:q_sft_online").weights, (std::vector<std::string>{"online-3:sft", "online-3:q_sft"}));
  const Plan overlapped = MakePlan(SmallJob({"online.rounds=3", "online.max_staleness=1"}));
  EXPECT_EQ(Find(overlapped, "online-2").after, (std::vector<std::string>{"sft", "q_sft", "online-1"}));
  EXPECT_EQ(Find(overlapped, "online-3").after,
            (std::vector<std::string>{"online-1:sft", "online-1:q_sft", "online-2"}));
}

TEST(Plan, OnlineWithoutOfflineDataStartsFromTheUntrainedModel) {
  const Plan plan = MakePlan(SmallJob({"data.collect=[]", "online.rounds=2", "method=filtered_sft", "compare=[]"}));
  EXPECT_EQ(Names(plan),
            (std::vector<std::string>{"eval:player:best", "eval:base", "online-1", "online-1:filtered_sft", "online-2",
                                      "online-2:filtered_sft", "eval:filtered_sft_online", "check:rollouts"}));
  EXPECT_EQ(Find(plan, "online-1").after, std::vector<std::string>{});
  EXPECT_EQ(Find(plan, "online-1:filtered_sft").initial, std::vector<std::string>{kBaseModel});
  EXPECT_EQ(Find(plan, "online-1:filtered_sft").after, std::vector<std::string>{"online-1"});
  const Plan q_sft = MakePlan(SmallJob({"data.collect=[]", "online.rounds=1"}));
  EXPECT_EQ(Find(q_sft, "online-1:q_sft").initial, (std::vector<std::string>{"online-1:sft", "online-1:sft"}));
}

TEST(Plan, OptionsCarryTheMethodsFieldsAndOnlineChanges) {
  const Plan plan = MakePlan(SmallJob({"online.rounds=1", "qsft.polyak=0.5", "qsft.max_steps=9",
                                       "online.qsft.max_steps=4", "online.qsft.learning_rate=0.5"}));
  const auto offline = nlohmann::json::parse(Find(plan, "q_sft").options_json);
  EXPECT_EQ(offline["polyak"], 0.5);
  EXPECT_EQ(offline["max_steps"], 9);
  EXPECT_EQ(offline["weights_name"], "value");
  EXPECT_EQ(offline["generation_depth"], 1);
  const auto online = nlohmann::json::parse(Find(plan, "online-1:q_sft").options_json);
  EXPECT_EQ(online["max_steps"], 4);
  EXPECT_EQ(online["learning_rate"], 0.5);
  EXPECT_EQ(online["generation_depth"], 2);
  EXPECT_EQ(Find(plan, "online-1:q_sft").steps, 4u);
}

TEST(Plan, HeldOutRecordsAreScoredForModelsThatAreOne) {
  const Plan plan = MakePlan(SmallJob(
      {"data.heldout=[{player: random, episodes: 50}]", "mixture.policy=controller", "mixture.probe_steps=5"}));
  const PlannedStage& heldout = Find(plan, "heldout");
  EXPECT_EQ(heldout.tags, (std::vector<std::string>{"heldout", "player:random"}));
  EXPECT_EQ(Find(plan, "sft").after, (std::vector<std::string>{"collect:random", "heldout"}));
  EXPECT_EQ(nlohmann::json::parse(Find(plan, "sft").options_json)["mixture"]["policy"], "controller");
  const Plan imported = MakePlan(SmallJob({"data.import=[a.jsonl]", "data.heldout_import=[b.jsonl]"}));
  EXPECT_EQ(Find(imported, "import").tags, std::vector<std::string>{"offline"});
  EXPECT_EQ(Find(imported, "heldout-import").tags, std::vector<std::string>{"heldout"});
  const PlannedStage& score = Find(plan, "score:sft");
  EXPECT_EQ(score.kind, PlannedStage::Kind::kScore);
  EXPECT_EQ(score.initial, std::vector<std::string>{"sft"});
  EXPECT_EQ(score.after, (std::vector<std::string>{"sft", "heldout"}));
  for (const PlannedRow& row : plan.rows) {
    const bool one_model = row.policy == "sft" || row.policy == "filtered_sft";
    EXPECT_EQ(row.score, one_model ? "score:" + row.policy : "") << row.policy;
  }
}

TEST(Plan, TheLearnerComputesAgainWhatEveryVersionThatPlayedStored) {
  const PlannedStage check = MakePlan(SmallJob({"online.rounds=2"})).stages.back();
  EXPECT_EQ(check.name, "check:rollouts");
  EXPECT_EQ(check.kind, PlannedStage::Kind::kScore);
  EXPECT_EQ(check.initial, (std::vector<std::string>{"sft", "filtered_sft", "q_sft", "online-2:sft", "online-2:q_sft",
                                                     "online-1:sft", "online-1:q_sft"}));
  for (const std::string played :
       {"eval:sft", "eval:q_sft", "online-1", "online-2", "eval:q_sft_online", "online-1:sft"})
    EXPECT_NE(std::find(check.after.begin(), check.after.end(), played), check.after.end()) << played;
  EXPECT_EQ(nlohmann::json::parse(check.options_json)["support_top_p"], SmallJob().qsft.support_top_p);
  // What the last round made did not play.
  const Plan unseen = MakePlan(SmallJob({"online.rounds=1", "evaluate.episodes=0", "online.max_staleness=3"}));
  EXPECT_EQ(unseen.stages.back().initial, (std::vector<std::string>{"sft", "q_sft"}));
  // Under a compression the numbers are others; scripted players have none.
  EXPECT_NE(MakePlan(SmallJob({"compression.key_channels=4"})).stages.back().name, "check:rollouts");
  EXPECT_NE(MakePlan(SmallJob({"evaluate.episodes=0"})).stages.back().name, "check:rollouts");
}

TEST(Plan, CollapseTrainsEveryRuleOnEveryNumberOfRealRecords) {
  const Plan plan = MakePlan(SmallJob(
      {"method=sft", "compare=[]", "data.heldout=[{player: random, episodes: 50}]", "sft.batch_size=10",
       "collapse={real_records: [40, 80], first_records: 20, generated: 60, passes: 5, rules: [{policy: real_only}, "
       "{policy: fixed, share: 0.25}]}",
       "evaluate.episodes=0"}));
  EXPECT_EQ(Names(plan), (std::vector<std::string>{"collect:random", "heldout", "first", "score:first", "generated",
                                                   "real_only@40", "score:real_only@40", "real_only@80",
                                                   "score:real_only@80", "fixed_0.25@40", "score:fixed_0.25@40",
                                                   "fixed_0.25@80", "score:fixed_0.25@80", "check:rollouts"}));
  EXPECT_EQ(Find(plan, "first").steps, 10u);
  EXPECT_EQ(Find(plan, "generated").weights, std::vector<std::string>{"first"});
  const PlannedStage& fixed = Find(plan, "fixed_0.25@80");
  EXPECT_EQ(fixed.steps, 40u);
  EXPECT_EQ(fixed.initial, std::vector<std::string>{kBaseModel});
  EXPECT_EQ(fixed.after, (std::vector<std::string>{"generated", "heldout"}));
  const auto mixture = nlohmann::json::parse(fixed.options_json)["mixture"];
  EXPECT_EQ(mixture["share"], 0.25);
  EXPECT_EQ(mixture["real_records"], 80);
  EXPECT_EQ(plan.rows.back().rule, "fixed_0.25");
  EXPECT_EQ(plan.rows.back().real_records, 80);
}

TEST(Plan, RoundsOfChainsGoOnFromTheNewestWeightsInEveryArm) {
  const Plan plan = MakePlan(SmallJob({"method=regenesis", "compare=[star]", "regenesis.rounds=2",
                                       "regenesis.questions=10", "regenesis.max_steps=7", "regenesis.warmup_steps=3",
                                       "evaluate.players=[]", "evaluate.sets=[{name: in}, {name: out, episodes: 5}]"}));
  EXPECT_EQ(Names(plan), (std::vector<std::string>{"collect:random",
                                                   "sft",
                                                   "eval:sft@in",
                                                   "eval:sft@out",
                                                   "star-1",
                                                   "star-1:sft",
                                                   "eval:star-1@in",
                                                   "eval:star-1@out",
                                                   "star-2",
                                                   "star-2:sft",
                                                   "eval:star-2@in",
                                                   "eval:star-2@out",
                                                   "regenesis-1",
                                                   "regenesis-1:sft",
                                                   "eval:regenesis-1@in",
                                                   "eval:regenesis-1@out",
                                                   "regenesis-2",
                                                   "regenesis-2:sft",
                                                   "eval:regenesis-2@in",
                                                   "eval:regenesis-2@out",
                                                   "check:rollouts"}));
  for (const std::string arm : {"star", "regenesis"}) {
    const std::string other = arm == "star" ? "regenesis" : "star";
    const PlannedStage &first = Find(plan, arm + "-1"), &second = Find(plan, arm + "-2");
    EXPECT_EQ(first.weights, std::vector<std::string>{"sft"});
    EXPECT_EQ(second.weights, std::vector<std::string>{arm + "-1:sft"});
    EXPECT_EQ(second.after, second.weights);
    EXPECT_EQ(second.tags, (std::vector<std::string>{arm, arm + "-2", "round-2"}));
    EXPECT_EQ(second.first_question, 10u);
    const PlannedStage& train = Find(plan, arm + "-2:sft");
    EXPECT_EQ(train.initial, second.weights);
    EXPECT_EQ(train.steps, 7u);
    const auto options = nlohmann::json::parse(train.options_json);
    EXPECT_EQ(options["generation_depth"], 3);
    EXPECT_EQ(options["warmup_steps"], 3);
    // Neither what was not kept nor the other arm's paths nor, by default, the round before.
    std::set<std::string> without = options["without_tags"];
    for (const std::string& tag : {std::string(kEvaluationTag), std::string("not_kept"), other, arm + "-1"})
      EXPECT_TRUE(without.contains(tag)) << tag;
    EXPECT_FALSE(without.contains(arm) || without.contains(arm + "-2") || without.contains("kept"));
  }
  EXPECT_EQ(Find(plan, "eval:star-2@out").episodes, 5u);
  EXPECT_EQ(Find(plan, "eval:star-2@in").episodes, 30u);
  EXPECT_EQ(Find(plan, "eval:star-2@in").seed, Find(plan, "eval:sft@in").seed);
  const PlannedRow& row = plan.rows.back();
  EXPECT_EQ(row.set + " " + row.arm + " " + row.label, "out regenesis ReGenesis, round 2");
  EXPECT_EQ(row.round, 2);
  const Plan all =
      MakePlan(SmallJob({"method=regenesis", "compare=[]", "regenesis.rounds=2", "regenesis.train_on=all"}));
  const auto options = nlohmann::json::parse(Find(all, "regenesis-2:sft").options_json);
  EXPECT_EQ(std::set<std::string>(options["without_tags"]).contains("regenesis-1"), false);
  // Without data the rounds start from the model as it is.
  const Plan bare = MakePlan(SmallJob({"method=regenesis", "compare=[]", "data.collect=[]"}));
  EXPECT_EQ(Find(bare, "regenesis-1").weights, std::vector<std::string>{kBaseModel});
  EXPECT_EQ(Find(bare, "eval:base").after, std::vector<std::string>{});
}

TEST(Plan, NamesAndSeedsAreDistinctAndOrderRespectsAfter) {
  for (const auto& overrides : std::vector<std::vector<std::string>>{
           {},
           {"online.rounds=2"},
           {"online.rounds=3", "online.max_staleness=2"},
           {"method=sft", "compare=[]", "online.rounds=2"},
           {"method=regenesis", "compare=[majority, star]", "regenesis.rounds=3"},
           {"data.collect=[{player: random, episodes: 5}, {player: random, episodes: 6}]", "data.import=[/x.jsonl]"}}) {
    const Plan plan = MakePlan(SmallJob(overrides));
    std::set<std::string> names;
    std::set<uint64_t> seeds;
    for (const PlannedStage& stage : plan.stages) {
      for (const std::string& dependency : stage.after)
        EXPECT_TRUE(names.contains(dependency)) << stage.name << " " << dependency;
      EXPECT_TRUE(names.insert(stage.name).second) << stage.name;
      if (!stage.evaluation) {
        EXPECT_TRUE(seeds.insert(stage.seed).second) << stage.name;
      }
    }
  }
  EXPECT_NE(MakePlan(SmallJob({"seed=1"})).stages[1].seed, MakePlan(SmallJob({"seed=2"})).stages[1].seed);
  EXPECT_EQ(MakePlan(SmallJob({"seed=1"})).stages[0].seed,
            MakePlan(SmallJob({"seed=2"})).stages[0].seed);  // evaluation
}

}  // namespace
}  // namespace quern
