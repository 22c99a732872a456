#include "learner/train_stage.h"

#include <gtest/gtest.h>

namespace quern {
namespace {

Result<TrainStageOptions> Parse(const std::string& options) {
  v1::TrainStage stage;
  stage.set_name("sft");
  stage.set_method("sft");
  stage.set_options_json(options);
  return ParseTrainStage(stage);
}

TEST(TrainStage, TheMixtureIsReadWhole) {
  const auto o = Parse(
      R"({"mixture": {"policy": "scheduled", "schedule": [{"at": 10, "share": 0.5}, {"at": 1000, "share": 0.1}],
          "schedule_over": "real_records", "rho": 0.2, "omega_max": 0.4, "final_phase": 0.05, "sigma2d": 12,
          "c2": {"verified": 0.1, "unverified": 0.7}, "probe_steps": 30, "probe_sizes": [8, 16], "checks": 2,
          "follow_tolerance": 0.5, "hinted_max": 0.1, "real_records": 77}})");
  ASSERT_TRUE(o.ok()) << o.status().ToString();
  const MixtureOptions& m = o->mixture;
  EXPECT_EQ(m.policy, MixtureOptions::Policy::kScheduled);
  ASSERT_EQ(m.schedule.size(), 2u);
  EXPECT_EQ(m.schedule[1].at, 1000);
  EXPECT_EQ(m.schedule[1].share, 0.1);
  EXPECT_TRUE(m.schedule_by_real);
  EXPECT_EQ(m.sigma2d, 12);
  EXPECT_EQ(m.c2[kVerifiedData], 0.1);
  EXPECT_LT(m.c2[kHintedData], 0) << "to be measured";
  EXPECT_EQ(m.c2[kUnverifiedData], 0.7);
  EXPECT_EQ(m.probe_sizes, (std::vector<int64_t>{8, 16}));
  EXPECT_EQ(m.real_records, 77);
  EXPECT_EQ(o->mixture_checks, 2);
  EXPECT_EQ(Parse("{}")->mixture.policy, MixtureOptions::Policy::kFixed);
}

TEST(TrainStage, MistakesNameTheKey) {
  for (const auto& [options, named] : std::vector<std::pair<std::string, std::string>>{
           {R"({"mixture": {"shares": 1}})", "mixture: unknown option shares"},
           {R"({"mixture": {"share": "much"}})", "mixture: option share has the wrong type"},
           {R"({"mixture": {"c2": {"real": 0}}})", "mixture.c2: unknown option real"},
           {R"({"mixture": {"schedule": [{"from": 0}]}})", "mixture.schedule: unknown option from"},
           {R"({"mixture": {"schedule": [3]}})", "mixture.schedule"},
           {R"({"mixture": {"policy": "scheduled"}})", "mixture.schedule is empty"},
           {R"({"mixture": 3})", "mixture is not an object"}}) {
    const auto o = Parse(options);
    ASSERT_FALSE(o.ok()) << options;
    EXPECT_NE(o.status().message().find(named), std::string::npos) << o.status().message();
  }
}

}  // namespace
}  // namespace quern
