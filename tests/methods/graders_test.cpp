#include <gtest/gtest.h>

#include <string>

#include "base/random.h"
#include "base/strings.h"
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
  EXPECT_EQ(Extracted("choice", "Let C.P be 5.\nAnswer D"), "D");
  EXPECT_EQ(Extracted("choice", "Let C.P be 5, so take B."), "B");
  EXPECT_EQ(Extracted("choice", "Correct answer - (A) or so"), "A");
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

// The cases of the method's notes: truth, boxed text, verdict.
TEST(Graders, FilterCases) {
  const struct {
    const char* grader;
    const char* truth;
    const char* text;
    bool pass;
  } cases[] = {
      {"number", "42", "42", true},      {"number", "42", "The total is 42 apples", true},
      {"number", "3.05", "3.05", true},  {"number", "-7", "7", false},
      {"number", "1,250", "1250", true}, {"number", "0.5", ".50", true},
      {"number", "50%", "50", true},     {"choice", "C", "(C) because", true},
      {"choice", "C", "B or C", false},
  };
  for (const auto& one : cases) {
    EXPECT_EQ(Passes(one.grader, one.truth, one.text), one.pass) << one.truth << " | " << one.text;
    const std::string boxed = StrCat("First 13, then \\boxed{", one.text, "}. Check: 99.");
    EXPECT_EQ(Passes(StrCat("boxed:", one.grader), one.truth, boxed), one.pass) << one.truth << " | " << boxed;
  }
  EXPECT_FALSE(Passes("number", "3.05", "35"));
  EXPECT_FALSE(Passes("number", "35", "3.05"));
}

TEST(Graders, NumbersAsTheyAreWritten) {
  const auto value = [](std::string_view text) {
    const auto grader = Make("number");
    const auto extracted = grader->Extract(text);
    return extracted ? grader->Normalise(*extracted) : "(none)";
  };
  const std::pair<const char*, const char*> cases[] = {
      {"7", "7"},
      {"+7", "7"},
      {"-7", "-7"},
      {"\xe2\x88\x92"
       "7",
       "-7"},
      {"it is -7.", "-7"},
      {"x=-7", "-7"},
      {"x = - 7", "-7"},
      {"- 7", "-7"},
      {"- 7 apples", "7"},  // a list
      {"48-24", "24"},
      {"48 - 24", "24"},
      {"(48)-24", "24"},
      {"48--24", "-24"},
      {"-$5", "-5"},
      {"$-5", "-5"},
      {"-\\$1{,}250.50", "-2501/2"},
      {"\xe2\x82\xac"
       "3",
       "3"},
      {"1,200.50.", "2401/2"},
      {"1,234,567", "1234567"},
      {"1,2,3", "3"},
      {"1,2345", "2345"},
      {"12,34", "34"},
      {"1\\,250", "1250"},
      {"72.", "72"},
      {"72.0", "72"},
      {"007", "7"},
      {".50", "1/2"},
      {"-.50", "-1/2"},
      {"1.5e-3", "3/2000"},
      {"2E3 m", "2000"},
      {"3e", "3"},
      {"3/4", "3/4"},
      {"6 / 8", "3/4"},
      {"-3/4", "-3/4"},
      {"3/-4", "-3/4"},
      {"\\frac{3}{4}", "3/4"},
      {"-\\dfrac{3}{4}", "-3/4"},
      {"\\frac{-3}{4}", "-3/4"},
      {"1 1/2 cups", "3/2"},
      {"-1 1/2", "-3/2"},
      {"1\\frac{1}{2}", "3/2"},
      {"5 3/2", "3/2"},
      {"2^10", "1024"},
      {"2^{10}", "1024"},
      {"50 %", "50"},
      {"50\\%", "50"},
      {"25 m^2", "25"},
      {"25 m2 of CO2", "25"},
      {"x_1 = 4", "4"},
      {"\\(x_{2}=4\\)", "4"},
      {"5km", "5"},
      {"5th", "5"},
      {"48/2=<<48/2=24>>24", "24"},
      {"**18**", "18"},
      {"3:30", "(none)"},
      {"9/11/2001", "(none)"},
      {"1/0", "(none)"},
      {"none", "(none)"},
      {"", "(none)"},
      {"12345678901234567890123456789012345678", "12345678901234567890123456789012345678"},
      {"1234567890123456789012345678901234567890", "(none)"},
      {"1e999", "(none)"},
      {"2^999", "(none)"},
      {"0^0", "1"},
      {"\\frac{1}{0}", "(none)"},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(value(text), expected) << text;

  EXPECT_TRUE(Passes("number", "0.5", "50%"));
  EXPECT_TRUE(Passes("number", "50%", "1/2"));
  EXPECT_FALSE(Passes("number", "50%", "0.5%"));
  EXPECT_FALSE(Passes("number", "1/3", "0.333"));
  EXPECT_TRUE(Passes("number,tolerance=0.001", "1/3", "0.333"));
  EXPECT_FALSE(Passes("number,tolerance=0.0001", "1/3", "0.333"));
  EXPECT_TRUE(Passes("number,tolerance=0.01", "2", "2.01"));  // exactly at the bound: no rounding
  EXPECT_FALSE(Passes("number,tolerance=0.01", "2", "2.0100000000000001"));
  EXPECT_FALSE(MakeGrader("number,tolerance=-1").ok());
  EXPECT_FALSE(Passes("number", "4", "four"));
  EXPECT_FALSE(Passes("number", "four", "4"));
}

// A fraction over a power of ten, so that it can be written as a decimal too.
struct RandomNumber {
  int64_t over = 0;
  int digits = 0;  // behind the point
};

std::string Plain(RandomNumber n) {
  const int64_t magnitude = n.over < 0 ? -n.over : n.over;
  int64_t scale = 1;
  for (int i = 0; i < n.digits; ++i) scale *= 10;
  std::string text = (n.over < 0 ? "-" : "") + std::to_string(magnitude / scale);
  if (n.digits > 0) {
    std::string rest = std::to_string(magnitude % scale);
    text += "." + std::string(static_cast<size_t>(n.digits) - rest.size(), '0') + rest;
  }
  return text;
}

std::string WithSeparators(const std::string& plain) {
  const size_t begin = plain[0] == '-' ? 1 : 0;
  const size_t point = std::min(plain.find('.'), plain.size());
  std::string out = plain.substr(0, begin);
  for (size_t i = begin; i < point; ++i) {
    if (i > begin && (point - i) % 3 == 0) out += ',';
    out += plain[i];
  }
  return out + plain.substr(point);
}

std::vector<std::string> Spellings(RandomNumber n) {
  const std::string plain = Plain(n);
  const bool negative = n.over < 0;
  const std::string magnitude = negative ? plain.substr(1) : plain;
  const std::string sign = negative ? "-" : "";
  int64_t scale = 1;
  for (int i = 0; i < n.digits; ++i) scale *= 10;
  const std::string over = std::to_string(negative ? -n.over : n.over);
  std::vector<std::string> all = {plain,
                                  WithSeparators(plain),
                                  sign + "$" + WithSeparators(magnitude),
                                  "$" + plain,
                                  sign + "00" + magnitude,
                                  (negative ? "\xe2\x88\x92" : "") + magnitude,
                                  StrCat(n.over * 7, "/", scale * 7),
                                  StrCat(sign, "\\frac{", over, "}{", scale, "}"),
                                  StrCat(n.over, "e-", n.digits)};
  if (n.digits > 0) all.push_back(plain + "000");
  if (magnitude.starts_with("0.")) all.push_back(sign + magnitude.substr(1));
  if (n.digits == 0) all.push_back(plain + ".00");
  if (n.digits == 0) all.push_back(plain + ".");
  return all;
}

TEST(Graders, EverySpellingOfARandomNumberIsTheSame) {
  Random random(1);
  const auto grader = Make("number");
  const auto boxed = Make("boxed:number");
  for (int round = 0; round < 3000; ++round) {
    RandomNumber n{static_cast<int64_t>(random.Below(random.Below(2) ? 2000 : 2000000000)),
                   static_cast<int>(random.Below(5))};
    if (random.Below(2)) n.over = -n.over;
    const std::string canonical = grader->Normalise(Plain(n));
    ASSERT_FALSE(canonical.empty());
    for (const std::string& spelling : Spellings(n)) {
      for (const std::string& text : {spelling, "The total is " + spelling + " apples",
                                      "1 + 2, so **" + spelling + "**", "a = 3\n= " + spelling + "\n"}) {
        const auto extracted = grader->Extract(text);
        ASSERT_TRUE(extracted) << text;
        EXPECT_EQ(grader->Normalise(*extracted), canonical) << text << " -> " << *extracted;
        EXPECT_TRUE(grader->Matches(*extracted, Plain(n))) << text;
      }
      EXPECT_TRUE(Grade(*boxed, "5 \\boxed{" + spelling + "} 6", Plain(n))) << spelling;
      EXPECT_TRUE(Grade(*boxed, "5\n#### " + spelling, Plain(n))) << spelling;
      EXPECT_TRUE(Grade(*boxed, "So the answer is " + spelling + " km.\n\n6", Plain(n))) << spelling;
    }
    for (const RandomNumber other : {RandomNumber{n.over + 1, n.digits}, RandomNumber{n.over - 1, n.digits},
                                     RandomNumber{n.over * 10 + 1, n.digits + 1}, RandomNumber{-n.over, n.digits}}) {
      if (other.over == n.over) continue;  // minus zero
      for (const std::string& spelling : Spellings(other))
        EXPECT_FALSE(Grade(*grader, "It is " + spelling, Plain(n))) << spelling << " for " << Plain(n);
    }
  }
}

TEST(Graders, Expressions) {
  const std::string truth = "4 9 10 13 = 24";
  EXPECT_TRUE(Passes("expression", truth, "(10 - 4) * (13 - 9) = 24"));
  EXPECT_TRUE(Passes("expression", truth, "Answer: (13-9)*(10-4)"));
  EXPECT_TRUE(Passes("expression", "(10-4)*(13-9)", "$(13 - 9) \\times (10 - 4)$."));
  EXPECT_TRUE(Passes("expression", truth, "1. (10 \xe2\x88\x92 4) \xc3\x97 (13 \xe2\x88\x92 9)"));
  EXPECT_TRUE(Passes("expression", truth, "1) (10-4)*(13-9)"));
  EXPECT_TRUE(Passes("expression", truth, "- (10-4)*(13-9)"));
  EXPECT_FALSE(Passes("expression", truth, "(10 - 4) * (13 - 9) * 1"));     // a number too many
  EXPECT_FALSE(Passes("expression", truth, "(10 - 4) * 4 = 24"));           // 4 twice
  EXPECT_FALSE(Passes("expression", truth, "4 + 9 + 10 + 13 = 24"));        // another value, whatever it says
  EXPECT_FALSE(Passes("expression", truth, "(10 - 4 * (13 - 9)"));          // does not close
  EXPECT_FALSE(Passes("expression", truth, "(10-4)*(13-9)\nso 4*6 = 24"));  // the last one counts
  EXPECT_FALSE(Passes("expression", truth, "24"));
  EXPECT_FALSE(Passes("expression", "1 1 0 0 = 24", "1/0 + 1/0"));
  EXPECT_TRUE(Passes("expression", "3 3 8 8 = 24", "8 / (3 - 8 / 3)"));  // exact: 1/3 in between
  EXPECT_TRUE(Passes("boxed:expression", "3 3 8 8 = 24", "8-3=5 \\boxed{8/(3-8/3) = 24}"));
  EXPECT_TRUE(Passes("expression", "0.5 48 = 24", "48*.5=24"));
  EXPECT_EQ(Extracted("expression", "-20+10"), "(none)");  // signs are not part of it, and are not dropped
  const auto grader = Make("expression");
  EXPECT_EQ(grader->Normalise("6*4*1*1"), grader->Normalise("4*6/1*1"));
  EXPECT_NE(grader->Normalise("6*4*1*1"), grader->Normalise("6*4*1"));
  const std::string deep(100000, '(');
  EXPECT_EQ(grader->Extract(deep + "1+2"), std::nullopt);
}

// Any bytes: no crash, the answer comes from the text, and an extracted answer is read again as the same.
TEST(Graders, TakeAnyText) {
  Random random(2);
  const std::vector<std::string> pieces = {"\\boxed{",
                                           "}",
                                           "{",
                                           "\\frac{",
                                           "\\",
                                           "-",
                                           " ",
                                           "\n",
                                           "####",
                                           "answer is ",
                                           "1",
                                           "23",
                                           ",",
                                           ".",
                                           "456",
                                           "/",
                                           "%",
                                           "$",
                                           "(",
                                           ")",
                                           "*",
                                           "+",
                                           "=",
                                           "^",
                                           "_",
                                           ":",
                                           "e",
                                           "A",
                                           "(B)",
                                           "C.",
                                           "yes",
                                           "No",
                                           "\xe2\x88\x92",
                                           "\xff",
                                           std::string(1, '\0'),
                                           "percent",
                                           "\\%",
                                           "{,}",
                                           "x"};
  std::vector<std::unique_ptr<Grader>> graders;
  for (const std::string& name : GraderNames()) {
    graders.push_back(Make(name));
    graders.push_back(Make("boxed:" + name));
  }
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (uint64_t i = random.Below(14); i > 0; --i) text += pieces[random.Below(pieces.size())];
    UnwrapLastBox(text);
    for (size_t i = 0; i < graders.size(); ++i) {
      const auto extracted = graders[i]->Extract(text);
      if (!extracted) continue;
      const std::string once = graders[i]->Normalise(*extracted);
      // A whole text may be anything; of the others an answer is an answer.
      EXPECT_TRUE(i < 4 || !once.empty()) << GraderNames()[i / 2] << ": " << text << " -> " << *extracted;
      EXPECT_TRUE(once.empty() || graders[i]->Matches(*extracted, *extracted)) << text;
      EXPECT_EQ(graders[i]->Normalise(*extracted), once);
    }
  }
  // Long ones in linear time.
  std::string boxes;
  for (int i = 0; i < 200000; ++i) boxes += "\\boxed{1-";
  for (const auto& grader : graders) grader->Extract(boxes);
}

}  // namespace
}  // namespace quern
