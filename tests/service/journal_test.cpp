#include "service/journal.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

class JournalTest : public testing::Test {
 protected:
  JournalTest() : path_(JoinPath(folder_.path(), "journal.jsonl")) { SetLogLevel(LogLevel::kError); }
  ~JournalTest() override { SetLogLevel(LogLevel::kInfo); }

  std::unique_ptr<Journal> Open() {
    auto journal = Journal::Open(path_);
    EXPECT_TRUE(journal.ok()) << journal.status().message();
    return journal.ok() ? std::move(*journal) : nullptr;
  }
  void WriteSome() {
    const auto journal = Open();
    journal->StageStarted("collect:random", 0);
    journal->TaskGiven("collect:random", 20, {.episodes = 20, .actor = 1, .weights = {}, .done = false});
    journal->TaskGiven("collect:random", 0, {.episodes = 20, .actor = 0, .weights = {"sft", "q_sft"}, .done = false});
    journal->TaskDone("collect:random", 20, 70, 0.5);
    journal->StageStarted("sft", 130);
    journal->StageGiven("sft", 3);
    v1::WeightVersion weights;
    weights.set_name("sft");
    weights.set_version(3);
    weights.set_path("/weights/sft-3");
    weights.set_content_hash("abc");
    weights.set_generation_depth(2);
    journal->Published("sft", weights);
    journal->StageDone("sft", {{"loss", 0.1}}, "1.0 s");
    EXPECT_TRUE(journal->status().ok());
  }

  TemporaryFolder folder_;
  std::string path_;
};

TEST_F(JournalTest, ComesBackAsItWasWritten) {
  WriteSome();
  const auto journal = Open();
  const JournalState& state = journal->state();
  EXPECT_EQ(state.attempts, 1u);
  const JournalState::Stage& collect = state.stages.at("collect:random");
  EXPECT_TRUE(collect.started);
  EXPECT_FALSE(collect.done);
  ASSERT_EQ(collect.tasks.size(), 2u);
  EXPECT_TRUE(collect.tasks.at(20).done);
  EXPECT_FALSE(collect.tasks.at(0).done);
  EXPECT_EQ(collect.tasks.at(0).weights, (std::vector<std::string>{"sft", "q_sft"}));
  EXPECT_EQ(collect.metrics.at("generated_tokens"), 70);
  const JournalState::Stage& sft = state.stages.at("sft");
  EXPECT_TRUE(sft.done);
  EXPECT_EQ(sft.watermark, 130u);
  EXPECT_EQ(sft.version, 3u);
  EXPECT_EQ(sft.published.path(), "/weights/sft-3");
  EXPECT_EQ(sft.published.content_hash(), "abc");
  EXPECT_EQ(sft.metrics.at("loss"), 0.1);
  EXPECT_EQ(Open()->state().attempts, 2u);
}

TEST_F(JournalTest, ALastLineCutAnywhereIsLeftOut) {
  WriteSome();
  const std::string text = *ReadFile(path_);
  const size_t last = text.rfind('\n', text.size() - 2) + 1;
  for (size_t size = last; size < text.size(); size += 7) {
    ASSERT_TRUE(WriteFileAtomic(path_, text.substr(0, size)).ok());
    auto journal = Open();
    ASSERT_NE(journal, nullptr);
    EXPECT_FALSE(journal->state().stages.at("sft").done);
    EXPECT_EQ(journal->state().stages.at("sft").version, 3u);
    journal->StageDone("sft", {}, "");
    journal.reset();
    EXPECT_TRUE(Open()->state().stages.at("sft").done) << size;  // what is appended after it is whole
  }
  for (const std::string& tail : {std::string("\n"), std::string("{}\n"), std::string(100, '\0') + "\n"}) {
    ASSERT_TRUE(WriteFileAtomic(path_, text + tail).ok());
    EXPECT_TRUE(Open()->state().stages.at("sft").done);
  }
}

TEST_F(JournalTest, AFlippedBitIsFoundWithItsLine) {
  WriteSome();
  const std::string text = *ReadFile(path_);
  const size_t second = text.find('\n') + 1;
  const size_t third = text.find('\n', second) + 1;
  for (size_t at = second; at + 1 < third; ++at) {
    std::string damaged = text;
    damaged[at] ^= 4;
    ASSERT_TRUE(WriteFileAtomic(path_, damaged).ok());
    const auto journal = Journal::Open(path_);
    ASSERT_FALSE(journal.ok()) << at;
    EXPECT_NE(journal.status().message().find("journal.jsonl:2: "), std::string::npos) << journal.status().message();
  }
}

}  // namespace
}  // namespace quern
