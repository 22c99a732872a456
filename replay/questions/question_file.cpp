#include "replay/questions/question_file.h"

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/strings.h"

namespace quern {

namespace {

using Json = nlohmann::json;

struct FormatEntry {
  const char* name;
  const char* grader;
};
// In the order of QuestionFormat.
constexpr FormatEntry kFormats[] = {{"plain", "exact"}, {"gsm8k", "number"},      {"svamp", "number"},
                                    {"aqua", "choice"}, {"strategyqa", "yes_no"}, {"arc", "choice"},
                                    {"sums", "number"}, {"game24", "expression"}};

constexpr std::string_view kFinalAnswer = "####";

std::string Trimmed(std::string_view text) {
  const std::string_view space = " \t\r\n";
  const size_t begin = text.find_first_not_of(space);
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(space) - begin + 1));
}

std::string HashName(const char* format, std::string_view question) {
  return StrFormat("%s-%016llx", format, static_cast<unsigned long long>(StableHash(question)));
}

// A number as people write it: 51, not 51.0.
std::string NumberText(const Json& value) {
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (number == std::floor(number) && std::abs(number) < 1e15) return StrFormat("%.0f", number);
  }
  return value.dump();
}

// Reads columns and remembers the first mistake.
class Columns {
 public:
  explicit Columns(const Json& row) : row_(row) {}
  std::string Text(const std::string& key) {
    const Json* value = Need(key);
    if (value == nullptr) return "";
    if (value->is_string()) return value->get<std::string>();
    if (value->is_number()) return NumberText(*value);
    return Fail(StrCat("\"", key, "\" is neither a text nor a number"));
  }
  bool Flag(const std::string& key) {
    const Json* value = Need(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) Fail(StrCat("\"", key, "\" is neither true nor false"));
    return value->is_boolean() && value->get<bool>();
  }
  const Json& List(const std::string& key) {
    static const Json kEmpty = Json::array();
    const Json* value = Need(key);
    if (value != nullptr && !value->is_array()) Fail(StrCat("\"", key, "\" is not a list"));
    return value != nullptr && value->is_array() ? *value : kEmpty;
  }
  const Json* Need(const std::string& key) {
    const auto found = row_.find(key);
    if (found != row_.end()) return &*found;
    Fail(StrCat("has no \"", key, "\""));
    return nullptr;
  }
  std::string Fail(std::string reason) {
    if (status_.ok()) status_ = InvalidArgument(std::move(reason));
    return "";
  }
  const Status& status() const { return status_; }

 private:
  const Json& row_;
  Status status_;
};

struct Choice {
  std::string label;
  std::string text;
};

// Adds "(A) text" lines; returns the letter of the choice named `correct`.
std::string RenderChoices(const std::vector<Choice>& choices, const std::string& correct, Columns& row,
                          std::string* text) {
  if (choices.size() < 2 || choices.size() > 8) return row.Fail(StrCat(choices.size(), " choices (2 to 8)"));
  std::string letter;
  for (size_t i = 0; i < choices.size(); ++i) {
    const std::string name(1, static_cast<char>('A' + i));
    if (choices[i].label == correct) letter = name;
    *text += "\n(" + name + ") " + choices[i].text;
  }
  if (letter.empty()) row.Fail(StrCat("the right answer \"", correct, "\" is none of the choices"));
  return letter;
}

void ReadPlain(const Json& json, const QuestionColumns& columns, Columns& row, FileQuestion* q) {
  std::string key = columns.question;
  if (key.empty()) key = json.contains("prompt") ? "prompt" : "question";
  if (columns.question.empty() && !json.contains(key)) {
    row.Fail("has no \"prompt\" or \"question\"");
    return;
  }
  q->text = row.Text(key);
  q->solution = row.Text(columns.answer.empty() ? "answer" : columns.answer);
  const size_t mark = q->solution.rfind(kFinalAnswer);
  q->answer = mark == std::string::npos ? q->solution : Trimmed(q->solution.substr(mark + kFinalAnswer.size()));
  q->id = json.contains("id") ? row.Text("id") : q->text;
}

void ReadGsm8k(Columns& row, FileQuestion* q) {
  q->text = row.Text("question");
  q->solution = row.Text("answer");
  const size_t mark = q->solution.rfind(kFinalAnswer);
  if (mark == std::string::npos) {
    row.Fail("\"answer\" has no \"####\" before its final answer");
    return;
  }
  q->answer = Trimmed(q->solution.substr(mark + kFinalAnswer.size()));
  if (q->answer.empty()) row.Fail("nothing follows \"####\" in \"answer\"");
  q->id = HashName("gsm8k", q->text);
}

void ReadSvamp(Columns& row, FileQuestion* q) {
  q->id = row.Text("ID");
  const std::string body = Trimmed(row.Text("Body"));
  const bool sentence = body.empty() || body.back() == '.' || body.back() == '?' || body.back() == '!';
  q->text = body + (sentence ? " " : ", ") + Trimmed(row.Text("Question"));
  q->answer = row.Text("Answer");
  q->solution = Trimmed(row.Text("Equation")) + " = " + q->answer;
}

void ReadAqua(Columns& row, FileQuestion* q) {
  q->text = row.Text("question");
  q->id = HashName("aqua", q->text);
  std::vector<Choice> choices;
  for (const Json& option : row.List("options")) {
    const std::string text = option.is_string() ? option.get<std::string>() : "";
    if (text.size() < 2 || text[1] != ')') row.Fail("an option is not \"A)...\"");
    choices.push_back({text.substr(0, 1), text.size() < 2 ? "" : Trimmed(text.substr(2))});
  }
  q->answer = RenderChoices(choices, row.Text("correct"), row, &q->text);
  q->solution = Trimmed(row.Text("rationale")) + "\nThe answer is " + q->answer + ".";
}

void ReadStrategyQa(Columns& row, FileQuestion* q) {
  q->id = row.Text("qid");
  q->text = row.Text("question");
  q->answer = row.Flag("answer") ? "yes" : "no";
  for (const Json& fact : row.List("facts")) {
    if (!fact.is_string()) row.Fail("\"facts\" has something that is not a text");
    if (fact.is_string()) q->solution += Trimmed(fact.get<std::string>()) + "\n";
  }
  q->solution += "The answer is " + q->answer + ".";
}

void ReadArc(Columns& row, FileQuestion* q) {
  q->id = row.Text("id");
  const std::string key = row.Text("answerKey");
  const Json* question = row.Need("question");
  if (question == nullptr) return;
  if (!question->is_object()) {
    row.Fail("\"question\" is not an object");
    return;
  }
  Columns inner(*question);
  q->text = inner.Text("stem");
  std::vector<Choice> choices;
  for (const Json& choice : inner.List("choices")) {
    if (!choice.is_object()) {
      row.Fail("a choice is not an object");
      return;
    }
    Columns one(choice);
    choices.push_back({one.Text("label"), one.Text("text")});
    if (!one.status().ok()) row.Fail("a choice " + one.status().message());
  }
  if (!inner.status().ok()) row.Fail("\"question\" " + inner.status().message());
  q->answer = RenderChoices(choices, key, row, &q->text);
  q->solution = q->answer;
}

Result<FileQuestion> ReadSum(std::string_view line) {
  const size_t plus = line.find('+');
  const size_t sign = line.find('=');
  const auto digits = [](std::string_view part) {
    return !part.empty() && part.find_first_not_of("0123456789") == std::string_view::npos;
  };
  if (plus == std::string_view::npos || sign == std::string_view::npos || sign < plus ||
      !digits(line.substr(0, plus)) || !digits(line.substr(plus + 1, sign - plus - 1)) ||
      !digits(line.substr(sign + 1)))
    return InvalidArgument("not a sum like 54+87=141");
  FileQuestion q;
  q.id = line.substr(0, sign);
  q.text = line.substr(0, sign + 1);
  q.answer = line.substr(sign + 1);
  q.solution = q.answer;
  return q;
}

Result<FileQuestion> ReadGame24(std::string_view line) {
  const std::vector<std::string> cells = StrSplit(line, ',');
  std::vector<int> numbers;
  for (const std::string& word : StrSplit(cells.size() < 2 ? "" : Trimmed(cells[1]), ' ')) {
    int number = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
    if (error != std::errc() || end != word.data() + word.size() || number < 1 || number > 1000)
      return InvalidArgument("its second cell is not four numbers like 1 1 4 6");
    numbers.push_back(number);
  }
  if (numbers.size() != 4) return InvalidArgument("its second cell is not four numbers like 1 1 4 6");
  const std::string way = SolveGame24(numbers);
  const std::string puzzle = Trimmed(cells[1]);
  if (way.empty()) return InvalidArgument(StrCat("24 cannot be made of ", puzzle));
  FileQuestion q;
  q.id = "game24-" + puzzle;
  q.text = "Make 24 of the numbers " + puzzle + ". Use each of them once, with + - * / and parentheses.";
  q.answer = way + " = 24";
  q.solution = q.answer;
  return q;
}

std::optional<QuestionFormat> DetectObject(const Json& row) {
  const auto has = [&](std::initializer_list<const char*> keys) {
    for (const char* key : keys)
      if (!row.contains(key)) return false;
    return true;
  };
  if (has({"ID", "Body", "Question", "Equation", "Answer"})) return QuestionFormat::kSvamp;
  if (has({"question", "options", "rationale", "correct"})) return QuestionFormat::kAqua;
  if (has({"qid", "question", "answer", "facts"})) return QuestionFormat::kStrategyQa;
  if (has({"id", "question", "answerKey"}) && row["question"].is_object()) return QuestionFormat::kArc;
  if (has({"messages"}) || has({"completion"}) || !has({"answer"})) return std::nullopt;
  const Json& answer = row["answer"];
  const bool work = answer.is_string() && answer.get_ref<const std::string&>().find(kFinalAnswer) != std::string::npos;
  if (row.contains("question") && row.size() == 2 && work) return QuestionFormat::kGsm8k;
  if (row.contains("question") || row.contains("prompt")) return QuestionFormat::kPlain;
  return std::nullopt;
}

}  // namespace

uint64_t StableHash(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

std::vector<std::string> QuestionFormatNames() {
  std::vector<std::string> names;
  for (const FormatEntry& entry : kFormats) names.emplace_back(entry.name);
  return names;
}

Result<QuestionFormat> ParseQuestionFormat(const std::string& name) {
  const std::vector<std::string> names = QuestionFormatNames();
  for (size_t i = 0; i < names.size(); ++i)
    if (names[i] == name) return static_cast<QuestionFormat>(i);
  const std::string near = NearestName(name, names);
  return InvalidArgument(StrCat("unknown format \"", name, "\"",
                                near.empty() ? "" : StrCat("; did you mean \"", near, "\"?"), " (known: auto, ",
                                StrJoin(names, ", "), ")"));
}

std::string QuestionFormatName(QuestionFormat format) { return kFormats[static_cast<size_t>(format)].name; }
std::string DefaultGrader(QuestionFormat format) { return kFormats[static_cast<size_t>(format)].grader; }

std::optional<QuestionFormat> DetectQuestionFormat(std::string_view head) {
  if (head.starts_with("\xef\xbb\xbf")) head.remove_prefix(3);
  const size_t begin = head.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return std::nullopt;
  head.remove_prefix(begin);
  if (head.starts_with("Rank,Puzzles")) return QuestionFormat::kGame24;
  const std::string_view line = head.substr(0, head.find('\n'));
  if (ReadSum(Trimmed(line)).ok()) return QuestionFormat::kSums;
  if (head.front() == '{') {
    const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object()) return std::nullopt;
    const std::optional<QuestionFormat> format = DetectObject(row);
    // These two are lists, not lines.
    return format == QuestionFormat::kSvamp || format == QuestionFormat::kStrategyQa ? std::nullopt : format;
  }
  if (head.front() != '[') return std::nullopt;
  const std::optional<std::string_view> first = FirstListElement(head);
  const Json row = Json::parse(first.value_or(""), nullptr, /*allow_exceptions=*/false);
  const std::optional<QuestionFormat> format = row.is_object() ? DetectObject(row) : std::nullopt;
  return format == QuestionFormat::kSvamp || format == QuestionFormat::kStrategyQa ? format : std::nullopt;
}

Result<FileQuestion> ParseQuestion(QuestionFormat format, std::string_view record, const QuestionColumns& columns) {
  if (format == QuestionFormat::kSums) return ReadSum(record);
  if (format == QuestionFormat::kGame24) return ReadGame24(record);
  const Json json = Json::parse(record, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("not a JSON object");
  Columns row(json);
  FileQuestion q;
  switch (format) {
    case QuestionFormat::kPlain: ReadPlain(json, columns, row, &q); break;
    case QuestionFormat::kGsm8k: ReadGsm8k(row, &q); break;
    case QuestionFormat::kSvamp: ReadSvamp(row, &q); break;
    case QuestionFormat::kAqua: ReadAqua(row, &q); break;
    case QuestionFormat::kStrategyQa: ReadStrategyQa(row, &q); break;
    case QuestionFormat::kArc: ReadArc(row, &q); break;
    case QuestionFormat::kSums:
    case QuestionFormat::kGame24: break;
  }
  if (!row.status().ok()) return row.status();
  return q;
}

Result<std::vector<FileQuestion>> ReadQuestionFile(QuestionFormat format, std::string_view file,
                                                   const std::string& source, const QuestionColumns& columns) {
  const Result<std::vector<QuestionRecord>> records = SplitRecords(format, file);
  if (!records.ok()) return InvalidArgument(StrCat(source, ":", records.status().message()));
  std::vector<FileQuestion> questions;
  for (const QuestionRecord& record : *records) {
    Result<FileQuestion> question = ParseQuestion(format, record.text, columns);
    if (!question.ok()) return InvalidArgument(StrCat(source, ":", record.line, ": ", question.status().message()));
    questions.push_back(std::move(*question));
  }
  if (questions.empty()) return InvalidArgument(source + ": no questions in it");
  return questions;
}

}  // namespace quern
