#include "service/chains.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "tests/service/test_jobs.h"

namespace quern {
namespace {

std::vector<std::string> StagesOf(const v1::ChainProgram& program) {
  std::vector<std::string> names;
  for (const v1::ChainStageSpec& stage : program.stages()) names.push_back(stage.name());
  return names;
}

TEST(Chains, AnArmIsTheSameProgramWithOtherStages) {
  const Job job = SmallJob({"method=regenesis", "compare=[majority, star]", "regenesis.self_check=true",
                            "regenesis.plan={max_tokens: 9, temperature: 0.1, stop: ';'}", "regenesis.max_tokens=30"});
  EXPECT_EQ(ArmsOf(job), (std::vector<std::string>{"star", "majority", "regenesis"}));
  const v1::ChainProgram full = *MakeChainProgram(job, "regenesis");
  EXPECT_EQ(StagesOf(full), (std::vector<std::string>{"adapt", "plan", "solve", "check"}));
  EXPECT_EQ(full.guidelines_size(), 25);
  EXPECT_EQ(full.chains(), 25u);
  EXPECT_EQ(full.hinted_chains(), 25u);
  EXPECT_EQ(full.max_kept(), 5u);
  EXPECT_EQ(full.opener().back(), '\n');
  EXPECT_FLOAT_EQ(full.stages(0).sampling().temperature(), 0.85f);
  EXPECT_FLOAT_EQ(full.stages(1).sampling().temperature(), 0.1f);
  EXPECT_FLOAT_EQ(full.stages(1).sampling().top_p(), 0.9f);
  EXPECT_EQ(full.stages(1).max_tokens(), 9u);
  EXPECT_EQ(full.stages(1).stop(), ";");
  EXPECT_EQ(full.stages(2).max_tokens(), 30u);
  const v1::ChainProgram star = *MakeChainProgram(job, "star"), vote = *MakeChainProgram(job, "majority");
  for (const v1::ChainProgram* program : {&star, &vote}) {
    EXPECT_EQ(StagesOf(*program), std::vector<std::string>{"solve"});
    EXPECT_EQ(program->stages(0).prompt(), "{prompt}{hint}");
    EXPECT_EQ(program->guidelines_size(), 0);
    EXPECT_EQ(program->chains(), 25u);
  }
  EXPECT_FALSE(star.majority());
  EXPECT_EQ(star.hinted_chains(), 25u);
  EXPECT_TRUE(vote.majority());
  EXPECT_EQ(vote.hinted_chains(), 0u);
  EXPECT_TRUE(MakeChainProgram(SmallJob({"method=regenesis", "compare=[]", "regenesis.labels=majority"}), "regenesis")
                  ->majority());
}

TEST(Chains, OwnTemplatesAndGuidelinesComeFromFiles) {
  const std::string folder = ::testing::TempDir();
  ASSERT_TRUE(WriteFileAtomic(folder + "/templates.txt", "[solve]\n{guideline}{prompt}\n[opener]\n").ok());
  ASSERT_TRUE(WriteFileAtomic(folder + "/guidelines.txt", "# two\n<a>\n<b>\n").ok());
  const std::vector<std::string> overrides = {"method=regenesis", "compare=[]", "regenesis.stages=[solve]",
                                              "regenesis.templates=" + folder + "/templates.txt",
                                              "regenesis.guidelines=" + folder + "/guidelines.txt"};
  std::vector<std::string> without_hint = overrides;
  without_hint.emplace_back("regenesis.hint=false");
  const Result<v1::ChainProgram> program = MakeChainProgram(SmallJob(without_hint), "regenesis");
  ASSERT_TRUE(program.ok()) << program.status().ToString();
  EXPECT_EQ(program->stages(0).prompt(), "{guideline}{prompt}");
  EXPECT_EQ(program->guidelines(1), "<b>");
  EXPECT_EQ(program->opener(), "");
  const Result<v1::ChainProgram> with_hint = MakeChainProgram(SmallJob(overrides), "regenesis");
  EXPECT_EQ(with_hint.status().message(),
            "regenesis.hint is on, but " + folder +
                "/templates.txt shows no {hint} in a stage, or no {answer} in [hint]; set "
                "regenesis.hint=false");
}

TEST(Chains, ASetChangesOptionsOrTheEnvironment) {
  const Job job = SmallJob({"environment.words=w.txt",
                            "evaluate.sets=[{name: a, words: v.txt}, {name: b, environment: "
                            "digits, max: 4}]"});
  const v1::EnvironmentSpec a = EnvironmentWith(job, job.evaluate.sets[0].from),
                            b = EnvironmentWith(job, job.evaluate.sets[1].from);
  EXPECT_EQ(a.name(), "wordle");
  EXPECT_EQ(a.options().at("words"), "v.txt");
  EXPECT_EQ(b.name(), "digits");
  EXPECT_EQ(b.options().size(), 1u);
}

}  // namespace
}  // namespace quern
