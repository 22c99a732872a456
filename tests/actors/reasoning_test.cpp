#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <set>

#include "actors/environment.h"
#include "actors/environments/reasoning.h"
#include "actors/environments/reasoning_language.h"
#include "base/file.h"
#include "base/strings.h"
#include "methods/graders/grader.h"

namespace quern {
namespace {

constexpr char kGuidelines[] = "# ways\nfrom the left\nfrom the right\nput it in pairs\ntwo halves\n\nkeep it sorted\n";

class Reasoning : public testing::Test {
 protected:
  Reasoning() : path_(testing::TempDir() + "guidelines.txt") { QUERN_CHECK(WriteFileAtomic(path_, kGuidelines).ok()); }
  ~Reasoning() override { std::filesystem::remove(path_); }
  std::shared_ptr<const EnvironmentFactory> Make(Options options) {
    options.emplace("guidelines", path_);
    return MakeEnvironmentFactory("reasoning", options, "").value();
  }
  std::string path_;
};

std::vector<Family> AllFamilies() {
  std::vector<Family> all;
  for (int i = 0; i < kFamilies; ++i) all.push_back(static_cast<Family>(i));
  return all;
}

TEST(ReasoningLanguage, WorkedByHand) {
  const auto answer = [](const std::string& question) { return Answer(*ParseQuestion(question)); };
  EXPECT_EQ(answer("sum 4 7 2 9"), 22);
  EXPECT_EQ(answer("max 31 7 58"), 58);
  EXPECT_EQ(answer("xor 1 0 1 1"), 1);
  EXPECT_EQ(answer("count 5 over 3 7 6"), 2);
  EXPECT_EQ(answer("total 31 24 17"), 72);
  EXPECT_EQ(answer("range 31 7 58"), 51);
  EXPECT_EQ(answer("gather 5 over 3 7 6"), 13);
  for (const char* bad : {"", "sum", "sum 4 x", "add 4 7", "count 5 3 7 6", "gather over 3"})
    EXPECT_FALSE(ParseQuestion(bad)) << bad;
  Random random(0);
  EXPECT_EQ(PathText(*ParseQuestion("sum 4 7 2 9 5"), Strategy::kPairs, 0, random),
            "1. 4 + 7 = 11\n2. 2 + 9 = 11\n3. 11 + 11 = 22\n4. 22 + 5 = 27\n#### 27");
  EXPECT_EQ(PathText(*ParseQuestion("gather 5 over 3 7 6"), Strategy::kSorted, 0, random),
            "1. keep 7 6\n2. sorted 6 7\n3. 6 + 7 = 13\n#### 13");
}

// Every strategy of every family reaches the answer when no step slips, and misses it about as often as steps slip.
TEST(ReasoningLanguage, EveryStrategyReachesTheAnswer) {
  const auto grader = MakeGrader("boxed:number").value();
  Random random(1);
  for (const Family family : AllFamilies()) {
    for (int s = 0; s < kStrategies; ++s) {
      int wrong = 0;
      for (int i = 0; i < 200; ++i) {
        const ReasoningTask task = DrawTask(family, random);
        EXPECT_EQ(QuestionText(*ParseQuestion(QuestionText(task))), QuestionText(task));
        const std::string truth = StrCat(Answer(task));
        const std::string path = PathText(task, static_cast<Strategy>(s), 0, random);
        EXPECT_TRUE(Grade(*grader, path, truth)) << QuestionText(task) << "\n" << path;
        wrong += !Grade(*grader, PathText(task, static_cast<Strategy>(s), 0.3, random), truth);
      }
      EXPECT_GT(wrong, 20) << FamilyName(family);
      EXPECT_LT(wrong, 190) << FamilyName(family);
    }
  }
}

TEST_F(Reasoning, QuestionsAreDistinctAndThePartsShareNone) {
  std::set<std::string> seen;
  for (const char* split : {"train", "test"}) {
    const auto factory = Make({{"split", split}, {"questions", "400"}});
    ASSERT_EQ(factory->questions()->size(), 400u);
    std::map<std::string, int> families;
    for (size_t i = 0; i < 400; ++i) {
      const Question& question = factory->questions()->At(i);
      EXPECT_TRUE(seen.insert(question.text).second) << question.text;
      ++families[question.text.substr(0, question.text.find(' '))];
    }
    EXPECT_EQ(families, (std::map<std::string, int>{{"sum", 100}, {"max", 100}, {"xor", 100}, {"count", 100}}));
  }
  // xor has few questions: asking for more than there are is an error, not an endless loop.
  const auto many = MakeEnvironmentFactory("reasoning", {{"families", "xor"}, {"questions", "5000"}}, "");
  EXPECT_NE(many.status().message().find("has no 5000 different questions"), std::string::npos);
}

TEST_F(Reasoning, TheCorpusAsksForEveryStageAndNeverForATestQuestion) {
  const auto corpus = Make({{"prompts", "corpus"}, {"families", "sum,max,xor,count,total,range,gather"}});
  const auto test = Make({{"split", "test"}, {"questions", "60"}, {"families", "xor,sum"}});
  std::set<std::string> held_out;
  for (size_t i = 0; i < test->questions()->size(); ++i) held_out.insert(test->questions()->At(i).text);
  const auto player = corpus->NewPlayer("author", {{"slip", "0"}, {"guess", "0.5"}}).value();
  const auto environment = corpus->NewEnvironment();
  std::map<std::string, int> stages;
  int guesses = 0;
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    const Observation first = environment->Reset(seed);
    EXPECT_EQ(environment->Reset(seed).text, first.text);
    player->Reset(seed, first);
    const std::string action = player->Act();
    EXPECT_FALSE(held_out.contains(environment->task_id())) << environment->task_id();
    const size_t parts = StrSplit(first.text, '\n').size();
    ++stages[first.text.substr(first.text.rfind('\n') + 1) + (parts == 2 ? " direct" : "")];
    guesses += parts == 2 && action.starts_with("####");
    if (action.find("####") != std::string::npos) {
      EXPECT_EQ(action.substr(action.find("####") + 5), StrCat(Answer(*ParseQuestion(environment->task_id()))));
    }
    // Whatever is read or written has its pieces.
    std::string left = first.text + action;
    const std::vector<std::string> pieces = corpus->vocabulary();
    while (!left.empty()) {
      size_t longest = 0;
      for (const std::string& piece : pieces)
        if (left.starts_with(piece)) longest = std::max(longest, piece.size());
      ASSERT_GT(longest, 0u) << left;
      left.erase(0, longest);
    }
  }
  EXPECT_NEAR(stages["solve: direct"], 800, 80);
  EXPECT_NEAR(guesses, 400, 60);
  for (const char* stage : {"adapt:", "plan:", "solve:"}) EXPECT_NEAR(stages[stage], 400, 60);
}

TEST_F(Reasoning, MistakesAreNamed) {
  const auto error = [](const Options& options) {
    return MakeEnvironmentFactory("reasoning", options, "").status().message();
  };
  EXPECT_NE(error({{"families", "sum,mux"}}).find("did you mean \"max\"?"), std::string::npos);
  EXPECT_NE(error({{"prompts", "corpus"}}).find("needs guidelines"), std::string::npos);
  ASSERT_TRUE(WriteFileAtomic(path_, "from the left\nthink\n").ok());
  EXPECT_NE(error({{"guidelines", path_}}).find(":2: names none of left"), std::string::npos);
}

}  // namespace
}  // namespace quern
