#include "replay/questions/question_file.h"

#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"
#include "methods/graders/grader.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

const char kSvamp[] = R"x([{"ID":"c","Body":"Two.","Question":"Three?","Equation":"( 1.0 + 2.0 )","Answer":3.0}])x";
const char kAqua[] =
    R"x({"question":"How far?","options":["A)1 m","B) 2 m"],"rationale":"It is.\nAnswer: B","correct":"B"})x";
const char kStrategy[] = R"([{"qid":"7","question":"Is it?","answer":false,"facts":["One. "," Two."]}])";
const char kArc[] =
    R"({"id":"M1","question":{"stem":"Why?","choices":[{"text":"fog","label":"1"},{"text":"rain","label":"2"}]},)"
    R"("answerKey":"2"})";
const char kGsm[] = R"({"question":"How many?","answer":"1+1=<<1+1=2>>2\n#### 2"})";
const char kPlain[] = R"({"prompt":"2+2?","answer":4})";
const char kGame[] = "Rank,Puzzles,AMT (s)\n1,3 3 8 8,4.4\n";

std::vector<FileQuestion> Read(QuestionFormat format, const std::string& file) {
  EXPECT_EQ(DetectQuestionFormat(file), format) << file;
  const auto questions = ReadQuestionFile(format, file, "f");
  EXPECT_TRUE(questions.ok()) << questions.status().message();
  return *questions;
}

std::string Error(QuestionFormat format, const std::string& file) {
  const auto questions = ReadQuestionFile(format, file, "f");
  return questions.ok() ? "(none)" : questions.status().message();
}

TEST(QuestionFile, EachFormat) {
  FileQuestion q = Read(QuestionFormat::kSvamp, kSvamp)[0];
  EXPECT_EQ(q.id, "c");
  EXPECT_EQ(q.text, "Two. Three?");
  EXPECT_EQ(q.answer, "3");
  EXPECT_EQ(q.solution, "( 1.0 + 2.0 ) = 3");
  q = Read(QuestionFormat::kAqua, kAqua)[0];
  EXPECT_EQ(q.text, "How far?\n(A) 1 m\n(B) 2 m");
  EXPECT_EQ(q.answer, "B");
  EXPECT_EQ(q.solution, "It is.\nAnswer: B\nThe answer is B.");
  q = Read(QuestionFormat::kStrategyQa, kStrategy)[0];
  EXPECT_EQ(q.answer, "no");
  EXPECT_EQ(q.solution, "One.\nTwo.\nThe answer is no.");
  q = Read(QuestionFormat::kArc, kArc)[0];
  EXPECT_EQ(q.text, "Why?\n(A) fog\n(B) rain");
  EXPECT_EQ(q.answer, "B");
  q = Read(QuestionFormat::kGsm8k, kGsm)[0];
  EXPECT_EQ(q.answer, "2");
  EXPECT_EQ(q.solution, "1+1=<<1+1=2>>2\n#### 2");
  EXPECT_EQ(q.id, "gsm8k-" + StrFormat("%016llx", static_cast<unsigned long long>(StableHash("How many?"))));
  q = Read(QuestionFormat::kPlain, kPlain)[0];
  EXPECT_EQ(q.id, "2+2?");
  EXPECT_EQ(q.answer, "4");
  q = Read(QuestionFormat::kSums, "12+34=46\r\n")[0];
  EXPECT_EQ(q.id, "12+34");
  EXPECT_EQ(q.text, "12+34=");
  EXPECT_EQ(q.answer, "46");
  q = Read(QuestionFormat::kGame24, kGame)[0];
  EXPECT_EQ(q.id, "game24-3 3 8 8");
  EXPECT_EQ(q.answer, "8 / (3 - 8 / 3) = 24");
  EXPECT_EQ(StableHash(""), 0xcbf29ce484222325u);
  EXPECT_EQ(StableHash("a"), 0xaf63dc4c8601ec8cu);
}

TEST(QuestionFile, UnknownFilesAreNotGuessed) {
  for (const char* file :
       {"", "\n", "Once upon a time", "{\"a\":1}", "[1,2]", "[", "[{\"a\"", "1+1", "Rank,Name\n",
        R"({"messages":[],"question":"q","answer":"a"})", R"({"prompt":"p","completion":"c"})", R"({"question":"q"})"})
    EXPECT_EQ(DetectQuestionFormat(file), std::nullopt) << file;
  EXPECT_EQ(DetectQuestionFormat(std::string("\xef\xbb\xbf") + kGsm), QuestionFormat::kGsm8k);
  EXPECT_NE(ParseQuestionFormat("gms8k").status().message().find("did you mean \"gsm8k\"?"), std::string::npos);
}

TEST(QuestionFile, ABadRecordIsNamedByItsLine) {
  const std::string good = std::string(kGsm) + "\n";
  EXPECT_EQ(Error(QuestionFormat::kGsm8k, good + "\n{\n"), "f:3: not a JSON object");
  EXPECT_EQ(Error(QuestionFormat::kGsm8k, good + "{\"question\":\"q\"}"), "f:2: has no \"answer\"");
  EXPECT_EQ(Error(QuestionFormat::kGsm8k, "{\"question\":[],\"answer\":\"#### 1\"}"),
            "f:1: \"question\" is neither a text nor a number");
  EXPECT_EQ(Error(QuestionFormat::kGsm8k, "\n"), "f: no questions in it");
  EXPECT_EQ(Error(QuestionFormat::kSvamp, "[\n\n{\"ID\":1}]"), "f:3: has no \"Body\"");
  EXPECT_EQ(Error(QuestionFormat::kSvamp, "[\n{}\n{}]"), "f:3: expected a comma or the list's end");
  EXPECT_EQ(Error(QuestionFormat::kSvamp, "{}"), "f:1: not a JSON list");
  EXPECT_EQ(Error(QuestionFormat::kSvamp, "[1]"), "f:1: not a JSON object");
  EXPECT_NE(Error(QuestionFormat::kSvamp, "[\n{\"a\":\"]\"").find("f:2: what begins here is not closed"),
            std::string::npos);
  EXPECT_EQ(Error(QuestionFormat::kAqua, R"x({"question":"q","options":["A)1","B)2"],"rationale":"","correct":"C"})x"),
            "f:1: the right answer \"C\" is none of the choices");
  EXPECT_EQ(Error(QuestionFormat::kAqua, R"x({"question":"q","options":["A)1"],"rationale":"","correct":"A"})x"),
            "f:1: 1 choices (2 to 8)");
  EXPECT_EQ(Error(QuestionFormat::kStrategyQa, R"([{"qid":"1","question":"q","answer":"yes","facts":[]}])"),
            "f:1: \"answer\" is neither true nor false");
  EXPECT_EQ(Error(QuestionFormat::kArc, R"({"id":"1","question":{"stem":"s","choices":[1]},"answerKey":"A"})"),
            "f:1: a choice is not an object");
  EXPECT_EQ(Error(QuestionFormat::kGame24, "Rank,Puzzles\n1,1 1 1 1,0\n"), "f:2: 24 cannot be made of 1 1 1 1");
  EXPECT_EQ(Error(QuestionFormat::kGame24, "1,1 2 3,0\n"), "f:1: its second cell is not four numbers like 1 1 4 6");
  EXPECT_EQ(Error(QuestionFormat::kSums, "1+1=2\n1+x=2\n"), "f:2: not a sum like 54+87=141");
}

// Damaged files: no crash, records in order and inside the file.
TEST(QuestionFile, TakesAnyBytes) {
  Random random(3);
  const std::vector<std::string> files = {kPlain, kGsm, kSvamp, kAqua, kStrategy, kArc, "12+34=46\n7+8=15", kGame};
  const std::string bytes = "{}[]\",:\\\n0x\xff+= ";
  for (int round = 0; round < 20000; ++round) {
    const auto format = static_cast<QuestionFormat>(random.Below(files.size()));
    std::string file = files[random.Below(10) == 0 ? random.Below(files.size()) : static_cast<size_t>(format)];
    for (uint64_t i = random.Below(4); i > 0 && !file.empty(); --i) {
      const size_t at = random.Below(file.size());
      switch (random.Below(4)) {
        case 0: file[at] = bytes[random.Below(bytes.size())]; break;
        case 1: file.insert(at, 1, bytes[random.Below(bytes.size())]); break;
        case 2: file.erase(at, random.Below(9)); break;
        default: file.resize(at);
      }
    }
    DetectQuestionFormat(file);
    const auto records = SplitRecords(format, file);
    if (!records.ok()) {
      EXPECT_GT(records.status().message()[0], '0');
      continue;
    }
    uint64_t line = 1;
    for (const QuestionRecord& record : *records) {
      EXPECT_GE(record.line, line);
      line = record.line;
      EXPECT_TRUE(record.text.data() >= file.data() &&
                  record.text.data() + record.text.size() <= file.data() + file.size());
      const auto question = ParseQuestion(format, record.text);
      EXPECT_EQ(question.ok(), question.status().message().empty());
    }
  }
  const std::string deep = "[" + std::string(1 << 20, '[');
  EXPECT_FALSE(SplitRecords(QuestionFormat::kSvamp, deep).ok());
  EXPECT_FALSE(ParseQuestion(QuestionFormat::kGsm8k, deep).ok());
}

TEST(QuestionFile, EveryPublishedPuzzleIsSolvedAndGraded) {
  const auto grader = MakeGrader("expression");
  const std::string path = SharedData("datasets/game24.csv");
  QUERN_NEED_SHARED_DATA("datasets/game24.csv");
  const auto questions = ReadQuestionFile(QuestionFormat::kGame24, *ReadFile(path), path);
  ASSERT_TRUE(questions.ok()) << questions.status().message();
  EXPECT_EQ(questions->size(), 1362u);
  for (size_t i = 0; i < questions->size(); ++i) {
    const FileQuestion& q = (*questions)[i];
    const std::string numbers = q.id.substr(std::string("game24-").size());
    EXPECT_TRUE(Grade(**grader, "So: " + q.solution, numbers + " = 24")) << q.solution;
    EXPECT_FALSE(Grade(**grader, q.solution, numbers + " = 25")) << q.solution;
    EXPECT_FALSE(Grade(**grader, q.solution, (*questions)[(i + 1) % questions->size()].answer)) << q.solution;
  }
}

// The rule by which solutions of GSM8K form are flagged where they are published: the first "#### " with a number of
// digits, commas and points, commas away, equal as text. (#### -0 is not 0 there.)
std::string HashAnswer(const std::string& text) {
  size_t at = text.find("#### ");
  if (at == std::string::npos) return "[invalid]";
  at += 5;
  std::string number;
  if (at < text.size() && text[at] == '-') number = text[at++];
  for (; at < text.size() && std::string_view("0123456789.,").find(text[at]) != std::string_view::npos; ++at)
    if (text[at] != ',') number += text[at];
  return number.empty() ? "[invalid]" : number;
}

TEST(QuestionFile, GradersAgreeWithTheRuleOfGradeSchoolMath) {
  const std::string path = SharedData("datasets/gsm8k_train.jsonl");
  QUERN_NEED_SHARED_DATA("datasets/gsm8k_train.jsonl");
  const auto questions = *ReadQuestionFile(QuestionFormat::kGsm8k, *ReadFile(path), path);
  Random random(4);
  for (const char* spec : {"number", "boxed:number"}) {
    const auto grader = *MakeGrader(spec);
    size_t flags = 0, agree = 0, right = 0;
    for (const FileQuestion& q : questions) {
      const std::string work = q.solution.substr(0, q.solution.rfind("####"));
      // A model's solutions: the right one, another question's, answers that are nearly right, one that was cut off.
      const std::string truth = HashAnswer(q.solution);
      const FileQuestion& other = questions[random.Below(questions.size())];
      const int64_t value = std::atoll(truth.c_str());
      for (const std::string& solution :
           {q.solution, other.solution, work + "#### " + other.answer, StrCat(work, "#### ", value + 1),
            StrCat(work, "#### ", value - 1), StrCat(work, "#### ", value * 10),
            work + "#### " + (truth[0] == '-' ? truth.substr(1) : "-" + truth), StrCat(work, "#### ", truth),
            StrCat(work, "#### ", truth, ".5"), StrCat(work, "#### ", q.answer)}) {
        const bool flag = HashAnswer(solution) == truth;
        const bool ours = Grade(*grader, solution, q.answer);
        ++flags;
        right += flag ? 1 : 0;
        agree += flag == ours ? 1 : 0;
      }
    }
    std::printf("  %s: %zu of %zu flags agree (%.3f %%), %zu of them right\n", spec, agree, flags,
                100.0 * static_cast<double>(agree) / static_cast<double>(flags), right);
    EXPECT_GE(static_cast<double>(agree), 0.999 * static_cast<double>(flags)) << spec;
  }
  // Answers as models write them, which that rule refuses; and other answers in the same dress.
  const auto number = *MakeGrader("number");
  const auto boxed = *MakeGrader("boxed:number");
  for (const FileQuestion& q : questions) {
    const std::string truth = HashAnswer(q.solution);
    const std::string work = q.solution.substr(0, q.solution.rfind("####"));
    const FileQuestion& other = questions[random.Below(questions.size())];
    for (const auto& [before, after] :
         {std::pair("\\boxed{", "}"), std::pair("\\boxed{\\$", "}"), std::pair("\\boxed{", " \\text{ apples}}"),
          std::pair("\\boxed{x = ", ".00}"), std::pair("The answer is $", "."), std::pair("#### $", " dollars"),
          std::pair("Therefore the answer is: **", "**"), std::pair("so the answer is ", " km per hour.")}) {
      EXPECT_TRUE(Grade(*boxed, work + before + q.answer + after, truth)) << before << q.answer << after;
      EXPECT_TRUE(Grade(*number, work + before + truth + after, q.answer)) << before << truth << after;
      EXPECT_TRUE(other.answer == q.answer || !Grade(*boxed, work + before + other.answer + after, truth))
          << before << other.answer;
    }
  }
}

// Solutions of four models to the test questions, flagged right or wrong (example_model_solutions.jsonl of the
// repository openai/grade-school-math, MIT): {"ground_truth", MODEL: {"solution": "...\nA: 26", "is_correct"}}.
TEST(QuestionFile, GradersAgreeWithFlagsOfModelSolutions) {
  QUERN_NEED_SHARED_DATA("datasets/example_model_solutions.jsonl");
  const std::string file = *ReadFile(SharedData("datasets/example_model_solutions.jsonl"));
  const auto grader = *MakeGrader("number");
  size_t flags = 0, agree = 0, right = 0;
  for (const std::string& line : StrSplit(file, '\n')) {
    if (line.empty()) continue;
    const auto row = nlohmann::json::parse(line);
    for (const char* model : {"6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"}) {
      const bool flag = row.at(model).at("is_correct").get<bool>();
      const std::string solution = row.at(model).at("solution").get<std::string>();
      const bool ours = Grade(*grader, solution, row.at("ground_truth").get<std::string>());
      ++flags;
      right += flag ? 1 : 0;
      agree += flag == ours ? 1 : 0;
      if (flag != ours) std::printf("  flag %d: ...%s\n", flag, solution.substr(solution.rfind('\n') + 1).c_str());
    }
  }
  std::printf("  %zu of %zu flags agree (%.3f %%), %zu of them right\n", agree, flags,
              100.0 * static_cast<double>(agree) / static_cast<double>(flags), right);
  EXPECT_GE(static_cast<double>(agree), 0.99 * static_cast<double>(flags));
}

// What people calculated on the way, as an oracle for the evaluation: <<48/2=24>> and the equations of SVAMP.
TEST(QuestionFile, ExpressionsEvaluateAsPeopleDid) {
  QUERN_NEED_SHARED_DATA("datasets/gsm8k_train.jsonl");
  const auto expression = *MakeGrader("expression");
  const auto number = *MakeGrader("number,tolerance=0.01");
  const auto value_of = [&](const std::string& text) {
    const auto found = expression->Extract(text);
    const std::string value = found ? expression->Normalise(*found) : "";
    return value.substr(0, value.find(' '));
  };
  std::string path = SharedData("datasets/gsm8k_train.jsonl");
  size_t all = 0, equal = 0, unread = 0;
  const auto gsm8k = *ReadQuestionFile(QuestionFormat::kGsm8k, *ReadFile(path), path);
  for (const FileQuestion& q : gsm8k) {
    for (size_t at = q.solution.find("<<"); at != std::string::npos; at = q.solution.find("<<", at + 2)) {
      const std::string note = q.solution.substr(at + 2, q.solution.find(">>", at) - at - 2);
      const size_t sign = note.rfind('=');
      if (sign == std::string::npos || note.find_first_of("+-*/", 1) > sign) continue;  // no operation in it
      ++all;
      const std::string value = value_of(note.substr(0, sign));
      if (value.empty()) ++unread;
      equal += !value.empty() && number->Matches(value, note.substr(sign + 1)) ? 1 : 0;
    }
  }
  std::printf("  GSM8K: %zu of %zu calculations give what stands there (%zu are no plain expression)\n", equal, all,
              unread);
  EXPECT_GT(all, 20000u);
  EXPECT_GE(static_cast<double>(equal), 0.999 * static_cast<double>(all));  // others: signs, //, slips
  path = SharedData("datasets/SVAMP.json");
  QUERN_NEED_SHARED_DATA("datasets/SVAMP.json");
  size_t same = 0;
  const auto svamp = *ReadQuestionFile(QuestionFormat::kSvamp, *ReadFile(path), path);
  for (const FileQuestion& q : svamp) same += number->Matches(value_of(q.solution), q.answer) ? 1 : 0;
  std::printf("  SVAMP: %zu of %zu equations give the answer\n", same, svamp.size());
  EXPECT_EQ(same, 998u);  // one has no operation, one contradicts its own answer
}

// Rationales as people wrote them, without the sentence that the reader adds: does the choice grader read their letter?
TEST(QuestionFile, ChoicesAreReadFromRationales) {
  const std::string path = SharedData("datasets/aqua_dev.json");
  QUERN_NEED_SHARED_DATA("datasets/aqua_dev.json");
  const auto grader = *MakeGrader("choice,letters=ABCDE");
  const auto questions = *ReadQuestionFile(QuestionFormat::kAqua, *ReadFile(path), path);
  size_t found = 0, right = 0;
  for (const FileQuestion& q : questions) {
    const std::string rationale = q.solution.substr(0, q.solution.rfind("\nThe answer is"));
    const auto letter = grader->Extract(rationale);
    found += letter ? 1 : 0;
    right += letter && *letter == q.answer ? 1 : 0;
  }
  std::printf("  AQuA: a letter in %zu of %zu rationales, the right one in %zu\n", found, questions.size(), right);
  EXPECT_GE(found, 230u);  // others name no letter
  EXPECT_GE(static_cast<double>(right), 0.99 * static_cast<double>(found));
}

}  // namespace
}  // namespace quern
