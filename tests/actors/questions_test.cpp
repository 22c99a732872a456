#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "actors/environments/questions.h"
#include "tests/actors/environment_plays.h"

namespace quern {
namespace {

TEST(Questions, PrefixRewardCountsUnits) {
  EXPECT_DOUBLE_EQ(PrefixReward("7,2,6,1", "7,2,6,1", true), 1);
  EXPECT_DOUBLE_EQ(PrefixReward("7,2,6,1", "7,2,6,1", false), 7 / 8.0);  // cut off before the end token
  EXPECT_DOUBLE_EQ(PrefixReward("7,2,6,1,", "7,2,6,1", true), 7 / 8.0);  // went on
  EXPECT_DOUBLE_EQ(PrefixReward("7,2", "7,2,6,1", true), 4 / 8.0);  // stopped early: its end token earns as verl's does
  EXPECT_DOUBLE_EQ(PrefixReward("7,3,6,1", "7,2,6,1", true), 2 / 8.0);  // nothing counts after the first mismatch
  EXPECT_DOUBLE_EQ(PrefixReward("8,2,6,1", "7,2,6,1", true), 0);
  EXPECT_DOUBLE_EQ(PrefixReward("", "7,2,6,1", true), 0);
  EXPECT_DOUBLE_EQ(PrefixReward("", "", true), 1);
  EXPECT_DOUBLE_EQ(PrefixReward("1", "", true), 0);
}

TEST(Questions, DigitsFollowTheRule) {
  const Factory all = Make("digits", {{"tasks", "all"}});
  EXPECT_EQ(all->task_count(), 900u);
  const Factory exact = Make("digits", {{"tasks", "all"}, {"match", "exact"}});
  for (uint64_t seed = 0; seed < 900; ++seed) {
    EXPECT_EQ(Play(*all, "best", seed).total, 1);
    EXPECT_EQ(Play(*exact, "best", seed).total, 1);  // nothing at all is an answer too
  }
  const Stats random = Measure(*all, "random", 900), noisy = Measure(*all, "best", 900, {{"noise", "0.5"}});
  Print("digits: random", random);
  Print("digits: best noise 0.5", noisy);
  EXPECT_LT(random.mean + 0.1, noisy.mean);

  std::set<std::string> train, test;
  for (auto [split, tasks] : {std::pair{"train", &train}, std::pair{"test", &test}}) {
    const Factory factory = Make("digits", {{"tasks", "all"}, {"split", split}});
    auto environment = factory->NewEnvironment();
    for (uint64_t seed = 0; seed < factory->task_count(); ++seed) {
      environment->Reset(seed);
      tasks->insert(environment->task_id());
    }
  }
  EXPECT_EQ(train.size() + test.size(), 900u);
  EXPECT_NEAR(static_cast<double>(test.size()), 180, 40);
  for (const std::string& task : test) EXPECT_EQ(train.count(task), 0u) << task;

  auto environment = all->NewEnvironment();
  uint64_t seed = 0;
  while (environment->Reset(seed).text != "8,3:9,4\n") ++seed;
  EXPECT_NEAR(environment->Step("7,2,6,1").reward, 1, 1e-12);
  environment->Reset(seed);
  const StepOutcome outcome = environment->Step("7,2,6,9");
  EXPECT_NEAR(outcome.reward, 6 / 8.0, 1e-12);
  EXPECT_TRUE(outcome.done && !outcome.success);
}

TEST(Questions, AnswersTheDigitFixture) {
  const std::string path = SharedData("digit-completion/data/train.jsonl");
  if (!PathExists(path)) GTEST_SKIP() << "no " << path;
  // The generator's own answers, asked for by the fixture's prompts.
  const Factory own = Make("digits", {{"tasks", "all"}});
  const Factory fixture =
      Make("dataset", {{"file", path}, {"tasks", "all"}, {"grader", "prefix"}, {"max_tokens", "32"}, {"suffix", "\n"}});
  EXPECT_EQ(fixture->task_count(), 736u);  // of 800 rows: 64 stand there twice
  for (uint64_t seed = 0; seed < fixture->task_count(); ++seed) {
    auto environment = fixture->NewEnvironment();
    auto solver = own->NewPlayer("best", {}).value();
    solver->Reset(seed, environment->Reset(seed));
    EXPECT_EQ(environment->Step(solver->Act()).reward, 1) << environment->task_id();
  }
}

TEST(Questions, DatasetMatchesAndReadsRows) {
  const TempFile file(
      "quern_questions.jsonl",
      "{\"question\": \"2+2?\", \"answer\": \"It is 2+2.\\n#### 4\"}\n\n{\"prompt\": \"big?\", \"answer\": 1200}\n");
  const auto reward = [&](Options options, uint64_t seed, const std::string& text) {
    options["file"] = file.path();
    options["format"] = "plain";
    options["tasks"] = "all";
    auto environment = Make("dataset", options)->NewEnvironment();
    environment->Reset(seed);
    return environment->Step(text).reward;
  };
  EXPECT_EQ(reward({}, 0, " 4\n"), 1);
  EXPECT_EQ(reward({}, 0, "four"), 0);
  EXPECT_EQ(reward({{"after", "####"}}, 0, "so 2+2\n#### 4"), 1);
  EXPECT_EQ(reward({{"after", "####"}}, 0, "4"), 0);
  EXPECT_EQ(reward({{"grader", "number"}}, 0, "2+2 makes 4."), 1);
  EXPECT_EQ(reward({{"grader", "number"}}, 0, "4, I think, not 5"), 0);
  EXPECT_EQ(reward({{"grader", "number"}}, 0, "no idea"), 0);
  EXPECT_EQ(reward({{"grader", "number"}}, 1, "$1,200.00"), 1);
  EXPECT_EQ(reward({{"grader", "prefix"}, {"end", "\n"}}, 1, "1200\n"), 1);
  EXPECT_EQ(reward({{"grader", "prefix"}, {"end", "\n"}}, 1, "12x"), 2 / 5.0);
  const Factory factory =
      Make("dataset", {{"file", file.path()}, {"format", "plain"}, {"suffix", " A: "}, {"after", "####"}});
  EXPECT_TRUE(factory->NewEnvironment()->Reset(1).text.ends_with("? A: "));
  EXPECT_EQ(
      Play(*Make("dataset", {{"file", file.path()}, {"format", "plain"}, {"grader", "number"}}), "reference", 0).total,
      1);
}

TEST(Questions, DatasetPartsShareNoQuestion) {
  std::string sums;
  for (int i = 0; i < 300; ++i) sums += StrCat(i % 250, "+1=", i % 250 + 1, "\n");  // 50 stand there twice
  const TempFile file("quern_sums.txt", sums);
  const auto ids = [&](Options options) {
    options["file"] = file.path();
    const Factory factory = Make("dataset", options);
    std::vector<std::string> out;
    for (size_t i = 0; i < factory->questions()->size(); ++i) out.push_back(factory->questions()->At(i).id);
    EXPECT_EQ(out.size(), factory->task_count());
    return out;
  };
  const std::vector<std::string> all = ids({});
  ASSERT_EQ(all.size(), 250u);
  EXPECT_EQ(all[7], "7+1");
  const auto begin = ids({{"count", "200"}}), end = ids({{"first", "-50"}});
  EXPECT_EQ(begin, std::vector<std::string>(all.begin(), all.begin() + 200));
  EXPECT_EQ(end, std::vector<std::string>(all.begin() + 200, all.end()));
  EXPECT_EQ(ids({{"first", "10"}, {"count", "3"}}), (std::vector<std::string>{"10+1", "11+1", "12+1"}));
  EXPECT_EQ(ids({{"first", "-9999"}}), all);
  EXPECT_NE(ErrorOf("dataset", {{"file", file.path()}, {"first", "250"}}).find("no question of"), std::string::npos);

  const auto train = ids({{"split", "train"}}), test = ids({{"split", "test"}});
  std::set<std::string> both(train.begin(), train.end());
  both.insert(test.begin(), test.end());
  EXPECT_EQ(both.size(), 250u);
  EXPECT_EQ(train.size() + test.size(), 250u);
  EXPECT_NEAR(static_cast<double>(test.size()), 50, 25);
  EXPECT_NE(ids({{"split", "test"}, {"split_seed", "1"}}), test);
  // The part does not depend on what else is in the file.
  const TempFile few("quern_few_sums.txt", "5+1=6\n9+1=10\n11+1=12\n");
  for (const char* split : {"train", "test"}) {
    const auto made = MakeEnvironmentFactory("dataset", {{"file", few.path()}, {"split", split}}, "");
    if (!made.ok()) continue;
    const std::set<std::string> same =
        split == std::string("train") ? std::set(train.begin(), train.end()) : std::set(test.begin(), test.end());
    for (size_t i = 0; i < (*made)->questions()->size(); ++i) EXPECT_EQ(same.count((*made)->questions()->At(i).id), 1u);
  }
}

TEST(Questions, DatasetTakesTheGraderOfTheFormat) {
  const TempFile sums("quern_sums.txt", "2+2=4\n");
  const Factory factory = Make("dataset", {{"file", sums.path()}});
  const Question& question = factory->questions()->At(0);
  EXPECT_EQ(question.text, "2+2=");
  EXPECT_EQ(question.answer, "4");
  EXPECT_EQ(question.grader, "number");
  auto environment = factory->NewEnvironment();
  EXPECT_EQ(environment->Reset(0).text, "2+2=");
  EXPECT_EQ(environment->task_id(), "2+2");
  EXPECT_EQ(environment->Step("that is 4").reward, 1);
  const Factory boxed = Make("dataset", {{"file", sums.path()}, {"grader", "boxed:number"}});
  environment = boxed->NewEnvironment();
  environment->Reset(0);
  EXPECT_EQ(environment->Step("that is 4").reward, 0);
  environment->Reset(0);
  EXPECT_EQ(environment->Step("3, no: \\boxed{4}").reward, 1);
  EXPECT_EQ(boxed->questions()->At(0).grader, "boxed:number");
  EXPECT_EQ(Make("wordle", {})->questions(), nullptr);
  EXPECT_NE(ErrorOf("dataset", {{"file", sums.path()}, {"grader", "nunber"}}).find("did you mean \"number\"?"),
            std::string::npos);
  EXPECT_NE(ErrorOf("dataset", {{"file", sums.path()}, {"format", "sum"}}).find("did you mean \"sums\"?"),
            std::string::npos);
  const TempFile bad("quern_bad_sums.txt", "2+2=4\n\n2+3=\n");
  const std::string error = ErrorOf("dataset", {{"file", bad.path()}});
  EXPECT_NE(error.find(bad.path() + ":3: not a sum"), std::string::npos) << error;
}

// Every format as it is published: the reference solution earns 1.
TEST(Questions, ReadsThePublishedFiles) {
  const struct {
    const char* file;
    size_t questions;
    const char* grader;
  } sets[] = {{"gsm8k_train.jsonl", 7473, "number"},      {"SVAMP.json", 1000, "number"},
              {"aqua_dev.json", 254, "choice"},           {"strategyqa_train.json", 2061, "yes_no"},
              {"ARC-Challenge-Dev.jsonl", 294, "choice"}, {"train_3digit_10000.txt", 9891, "number"},
              {"train_1digit_100.txt", 100, "number"},    {"game24.csv", 1362, "expression"}};
  for (const auto& set : sets) {
    const std::string path = SharedData(std::string("datasets/") + set.file);
    if (!PathExists(path)) GTEST_SKIP() << "no " << path;
    const Factory factory = Make("dataset", {{"file", path}, {"tasks", "all"}});
    EXPECT_EQ(factory->task_count(), set.questions) << set.file;
    EXPECT_EQ(factory->questions()->At(0).grader, set.grader);
    for (uint64_t seed = 0; seed < factory->task_count(); ++seed)
      EXPECT_EQ(Play(*factory, "reference", seed).total, 1) << set.file << " " << seed;
  }
}

}  // namespace
}  // namespace quern
