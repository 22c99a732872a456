// The pure parts of a reasoning chain: templates, step finder, majority, filters and selection.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "base/random.h"
#include "methods/regenesis/paths.h"
#include "methods/regenesis/templates.h"

namespace quern {
namespace {

using Texts = std::vector<std::string>;

TEST(Steps, BeginAtTheFirstStepThatHasASecond) {
  EXPECT_EQ(FirstStep(Texts{"1. a", "2. b"}), 0u);
  EXPECT_EQ(FirstStep(Texts{"intro", "1. a", "2. b"}), 1u);
  EXPECT_EQ(FirstStep(Texts{"1. a", "2. b", "again", "1. c", "2. d"}), 0u);
  EXPECT_EQ(FirstStep(Texts{"**Step 1:** a", "", "**Step 2:** b"}), 0u);
  EXPECT_EQ(FirstStep(Texts{"### Step 1", "text", "### Step 2"}), 0u);
  EXPECT_EQ(FirstStep(Texts{" 1) a", " 2) b"}), 0u);
  EXPECT_EQ(FirstStep(Texts{"1.5 apples", "2.5 pears"}), std::nullopt);
  EXPECT_EQ(FirstStep(Texts{"10. a", "20. b"}), std::nullopt);
  EXPECT_EQ(FirstStep(Texts{"Step 10", "Step 2"}), std::nullopt);
  EXPECT_EQ(FirstStep(Texts{"2. a", "1. b"}), std::nullopt);
  EXPECT_EQ(FirstStep(Texts{"1. only"}), std::nullopt);
  EXPECT_EQ(FirstStep(Texts{"", "  "}), std::nullopt);
  EXPECT_TRUE(HasSteps("So:\n1. a\n2. b"));
  EXPECT_FALSE(HasSteps("12+30=42"));
}

TEST(Steps, TrainingTextBeginsThereAfterTheOpenerAndElseStays) {
  EXPECT_EQ(TrainingPath("Sure!\n\n1. a\n2. b\n\\boxed{3}\n", "In order.\n"), "In order.\n1. a\n2. b\n\\boxed{3}\n");
  EXPECT_EQ(TrainingPath("12+30=42\n", "In order.\n"), "12+30=42\n");
}

TEST(Majority, NeedsALeadAndTheMinimumShare) {
  const auto vote = MajorityVote(Texts{"8", "8", "9", "8", "7"}, 0);
  ASSERT_TRUE(vote);
  EXPECT_EQ(vote->answer, "8");
  EXPECT_DOUBLE_EQ(vote->share, 0.6);
  EXPECT_FALSE(MajorityVote(Texts{"1", "1", "2", "2"}, 0));
  EXPECT_FALSE(MajorityVote(Texts{"8", "8", "9", "8", "7"}, 0.61));
  EXPECT_TRUE(MajorityVote(Texts{"8", "8", "9", "8", "7"}, 0.6));
  // Chains without an answer count against the share, and are not an answer.
  EXPECT_DOUBLE_EQ(MajorityVote(Texts{"", "", "", "5"}, 0)->share, 0.25);
  EXPECT_FALSE(MajorityVote(Texts{"", ""}, 0));
  EXPECT_FALSE(MajorityVote(Texts{}, 0));
}

TEST(Filter, NamesTheFirstReason) {
  const PathFacts good{.found = true, .matches = true, .has_steps = true, .tokens = 100};
  EXPECT_EQ(RejectReason(good, {}), "");
  EXPECT_EQ(RejectReason(good, {.max_tokens = 100, .require_steps = true}), "");
  PathFacts facts = good;
  facts.tokens = 101;
  EXPECT_EQ(RejectReason(facts, {.max_tokens = 100}), "too long");
  facts = good;
  facts.has_steps = false;
  EXPECT_EQ(RejectReason(facts, {}), "");
  EXPECT_EQ(RejectReason(facts, {.require_steps = true}), "no numbered steps");
  facts.checked = false;
  EXPECT_EQ(RejectReason(facts, {}), "self-check says no");
  facts.matches = false;
  EXPECT_EQ(RejectReason(facts, {}), "wrong answer");
  facts.found = false;
  EXPECT_EQ(RejectReason(facts, {}), "no answer found");
  facts.finished = false;
  EXPECT_EQ(RejectReason(facts, {}), "cut off at a token limit");
}

TEST(Selection, TakesDistinctGuidelinesFirstAndIsAFunctionOfTheSeed) {
  // 12 of 25 chains passed, from 7 guidelines.
  const std::vector<uint32_t> guidelines = {1, 1, 1, 1, 4, 4, 7, 9, 9, 13, 20, 25};
  Texts texts;
  std::vector<PassedPath> passed;
  for (size_t i = 0; i < guidelines.size(); ++i) texts.push_back("path " + std::to_string(i));
  for (size_t i = 0; i < guidelines.size(); ++i) passed.push_back({guidelines[i], texts[i]});
  std::set<std::vector<size_t>> choices;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const std::vector<size_t> kept = SelectPaths(passed, 5, seed);
    EXPECT_EQ(kept, SelectPaths(passed, 5, seed));
    std::set<uint32_t> distinct;
    for (const size_t i : kept) distinct.insert(guidelines[i]);
    EXPECT_EQ(kept.size(), 5u);
    EXPECT_EQ(distinct.size(), 5u);
    EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end()));
    choices.insert(kept);
  }
  EXPECT_GT(choices.size(), 20u);
  const std::vector<size_t> nine = SelectPaths(passed, 9, 3);
  std::set<uint32_t> all;
  for (const size_t i : nine) all.insert(guidelines[i]);
  EXPECT_EQ(nine.size(), 9u);
  EXPECT_EQ(all.size(), 7u);  // every guideline before a second path of any
  EXPECT_EQ(SelectPaths(passed, 50, 3).size(), 12u);
  EXPECT_TRUE(SelectPaths({}, 5, 3).empty());
}

TEST(Selection, EqualTextsCountOnce) {
  const std::vector<PassedPath> passed = {{1, "a"}, {2, "a"}, {3, "b"}, {4, "a"}};
  const std::vector<size_t> kept = SelectPaths(passed, 5, 1);
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_EQ((std::set<std::string_view>{passed[kept[0]].text, passed[kept[1]].text}),
            (std::set<std::string_view>{"a", "b"}));
}

// With pass rate p a question keeps E[min(5, Binomial(25, p))] paths: 4.2159 at p = 0.2, and 0.8^25 of the questions
// none.
TEST(Selection, KeepsTheExpectedNumber) {
  constexpr int kQuestions = 40000;
  Random random(5);
  Texts texts;
  for (int i = 0; i < 25; ++i) texts.push_back(std::to_string(i));
  double sum = 0, squares = 0, unsolved = 0;
  for (int q = 0; q < kQuestions; ++q) {
    std::vector<PassedPath> passed;
    for (uint32_t k = 1; k <= 25; ++k)
      if (random.Uniform() < 0.2) passed.push_back({k, texts[k - 1]});
    const auto kept = static_cast<double>(SelectPaths(passed, 5, static_cast<uint64_t>(q)).size());
    sum += kept;
    squares += kept * kept;
    unsolved += kept == 0 ? 1 : 0;
  }
  const double mean = sum / kQuestions;
  const double error = std::sqrt((squares / kQuestions - mean * mean) / kQuestions);
  EXPECT_NEAR(mean, 4.2159, 3.5 * error);
  const double p0 = std::pow(0.8, 25);
  EXPECT_NEAR(unsolved / kQuestions, p0, 3.5 * std::sqrt(p0 * (1 - p0) / kQuestions));
}

TEST(SelfCheck, ReadsYesAndNo) {
  EXPECT_EQ(ReadYesNo("Yes."), true);
  EXPECT_EQ(ReadYesNo("no, because yes is wrong"), false);
  EXPECT_EQ(ReadYesNo("Not sure at first, but the answer is: NO"), false);
  EXPECT_EQ(ReadYesNo("I know"), std::nullopt);
  EXPECT_EQ(ReadYesNo(""), std::nullopt);
}

TEST(Templates, TheDefaultsAreWholeAndForbidSolvingWhereTheyMust) {
  const ChainTemplates& t = DefaultTemplates();
  EXPECT_TRUE(HasPlaceholder(t.adapt, "guideline") && HasPlaceholder(t.adapt, "question"));
  EXPECT_TRUE(HasPlaceholder(t.plan, "adapted") && HasPlaceholder(t.solve, "structure"));
  for (const std::string& text : {t.adapt, t.plan, t.solve, t.direct}) EXPECT_TRUE(HasPlaceholder(text, "hint"));
  EXPECT_TRUE(HasPlaceholder(t.hint, "answer") && HasPlaceholder(t.check, "path"));
  for (const std::string& text : {t.adapt, t.plan, t.solve, t.direct, t.check, t.opener})
    EXPECT_FALSE(HasPlaceholder(text, "answer"));
  EXPECT_NE(t.solve.find("\\boxed{}"), std::string::npos);
  const Texts& guidelines = DefaultGuidelines();
  EXPECT_EQ(guidelines.size(), 25u);
  EXPECT_EQ(std::set<std::string>(guidelines.begin(), guidelines.end()).size(), 25u);
}

TEST(Templates, FillInAndLeaveOtherBraces) {
  EXPECT_EQ(ExpandTemplate("{question}: \\boxed{} {} {{nl}}{A} {unset}x{", {{"question", "{nl}?"}, {"nl", "\n"}}),
            "{nl}?: \\boxed{} {} {\n}{A} x{");
  const Result<ChainTemplates> own =
      ParseTemplates("# mine\n\n[solve]\n\n{guideline}{prompt}\n\n[opener]\n[hint]\n!{answer}", "f");
  ASSERT_TRUE(own.ok()) << own.status().ToString();
  EXPECT_EQ(own->solve, "{guideline}{prompt}");
  EXPECT_EQ(own->opener, "");
  EXPECT_EQ(own->hint, "!{answer}");
  EXPECT_EQ(own->plan, DefaultTemplates().plan);
}

TEST(Templates, MistakesNameTheLine) {
  EXPECT_EQ(ParseTemplates("[solve]\nx\n[sovle]\n", "f").status().message(),
            "f:3: unknown section [sovle]; known: adapt, plan, solve, direct, check, hint, opener");
  EXPECT_EQ(ParseTemplates("\nx\n", "f").status().message().substr(0, 35), "f:2: text before the first section;");
  EXPECT_EQ(ParseTemplates("[solve]\n{promt}\n", "f").status().message().substr(0, 32),
            "f:2: unknown placeholder {promt}");
  EXPECT_EQ(ParseTemplates("[hint]\n[hint]\n", "f").status().message(), "f:2: section [hint] is given twice");
  EXPECT_EQ(ParseGuidelines("# none\n\n", "g").status().message(), "g: no guidelines in it; give one a line");
  EXPECT_EQ(*ParseGuidelines("# two\na\n\n b\r\n", "g"), (Texts{"a", " b"}));
}

}  // namespace
}  // namespace quern
