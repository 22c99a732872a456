#include <gtest/gtest.h>

#include "methods/graders/extract.h"
#include "methods/graders/grader.h"

namespace quern {
namespace {

std::unique_ptr<Grader> Make(const std::string& spec) {
  auto grader = MakeGrader(spec);
  EXPECT_TRUE(grader.ok()) << grader.status().message();
  return std::move(*grader);
}

std::string Extracted(const std::string& spec, std::string_view text) {
  return Make(spec)->Extract(text).value_or("(none)");
}

bool Passes(const std::string& spec, std::string_view truth, std::string_view text) {
  return Grade(*Make(spec), text, truth);
}

TEST(Extract, TheLastBoxWithNestedBraces) {
  EXPECT_EQ(LastBox("so \\boxed{4}, no, \\boxed{\\frac{1}{2}}."), "\\frac{1}{2}");
  EXPECT_EQ(LastBox("\\boxed {a}"), "a");
  EXPECT_EQ(LastBox("\\boxed{\\{1, 2\\}}"), "\\{1, 2\\}");
  EXPECT_EQ(LastBox("\\boxed{5} and \\boxed{6"), "5");  // cut off: the one that closes
  EXPECT_EQ(LastBox("\\boxed{x = \\boxed{7}}"), "7");
  EXPECT_EQ(LastBox("\\boxed{}"), "");
  EXPECT_EQ(LastBox("\\boxed 5"), std::nullopt);
  EXPECT_EQ(LastBox("{5}"), std::nullopt);
  EXPECT_EQ(UnwrapLastBox("Thus $\\boxed{\\frac{1}{2}}$ in {x}."), "Thus $\\frac{1}{2}$ in {x}.");
  EXPECT_EQ(UnwrapLastBox("no {box}"), "no {box}");
}

TEST(Extract, MarksOfTheAnswer) {
  EXPECT_EQ(LastHashLine("2+2=4\n#### 4"), "4");
  EXPECT_EQ(LastHashLine("#### 3\nno:\n#### 4 \nso"), "4");
  EXPECT_EQ(LastHashLine("a #### 4"), std::nullopt);
  EXPECT_EQ(AnswerSentence("The answer is 3.05. It is 7."), "3.05");
  EXPECT_EQ(AnswerSentence("the answer is 3\nAnswer: 4 apples\n"), "4 apples");
  EXPECT_EQ(AnswerSentence("The Answer is: C. Because B is not."), "C. Because B is not");
  EXPECT_EQ(AnswerSentence("the answer isn't here"), std::nullopt);
}

TEST(Graders, AreFoundByNameWithAHint) {
  EXPECT_EQ(MakeGrader("chioce").status().message().substr(0, 50),
            "unknown grader: \"chioce\"; did you mean \"choice\"? (");
  EXPECT_NE(MakeGrader("choice,leters=AB").status().message().find("did you mean \"letters\"?"), std::string::npos);
  EXPECT_NE(MakeGrader("exact,x=1").status().message().find("(there are none)"), std::string::npos);
  EXPECT_NE(MakeGrader("text,case").status().message().find("not option=value"), std::string::npos);
  EXPECT_FALSE(MakeGrader("text,case=upper").ok());
  EXPECT_FALSE(MakeGrader("choice,letters=abc").ok());
  EXPECT_FALSE(MakeGrader("boxed:").ok());
  EXPECT_FALSE(MakeGrader("").ok());
}

TEST(Graders, Choice) {
  EXPECT_TRUE(Passes("choice", "C", "(C) because"));
  EXPECT_FALSE(Passes("choice", "C", "B or C"));
  EXPECT_EQ(Extracted("choice", "B or C"), "(none)");
  EXPECT_EQ(Extracted("choice", "c"), "C");
  EXPECT_EQ(Extracted("choice", "(d)"), "D");
  EXPECT_EQ(Extracted("choice", "A bird sings in tree D"), "D");
  EXPECT_EQ(Extracted("choice", "B) 12 km"), "B");
  EXPECT_EQ(Extracted("choice", "(A) is wrong and (B) too. The answer is (C)."), "C");
  EXPECT_EQ(Extracted("choice", "\\text{B}"), "B");
  EXPECT_EQ(Extracted("choice", "A is right"), "A");
  EXPECT_EQ(Extracted("choice", "nothing"), "(none)");
  EXPECT_EQ(Extracted("choice,letters=AB", "C"), "(none)");
  EXPECT_EQ(Extracted("boxed:choice", "B, so \\boxed{\\text{(C)}}"), "C");
  EXPECT_EQ(Extracted("boxed:choice", "B"), "(none)");
}

TEST(Graders, YesNo) {
  EXPECT_TRUE(Passes("yes_no", "yes", "True"));
  EXPECT_TRUE(Passes("yes_no", "no", "There is no sea there, so the answer is no."));
  EXPECT_EQ(Extracted("yes_no", "Yes, because no one can"), "yes");
  EXPECT_EQ(Extracted("yes_no", "Nobody knows."), "(none)");
  EXPECT_EQ(Extracted("yes_no", "Yes and no"), "(none)");
  EXPECT_EQ(Extracted("boxed:yes_no", "yes? \\boxed{\\text{No}}"), "no");
}

TEST(Graders, Text) {
  EXPECT_TRUE(Passes("text", "New  York", " new york\n"));
  EXPECT_FALSE(Passes("text,case=keep", "New York", "new york"));
  EXPECT_TRUE(Passes("exact", "a b", " a b\n"));
  EXPECT_FALSE(Passes("exact", "a b", "a  b"));
  EXPECT_FALSE(Passes("text", "", " "));
}

}  // namespace
}  // namespace quern
