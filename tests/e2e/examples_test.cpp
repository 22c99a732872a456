#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/e2e/quern_process.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

using Json = nlohmann::json;
using Overrides = std::vector<std::string>;

// How each job of examples/ becomes one of a second or a few: the same stages and models, fewer of everything.
const std::map<std::string, Overrides>& ShortenedExamples() {
  static const std::map<std::string, Overrides> jobs = {
      {"collapse",
       {"collapse.passes=1", "collapse.real_records=[128]", "collapse.generated=128", "data.collect.0.episodes=128",
        "data.heldout.0.episodes=50", "collapse.rules=[{policy: fixed, share: 0.5}]", "evaluate.episodes=0"}},
      {"digits", {"online.rounds=2", "online.episodes=100", "online.filtered_sft.max_steps=5"}},
      {"fp8", {"sft.max_steps=20", "data.collect.0.episodes=500", "data.heldout.0.episodes=50"}},
      {"maze",
       {"sft.max_steps=10", "filtered_sft.max_steps=10", "qsft.max_steps=10", "data.collect.0.episodes=200",
        "environment.max_steps=10"}},
      {"regenesis",
       {"sft.max_steps=150", "sft.batch_size=16", "data.collect.0.episodes=1000", "regenesis.max_steps=5",
        "regenesis.questions=6", "regenesis.environment.questions=12", "regenesis.min_majority_share=0"}},
      {"selective", {"sft.max_steps=10", "data.collect.0.episodes=100", "data.heldout.0.episodes=10"}},
      {"stories",
       {"online.rounds=1", "online.episodes=40", "online.filtered_sft.max_steps=5",
        "model_name_or_path=" + SharedData("stories260k/hf")}},
      {"sums",
       {"sft.max_steps=40", "sft.batch_size=16", "data.collect.0.episodes=50", "regenesis.rounds=1",
        "regenesis.max_steps=5", "environment.file=sums.txt", "environment.count=50",
        "regenesis.environment.first=50"}},
      {"wordle",
       {"sft.max_steps=20", "filtered_sft.max_steps=10", "qsft.max_steps=10", "data.collect.0.episodes=500",
        "online.episodes=50", "online.sft.max_steps=5", "online.qsft.max_steps=5"}},
  };
  return jobs;
}

std::string ExamplesFolder() { return StrCat(std::getenv("QUERN_SOURCE_DIR"), "/examples"); }

// All sums of two digits, which a model that has seen half of them often guesses right: rounds have something to learn.
std::string SumsOfTwoDigits() {
  std::string text;
  for (int a = 0; a < 10; ++a)
    for (int b = 0; b < 10; ++b) text += StrCat(a, "+", b, "=", a + b, "\n");
  return text;
}

class Examples : public ::testing::TestWithParam<std::string> {};

// NUM-1 with FP8 on both sides: in every example job the learner's log-probabilities of what the actors stored are the
// actors' own, to the bit, for every version that played.
TEST_P(Examples, ActorsAndTrainerAgreeInFp8) {
  if (GetParam() == "stories") QUERN_NEED_SHARED_DATA("stories260k/hf");
  const QuernProcess::Folder folder;
  ASSERT_TRUE(WriteFileAtomic(folder.File("sums.txt"), SumsOfTwoDigits()).ok());
  std::vector<std::string> arguments = {"run",
                                        StrCat(ExamplesFolder(), "/", GetParam(), ".yaml"),
                                        "output_dir=run",
                                        "precision=fp8",
                                        "require=[]",
                                        "rollout.task_episodes=20",
                                        "evaluate.episodes=20"};
  const Overrides& shortened = ShortenedExamples().at(GetParam());
  arguments.insert(arguments.end(), shortened.begin(), shortened.end());
  const auto ended = QuernProcess(folder, arguments).Wait(std::chrono::seconds(240));
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(Json::parse(*ReadFile(folder.File("run/job.json")))["precision"], "fp8");
  const Json result = Json::parse(*ReadFile(folder.File("run/result.json")));
  for (const Json& stage : result["stages"]) {
    if (stage["metrics"].contains("rollout_logprob_diff")) {
      EXPECT_EQ(stage["metrics"]["rollout_logprob_diff"], 0) << stage;
    }
  }
  const Json& last = result["stages"].back();
  ASSERT_EQ(last["name"], "check:rollouts");
  EXPECT_GE(last["metrics"]["versions_checked"], 1) << last;
  EXPECT_GT(last["metrics"]["rollout_logprobs_checked"], 50) << last;
}

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const auto& [name, overrides] : ShortenedExamples()) names.push_back(name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Jobs, Examples, ::testing::ValuesIn(Names()), [](const auto& job) { return job.param; });

TEST(ExampleFiles, AreAllRunHere) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(ExamplesFolder()))
    if (entry.path().extension() == ".yaml") files.push_back(entry.path().stem());
  std::sort(files.begin(), files.end());
  EXPECT_EQ(files, Names());
}

}  // namespace
}  // namespace quern
