#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/e2e/tiny_job.h"

namespace quern {
namespace {

// Every file of weights/, by its name.
std::map<std::string, std::string> WeightsOf(const QuernProcess::Folder& folder) {
  std::map<std::string, std::string> files;
  const std::filesystem::path root = folder.File("run/weights");
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root))
    if (entry.path().extension() == ".safetensors")
      files[std::filesystem::relative(entry.path(), root)] = *ReadFile(entry.path());
  return files;
}

std::vector<std::string> Arguments(const QuernProcess::Folder& folder, int ranks, std::vector<std::string> more = {}) {
  more.insert(more.end(), {StrCat("learner.ranks=", ranks), "learner.shards=2", "threads=1"});
  return RunArguments(folder, more);
}

// The same policies, to the bit, by one process and by two, of Q-SFT with an online phase.
TEST(Ranks, TwoProcessesTrainWhatOneDoes) {
  const QuernProcess::Folder one, two;
  const auto alone = QuernProcess::Run(one, Arguments(one, 1));
  ASSERT_EQ(alone.code, 0) << alone.err;
  const auto together = QuernProcess::Run(two, Arguments(two, 2));
  ASSERT_EQ(together.code, 0) << together.err;
  const auto weights = WeightsOf(one);
  EXPECT_GE(weights.size(), 5u);
  EXPECT_EQ(WeightsOf(two), weights);
  EXPECT_TRUE(PathExists(two.File("run/logs/learner-1.0.log")));
}

// The pid of a role's process, by its command line.
pid_t FindRole(const std::string& run, const std::string& role, const std::string& index) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const auto command = ReadFile(entry.path() / "cmdline");
    if (!command.ok()) continue;
    const std::vector<std::string> words = StrSplit(*command, '\0');
    if (words.size() >= 6 && words[1] == role && words[3] == run && words[5] == index)
      return std::atoi(entry.path().filename().c_str());
  }
  return 0;
}

TEST(Ranks, AKilledRankStartsAllOfThemAnewFromTheCheckpoint) {
  const QuernProcess::Folder undisturbed, killed;
  const std::vector<std::string> longer = {"sft.max_steps=60", "checkpoint.every_steps=5",
                                           "checkpoint.every_seconds=0"};
  const auto expected = QuernProcess::Run(undisturbed, Arguments(undisturbed, 2, longer));
  ASSERT_EQ(expected.code, 0) << expected.err;
  QuernProcess process(killed, Arguments(killed, 2, longer));
  const std::string run = killed.File("run");
  bool done = false;
  for (int i = 0; i < 6000 && !done; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    if (!PathExists(JoinPath(run, "checkpoints/sft/step-10"))) continue;
    const pid_t pid = FindRole(std::filesystem::canonical(run), "learner", "1");
    done = pid > 0 && kill(pid, SIGKILL) == 0;
  }
  EXPECT_TRUE(done) << "no checkpoint to kill it at";
  const auto ended = process.Wait(std::chrono::seconds(120));
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_NE(ended.err.find("learner rank 1 died: killed by signal 9"), std::string::npos) << ended.err;
  EXPECT_EQ(WeightsOf(killed), WeightsOf(undisturbed));
}

TEST(Ranks, ShardsThatRanksCannotDivideAreRefused) {
  const QuernProcess::Folder folder;
  const auto ended = QuernProcess::Run(folder, RunArguments(folder, {"learner.ranks=2", "learner.shards=3"}));
  EXPECT_EQ(ended.code, 1);
  EXPECT_NE(ended.err.find("learner.shards"), std::string::npos) << ended.err;
}

}  // namespace
}  // namespace quern
