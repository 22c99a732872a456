#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace quern {

// Files of questions with known answers, as they are published. Read by the `dataset` environment and by import.
enum class QuestionFormat {
  kPlain,  // JSON Lines {"question" or "prompt", "answer"} and perhaps "id"; what follows "####" is the final answer
  kGsm8k,  // JSON Lines {"question", "answer": "work ... #### 72"}
  kSvamp,  // a JSON list of {"ID", "Body", "Question", "Equation", "Answer"}
  kAqua,   // JSON Lines {"question", "options": ["A)..", ..], "rationale", "correct": "A"}
  kStrategyQa,  // a JSON list of {"qid", "question", "answer": true, "facts"}
  kArc,         // JSON Lines {"id", "question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}
  kSums,        // lines "54+87=141"
  kGame24,      // CSV with the header "Rank,Puzzles,..": "1,1 1 4 6,..": make 24 of four numbers
};

// plain, gsm8k, svamp, aqua, strategyqa, arc, sums, game24: in the order of the enum.
std::vector<std::string> QuestionFormatNames();
Result<QuestionFormat> ParseQuestionFormat(const std::string& name);
std::string QuestionFormatName(QuestionFormat format);
// What fits its answers: a spec of methods/graders/grader.h.
std::string DefaultGrader(QuestionFormat format);
// From the first record; nothing when it is none of them. `head`: the file or its beginning.
std::optional<QuestionFormat> DetectQuestionFormat(std::string_view head);

struct FileQuestion {
  std::string id;        // the file's own, or made of the question alone: no line numbers
  std::string text;      // choices rendered one a line, "(A) fog"; choices named 1, 2, .. become A, B, ..
  std::string answer;    // what a grader compares with: "72", "C", "yes", "(1 + 2) * 8 * 1 = 24"
  std::string solution;  // the worked one, which ends in the answer; the answer where the file has none
};

// Other column names of kPlain; empty: the usual ones.
struct QuestionColumns {
  std::string question;
  std::string answer;
};

// One record of a file, where it begins (lines count from 1).
struct QuestionRecord {
  uint64_t line = 0;
  std::string_view text;
};
// Views into `file`. An error begins with the line's number.
Result<std::vector<QuestionRecord>> SplitRecords(QuestionFormat format, std::string_view file);
// Of a JSON list that may be cut off behind it.
std::optional<std::string_view> FirstListElement(std::string_view file);
Result<FileQuestion> ParseQuestion(QuestionFormat format, std::string_view record, const QuestionColumns& columns = {});

// Every question of a file; the first bad record is the error "source:line: reason".
Result<std::vector<FileQuestion>> ReadQuestionFile(QuestionFormat format, std::string_view file,
                                                   const std::string& source, const QuestionColumns& columns = {});

// The same on every machine and in every version (FNV-1a).
uint64_t StableHash(std::string_view text);

// An expression over just these numbers that is 24, e.g. "(10 - 4) * (13 - 9)"; "" when there is none.
std::string SolveGame24(const std::vector<int>& numbers);

}  // namespace quern
