#include "actors/environments/reasoning.h"

#include <set>
#include <sstream>
#include <utility>

#include "actors/environments/factories.h"
#include "actors/environments/options.h"
#include "actors/environments/questions.h"
#include "actors/environments/reasoning_language.h"
#include "base/check.h"
#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"

namespace quern {

namespace {

constexpr char kSolve[] = "solve:";
constexpr char kGrader[] = "boxed:number";
constexpr uint64_t kSplitStream = 0x73706c69;
constexpr double kTestShare = 0.2;

// FNV-1a: a question is in the same part on every machine.
bool InTestPart(const std::string& question) {
  uint64_t hash = 1469598103934665603u;
  for (const char c : question) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return Random(hash, kSplitStream).Uniform() < kTestShare;
}

struct Corpus {
  std::vector<Family> families;
  std::vector<std::string> guidelines;
  double direct_share = 0.4;
  int max_tokens = 160;
};

class CorpusEnvironment : public Environment {
 public:
  explicit CorpusEnvironment(std::shared_ptr<const Corpus> corpus) : corpus_(std::move(corpus)) {}

  Observation Reset(uint64_t seed) override {
    Random random(seed, kTaskStream);
    const Family family = corpus_->families[random.Below(corpus_->families.size())];
    std::string question;
    do {
      question = QuestionText(DrawTask(family, random));
    } while (InTestPart(question));
    question_ = question;
    if (random.Uniform() < corpus_->direct_share) return {DirectPrompt(question)};
    const std::string& guideline = corpus_->guidelines[random.Below(corpus_->guidelines.size())];
    const Strategy strategy = *StrategyIn(guideline);
    switch (random.Below(3)) {
      case 0: return {StagePrompt(question, guideline, "adapt")};
      case 1: return {StagePrompt(question, AdaptedText(family, strategy), "plan")};
      default: return {StagePrompt(question, PlanText(family, strategy), "solve")};
    }
  }
  StepOutcome Step(const std::string&) override {
    return {.text = "", .reward = 0, .done = true, .success = false, .truncated = false};
  }
  std::string action_end() const override { return ""; }
  int max_action_tokens() const override { return corpus_->max_tokens; }
  int max_turns() const override { return 1; }
  double min_return() const override { return 0; }
  double max_return() const override { return 1; }
  std::string task_id() const override { return question_; }

 private:
  std::shared_ptr<const Corpus> corpus_;
  std::string question_;
};

class Author : public Player {
 public:
  Author(double slip, double guess) : slip_(slip), guess_(guess) {}

  void Reset(uint64_t seed, const Observation& first) override {
    random_ = Random(seed, kPlayerStream);
    prompt_ = first.text;
  }
  std::string Act() override {
    const size_t first = prompt_.find('\n');
    const size_t last = prompt_.rfind('\n');
    const std::optional<ReasoningTask> task = ParseQuestion(prompt_.substr(0, first));
    QUERN_CHECK(task && first != std::string::npos, "not a prompt of this language: " + prompt_);
    const std::string stage = prompt_.substr(last + 1);
    if (first == last) {
      const auto any = static_cast<Strategy>(random_.Below(kStrategies));
      if (random_.Uniform() < guess_) return StrCat("#### ", Answer(*task));
      return PathText(*task, any, slip_, random_);
    }
    const std::optional<Strategy> strategy = StrategyIn(prompt_.substr(first, last - first));
    QUERN_CHECK(strategy, "no strategy is named in: " + prompt_);
    if (stage == "adapt:") return AdaptedText(task->family, *strategy);
    if (stage == "plan:") return PlanText(task->family, *strategy);
    return PathText(*task, *strategy, slip_, random_);
  }
  void Observe(const StepOutcome&) override {}

 private:
  double slip_;
  double guess_;
  Random random_{0};
  std::string prompt_;
};

class ReasoningFactory : public EnvironmentFactory {
 public:
  ReasoningFactory(std::shared_ptr<const QuestionSet> set, std::shared_ptr<const Corpus> corpus, bool corpus_prompts)
      : set_(std::move(set)), corpus_(std::move(corpus)), corpus_prompts_(corpus_prompts) {}

  std::unique_ptr<Environment> NewEnvironment() const override {
    if (corpus_prompts_) return std::make_unique<CorpusEnvironment>(corpus_);
    return NewQuestionEnvironment(set_);
  }
  std::vector<std::string> player_names() const override { return {"author"}; }
  size_t task_count() const override { return set_->rows.size(); }
  const QuestionSource* questions() const override { return set_.get(); }
  Result<std::unique_ptr<Player>> NewPlayer(const std::string& name, const Options& options) const override {
    if (name != "author") return UnknownName("player of reasoning", name, player_names());
    OptionReader reader("player author of reasoning", options);
    const double slip = reader.Number("slip", 0.1, 0, 1);
    const double guess = reader.Number("guess", 0.5, 0, 1);
    QUERN_RETURN_IF_ERROR(reader.Finish());
    return std::unique_ptr<Player>(std::make_unique<Author>(slip, guess));
  }
  std::vector<std::string> vocabulary() const override {
    const std::vector<std::string> language = LanguagePieces();
    std::set<std::string> pieces(language.begin(), language.end());
    pieces.insert({"adapt:", "plan:", kSolve});
    for (const std::string& guideline : corpus_->guidelines) {
      std::istringstream in(guideline);
      std::string word;
      for (bool first = true; in >> word; first = false) pieces.insert(first ? word : " " + word);
    }
    return {pieces.begin(), pieces.end()};
  }

 private:
  std::shared_ptr<const QuestionSet> set_;
  std::shared_ptr<const Corpus> corpus_;
  bool corpus_prompts_;
};

Result<std::vector<Family>> ParseFamilies(const std::string& list) {
  std::vector<Family> families;
  for (const std::string& item : StrSplit(list, ',')) {
    const std::optional<Family> family = ParseFamily(Trim(item));
    if (!family) {
      std::vector<std::string> known;
      for (int i = 0; i < kFamilies; ++i) known.emplace_back(FamilyName(static_cast<Family>(i)));
      return UnknownName("family of environment reasoning", Trim(item), known);
    }
    families.push_back(*family);
  }
  return families;
}

Result<std::vector<std::string>> ReadGuidelines(const std::string& path) {
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  std::vector<std::string> guidelines;
  int number = 0;
  for (const std::string& line : StrSplit(text, '\n')) {
    ++number;
    const std::string guideline = Trim(line);
    if (guideline.empty() || guideline[0] == '#') continue;
    if (!StrategyIn(guideline))
      return InvalidArgument(StrCat(path, ":", number, ": names none of left, right, pairs, halves, sorted"));
    guidelines.push_back(guideline);
  }
  if (guidelines.empty()) return InvalidArgument(path + ": no guidelines in it; give one a line");
  return guidelines;
}

}  // namespace

std::string DirectPrompt(const std::string& question) { return StrCat(question, "\n", kSolve); }
std::string StagePrompt(const std::string& question, const std::string& given, const std::string& stage) {
  return StrCat(question, "\n", given, "\n", stage, ":");
}

FactoryResult MakeReasoningFactory(const Options& options, const std::string& base_dir) {
  OptionReader reader("environment reasoning", options);
  const std::string families = reader.Text("families", "sum,max,xor,count");
  const std::string split = reader.Choice("split", {"train", "test", "all"});
  const int questions = reader.Integer("questions", 1000, 1, 1 << 20);
  const int draw = reader.Integer("draw", 0, 0, 1 << 30);
  const std::string guidelines = reader.Text("guidelines", "");
  const bool corpus_prompts = reader.Choice("prompts", {"direct", "corpus"}) == "corpus";
  auto corpus = std::make_shared<Corpus>();
  corpus->direct_share = reader.Number("direct_share", 0.4, 0, 1);
  corpus->max_tokens = reader.Integer("max_tokens", 160, 1, 1 << 20);
  auto set = std::make_shared<QuestionSet>();
  set->suffix = StrCat("\n", kSolve);
  set->grader = MakeGrader(kGrader).value();
  set->max_tokens = corpus->max_tokens;
  set->in_turn = reader.Choice("tasks", {"random", "all"}) == "all";
  QUERN_RETURN_IF_ERROR(reader.Finish());
  QUERN_ASSIGN_OR_RETURN(corpus->families, ParseFamilies(families));
  if (!guidelines.empty()) {
    QUERN_ASSIGN_OR_RETURN(corpus->guidelines, ReadGuidelines(ResolvePath(base_dir, guidelines)));
  } else if (corpus_prompts) {
    return InvalidArgument("environment reasoning: prompts: corpus needs guidelines, a file with one a line");
  }
  // Families in turn, so that any number of questions holds equally many of each.
  Random random(static_cast<uint64_t>(draw), kTaskStream);
  std::set<std::string> seen;
  for (int failed = 0; static_cast<int>(set->rows.size()) < questions;) {
    const Family family = corpus->families[set->rows.size() % corpus->families.size()];
    const ReasoningTask task = DrawTask(family, random);
    const std::string text = QuestionText(task);
    if ((split != "all" && InTestPart(text) != (split == "test")) || !seen.insert(text).second) {
      if (++failed > 100 * questions + 10000)
        return InvalidArgument(StrCat("environment reasoning: family ", FamilyName(family), " has no ",
                                      questions / static_cast<int>(corpus->families.size()),
                                      " different questions in split ", split, "; ask for fewer"));
      continue;
    }
    Random exact(0);
    set->rows.push_back({.id = text,
                         .text = text,
                         .answer = StrCat(Answer(task)),
                         .solution = PathText(task, Strategy::kLeft, 0, exact),
                         .grader = kGrader});
  }
  return FactoryResult(std::make_shared<ReasoningFactory>(std::move(set), std::move(corpus), corpus_prompts));
}

}  // namespace quern
