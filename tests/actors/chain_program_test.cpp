// Reasoning chains played by a small model with random weights: what is asked, what is stored, and that neither
// depends on what else is played.
#include "actors/chain_program.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "base/strings.h"
#include "base/thread_pool.h"
#include "compute/cpu/cpu_ops.h"
#include "model/tokenizer/char_tokenizer.h"
#include "replay/limits.h"

namespace quern {
namespace {

// Questions whose answer is one letter, A or B.
class LetterQuestions : public QuestionSource {
 public:
  LetterQuestions() {
    for (int i = 0; i < 6; ++i)
      questions_.push_back({.id = StrCat("q", i),
                            .text = StrCat("q", i),
                            .answer = i % 2 == 0 ? "A" : "B",
                            .solution = "",
                            .grader = "choice,letters=AB"});
  }
  size_t size() const override { return questions_.size(); }
  const Question& At(size_t i) const override { return questions_[i]; }
  std::string Prompt(size_t i) const override { return questions_[i].text + "?"; }

 private:
  std::vector<Question> questions_;
};

class LetterEnvironment : public Environment {
 public:
  Observation Reset(uint64_t) override { return {"?"}; }
  StepOutcome Step(const std::string&) override { return {}; }
  std::string action_end() const override { return ";"; }
  int max_action_tokens() const override { return 6; }
  int max_turns() const override { return 1; }
  double min_return() const override { return 0; }
  double max_return() const override { return 1; }
  std::string task_id() const override { return ""; }
};

class LetterFactory : public EnvironmentFactory {
 public:
  std::unique_ptr<Environment> NewEnvironment() const override { return std::make_unique<LetterEnvironment>(); }
  Result<std::unique_ptr<Player>> NewPlayer(const std::string&, const Options&) const override {
    return NotFound("none");
  }
  std::vector<std::string> player_names() const override { return {}; }
  std::vector<std::string> vocabulary() const override { return {}; }
  size_t task_count() const override { return questions_.size(); }
  const QuestionSource* questions() const override { return &questions_; }

 private:
  LetterQuestions questions_;
};

// Prefers some ids, so that chance finds right answers.
class LetterHead : public PolicyHead {
 public:
  explicit LetterHead(std::vector<int32_t> favoured) : favoured_(std::move(favoured)) {}
  int models() const override { return 1; }
  bool copies() const override { return false; }
  void Combine(std::span<const std::span<const float>> logits, std::span<float> out) const override {
    std::copy(logits[0].begin(), logits[0].end(), out.begin());
    for (const int32_t id : favoured_) out[static_cast<size_t>(id)] += 3;
  }

 private:
  std::vector<int32_t> favoured_;
};

class ChainProgramTest : public ::testing::Test {
 protected:
  ChainProgramTest() : pool_(2), ops_(NewCpuOps(&pool_)) {
    std::vector<std::string> pieces;
    for (const char c : std::string("ABCq0123456789?;.:|!h")) pieces.emplace_back(1, c);
    tokenizer_ = *Tokenizer::Parse(*MakeTokenizerJson(pieces, {"<pad>", "</s>"}),
                                   MakeTokenizerConfigJson({.bos = {}, .eos = "</s>", .unk = {}, .pad = "<pad>"}), "t");
    policy_ = NewPolicy(false);
    options_.run = "run";
    options_.end_ids = {1};
  }

  std::shared_ptr<Policy> NewPolicy(bool selective) {
    ModelConfig config;
    config.selective_attention = selective;
    config.vocab_size = tokenizer_->vocab_size();
    config.hidden_size = 32;
    config.intermediate_size = 64;
    config.layers = 1;
    config.heads = 2;
    config.kv_heads = 2;
    config.head_dim = 16;
    config.initializer_range = 0.3;
    Parameters parameters(config);
    parameters.Initialize(config, 3);
    auto model = std::make_shared<ServedModel>(*ops_, config, DType::kF32, 64);
    QUERN_CHECK(model->weights.Load(parameters.Source()).ok());
    auto policy = std::make_shared<Policy>();
    policy->label = "test";
    policy->models = {model};
    policy->head = std::make_shared<LetterHead>(tokenizer_->Encode("AB;", false));
    return policy;
  }

  // Six questions, three guidelines, four chains of each.
  static v1::RolloutTask Task() {
    v1::RolloutTask task;
    task.set_stage("regenesis-1");
    task.set_episodes(6);
    task.set_seed(7);
    task.add_tags("regenesis");
    task.set_source(v1::SOURCE_GENERATED);
    task.set_generation_depth(2);
    v1::WeightVersion& weights = *task.mutable_policy()->add_weights();
    weights.set_name("sft");
    weights.set_version(4);
    weights.set_content_hash("abc");
    v1::ChainProgram& program = *task.mutable_program();
    for (const auto& [name, prompt] :
         {std::pair("adapt", "{guideline}:{question}{hint}"), std::pair("plan", "{adapted}|{question}"),
          std::pair("solve", "{structure}.{prompt}{hint}")}) {
      v1::ChainStageSpec& stage = *program.add_stages();
      stage.set_name(name);
      stage.set_prompt(prompt);
      stage.mutable_sampling()->set_temperature(1);
      stage.mutable_sampling()->set_top_p(0.9f);
      stage.set_max_tokens(name == std::string("solve") ? 0 : 3);
    }
    for (const char* guideline : {"1", "2", "3"}) program.add_guidelines(guideline);
    program.set_chains(12);
    program.set_hinted_chains(4);
    program.set_hint("!{answer}");
    program.set_opener("");
    program.set_max_kept(2);
    return task;
  }

  std::map<std::string, v1::Trajectory> Play(const v1::RolloutTask& task, int64_t concurrent = 64,
                                             const EngineOptions& engine_options = {}) {
    Engine engine(*ops_, engine_options);
    engine.SetPolicy(policy_);
    RolloutOptions options = options_;
    options.concurrent_episodes = concurrent;
    std::map<std::string, v1::Trajectory> records;
    const std::atomic<bool> stop = false;
    const auto sink = [&](v1::Trajectory t) -> Status {
      EXPECT_TRUE(CheckTrajectory(t, {}).ok()) << CheckTrajectory(t, {}).ToString();
      t.clear_created_unix_ms();
      EXPECT_TRUE(records.emplace(t.uid(), t).second) << t.uid();
      return {};
    };
    const auto counters = PlayTask(task, factory_, *tokenizer_, options, &engine, sink, stop);
    EXPECT_TRUE(counters.ok()) << counters.status().ToString();
    EXPECT_FALSE(engine.HasWork());
    if (counters.ok()) {
      EXPECT_EQ(counters->episodes, records.size());
    }
    return records;
  }

  static bool Has(const v1::Trajectory& t, const std::string& tag) {
    return std::find(t.tags().begin(), t.tags().end(), tag) != t.tags().end();
  }
  std::string Text(const std::string& ids) const {
    std::vector<int32_t> values(ids.size() / 4);
    std::memcpy(values.data(), ids.data(), ids.size());
    return tokenizer_->Decode(values, true);
  }

  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const Policy> policy_;
  LetterFactory factory_;
  RolloutOptions options_;
};

std::string Bare(const std::string& text) { return text.ends_with(";") ? text.substr(0, text.size() - 1) : text; }

// Every stage and the record say what was left out of the cache, and what that did to the tokens' log-probabilities.
TEST_F(ChainProgramTest, ChainsUnderACompressionSaySo) {
  v1::RolloutTask task = Task();
  task.mutable_policy()->mutable_sampling()->mutable_compression()->add_budgets(3);
  const std::shared_ptr<Policy> whole = NewPolicy(true), compressed = NewPolicy(true);
  compressed->compression.budgets = {3};
  policy_ = compressed;
  Engine engine(*ops_, {});
  engine.SetPolicy(whole);
  int compared = 0;
  for (const auto& [uid, record] : Play(task)) {
    double sum = 0, tokens = 0;
    for (const v1::ChainStage& stage : record.chain().stages()) {
      ASSERT_EQ(stage.sampling().compression().budgets_size(), 1) << uid;
      const std::string bytes = stage.prompt_token_ids() + stage.token_ids();
      std::vector<int32_t> ids(bytes.size() / 4);
      std::memcpy(ids.data(), bytes.data(), bytes.size());
      std::vector<float> log_probs(stage.log_probs().size() / 4);
      std::memcpy(log_probs.data(), stage.log_probs().data(), stage.log_probs().size());
      const std::vector<float> without = engine.WholeLogProbs(ids);
      for (size_t i = 0; i < log_probs.size(); ++i)
        sum += std::abs(static_cast<double>(log_probs[i] - without[without.size() - log_probs.size() + i]));
      tokens += static_cast<double>(log_probs.size());
    }
    EXPECT_EQ(record.sampling().compression().budgets(0), 3u) << uid;
    if (tokens == 0) continue;
    EXPECT_NEAR(record.log_prob_difference(), sum / tokens, 1e-6) << uid;
    compared += sum > 0;
  }
  EXPECT_GT(compared, 20);
  policy_ = whole;
  for (const auto& [uid, record] : Play(Task())) {
    EXPECT_EQ(record.log_prob_difference(), 0) << uid;
    EXPECT_FALSE(record.sampling().has_compression()) << uid;
  }
}

TEST_F(ChainProgramTest, StoresEveryChainWithWhereItCameFrom) {
  const auto records = Play(Task());
  int solved = 0, hinted = 0, failed = 0;
  std::map<std::string, int> kept;
  for (const auto& [uid, t] : records) {
    SCOPED_TRACE(uid);
    const v1::Chain& chain = t.chain();
    EXPECT_EQ(t.task(), chain.question());
    EXPECT_EQ(chain.guideline_text(), StrCat(chain.guideline()));
    EXPECT_EQ(t.generation_depth(), 2u);
    EXPECT_EQ(t.policies(0).version(), 4u);
    EXPECT_TRUE(Has(t, "regenesis"));
    ASSERT_EQ(chain.stages_size(), 3);
    const std::string hint = chain.hinted() ? "!" + chain.answer() : "";
    // Each stage is told what the one before it said.
    EXPECT_EQ(Text(chain.stages(0).prompt_token_ids()), chain.guideline_text() + ":" + chain.question() + hint);
    EXPECT_EQ(Text(chain.stages(1).prompt_token_ids()), Bare(chain.stages(0).text()) + "|" + chain.question());
    EXPECT_EQ(Text(chain.stages(2).prompt_token_ids()),
              Bare(chain.stages(1).text()) + "." + chain.question() + "?" + hint);
    for (const v1::ChainStage& stage : chain.stages()) {
      EXPECT_EQ(Text(stage.token_ids()), stage.text());
      EXPECT_EQ(stage.log_probs().size(), stage.token_ids().size());
      EXPECT_LE(stage.token_ids().size() / 4, stage.name() == "solve" ? 6u : 3u);
      EXPECT_EQ(stage.sampling().top_p(), 0.9f);
    }
    // What is trained on: the question as evaluation asks it, and the path; nothing of guideline, structure or hint.
    EXPECT_EQ(Text(t.token_ids()), chain.question() + "?" + chain.stages(2).text());
    EXPECT_EQ(t.messages(0).content(), chain.question() + "?");
    EXPECT_EQ(t.loss_mask().find('\1'), 3u);
    float log_prob = 0;
    std::memcpy(&log_prob, t.log_probs().data() + t.log_probs().size() - 4, 4);
    EXPECT_TRUE(std::isnan(log_prob));

    const bool right = Bare(t.messages(1).content()) == chain.answer() && t.done();
    EXPECT_EQ(t.success(), right || (t.verdict() != v1::VERDICT_FAILED));
    EXPECT_EQ(t.episode_return(), t.success() ? 1 : 0);
    EXPECT_EQ(t.verdict(), !t.success()     ? v1::VERDICT_FAILED
                           : chain.hinted() ? v1::VERDICT_HINTED
                                            : v1::VERDICT_VERIFIED);
    EXPECT_EQ(chain.hinted(), Has(t, "hinted"));
    EXPECT_EQ(Has(t, "kept"), chain.rejected().empty());
    if (Has(t, "kept")) {
      EXPECT_TRUE(t.success());
      ++kept[t.task()];
    }
    hinted += chain.hinted() ? 1 : 0;
    solved += t.success() && !chain.hinted() ? 1 : 0;
    failed += t.success() ? 0 : 1;
    // A hinted retry is for questions that no chain solved.
    if (chain.hinted()) {
      for (int i = 0; i < 12; ++i)
        EXPECT_FALSE(records.at(StrCat("run/regenesis-1/", uid.substr(16, 1), "/", i)).success());
      EXPECT_TRUE(Has(records.at(StrCat("run/regenesis-1/", uid.substr(16, 1), "/0")), "unsolved"));
    }
  }
  // The seed gives some of everything; else this test shows nothing.
  EXPECT_GT(solved, 0);
  EXPECT_GT(failed, 0);
  EXPECT_GT(hinted, 0);
  EXPECT_GT(kept.size(), 1u);
  for (const auto& [task, count] : kept) EXPECT_LE(count, 2) << task;
  EXPECT_EQ(records.size(), 72u + static_cast<size_t>(hinted));
}

TEST_F(ChainProgramTest, AChainDoesNotDependOnWhatIsPlayedBesideIt) {
  const auto together = Play(Task());
  const auto expect_same = [&](const std::map<std::string, v1::Trajectory>& records) {
    for (const auto& [uid, t] : records) EXPECT_EQ(t.SerializeAsString(), together.at(uid).SerializeAsString()) << uid;
  };
  const auto few = Play(Task(), 3, {.max_step_tokens = 7});
  EXPECT_EQ(few.size(), together.size());
  expect_same(few);
  v1::RolloutTask part = Task();
  part.set_first_episode(2);
  part.set_episodes(2);
  const auto two = Play(part);
  EXPECT_GE(two.size(), 24u);
  expect_same(two);
  v1::RolloutTask other = Task();
  other.set_seed(8);
  EXPECT_NE(Play(other).begin()->second.chain().stages(0).text() + Play(other).begin()->second.chain().stages(2).text(),
            together.begin()->second.chain().stages(0).text() + together.begin()->second.chain().stages(2).text());
}

TEST_F(ChainProgramTest, StoredQuestionsAreNotAskedAgainAndQuestionsAreStoredWhole) {
  // What is handed over whole, in order; `stored` from an attempt that was ended after two of the questions.
  std::vector<std::set<std::string>> questions;
  std::map<std::string, v1::Trajectory> all;
  int64_t tokens = 0;
  const auto play = [&](const std::set<std::string>& stored, size_t end_after) {
    Engine engine(*ops_, {});
    engine.SetPolicy(policy_);
    RolloutOptions options = options_;
    std::set<std::string> open;
    options.stored = [&](const std::vector<std::string>& uids) -> Result<std::vector<bool>> {
      std::vector<bool> out;
      for (const std::string& uid : uids) out.push_back(stored.contains(uid));
      return out;
    };
    options.whole = [&]() -> Status {
      questions.push_back(open);
      open.clear();
      return questions.size() == end_after ? Cancelled("enough") : Status();
    };
    const std::atomic<bool> stop = false;
    const auto counters = PlayTask(
        Task(), factory_, *tokenizer_, options, &engine,
        [&](v1::Trajectory t) -> Status {
          open.insert(t.uid());
          t.clear_created_unix_ms();
          EXPECT_TRUE(all.emplace(t.uid(), t).second) << t.uid() << " was played again";
          return {};
        },
        stop);
    tokens = counters.ok() ? static_cast<int64_t>(counters->generated_tokens) : -1;
    return counters;
  };
  EXPECT_FALSE(play({}, 2).ok());
  ASSERT_EQ(questions.size(), 2u);
  std::set<std::string> stored = questions[0];
  stored.insert(questions[1].begin(), questions[1].end());
  const auto rest = play(stored, 0);
  ASSERT_TRUE(rest.ok()) << rest.status().ToString();
  EXPECT_EQ(rest->stored, 2u);
  EXPECT_EQ(rest->episodes, all.size() - stored.size());
  // Together they are what one attempt gives, and the tokens of the second are those of its own records.
  const auto whole = Play(Task());
  ASSERT_EQ(whole.size(), all.size());
  int64_t expected = 0;
  for (const auto& [uid, t] : whole) {
    EXPECT_EQ(t.SerializeAsString(), all.at(uid).SerializeAsString()) << uid;
    if (stored.contains(uid)) continue;
    for (const v1::ChainStage& stage : t.chain().stages())
      expected += static_cast<int64_t>(stage.token_ids().size() / 4);
  }
  EXPECT_EQ(tokens, expected);
  const size_t before = questions.size();
  for (const auto& question : questions) stored.insert(question.begin(), question.end());
  EXPECT_EQ(play(stored, 0)->generated_tokens, 0u);
  EXPECT_EQ(questions.size(), before);
}

TEST_F(ChainProgramTest, WithoutLabelsTheMajorityIsTheAnswer) {
  v1::RolloutTask task = Task();
  task.mutable_program()->set_majority(true);
  int chosen = 0;
  std::map<std::string, std::set<std::string>> answers;
  std::map<std::string, std::map<std::string, int>> votes;
  for (const auto& [uid, t] : Play(task)) {
    EXPECT_EQ(t.chain().answer(), "");
    EXPECT_FALSE(t.chain().hinted());
    EXPECT_EQ(t.verdict(), t.success() ? v1::VERDICT_UNVERIFIED : v1::VERDICT_FAILED);
    if (!t.chain().extracted().empty()) ++votes[t.task()][t.chain().extracted()];
    if (!t.success()) continue;
    ++chosen;
    answers[t.task()].insert(t.chain().extracted());
  }
  EXPECT_GT(chosen, 0);
  for (const auto& [question, counts] : votes) {
    const int a = counts.contains("A") ? counts.at("A") : 0, b = counts.contains("B") ? counts.at("B") : 0;
    if (a == b) {
      EXPECT_EQ(answers[question].size(), 0u) << question;
    } else {
      EXPECT_EQ(answers[question], std::set<std::string>{a > b ? "A" : "B"}) << question;
    }
  }
}

TEST_F(ChainProgramTest, OneStageWithoutGuidelinesIsPlainSelfTraining) {
  v1::RolloutTask task = Task();
  v1::ChainProgram& program = *task.mutable_program();
  program.mutable_stages()->DeleteSubrange(0, 2);
  program.mutable_stages(0)->set_prompt("{prompt}");
  program.clear_guidelines();
  program.set_hinted_chains(0);
  program.set_first_question(1);
  program.set_question_seed(9);
  task.set_episodes(4);
  std::set<std::string> questions;
  const auto records = Play(task);
  EXPECT_EQ(records.size(), 48u);
  for (const auto& [uid, t] : records) {
    EXPECT_EQ(t.chain().guideline(), 0u);
    ASSERT_EQ(t.chain().stages_size(), 1);
    // Training and sampling prompt are the same text here.
    EXPECT_EQ(Text(t.chain().stages(0).prompt_token_ids()), t.messages(0).content());
    questions.insert(t.task());
  }
  EXPECT_EQ(questions.size(), 4u);
  // A pass over the order asks each question once.
  std::set<size_t> all;
  for (uint64_t episode = 0; episode < 6; ++episode) all.insert(QuestionOf(program, episode + 5, 6));
  EXPECT_EQ(all.size(), 6u);
}

TEST_F(ChainProgramTest, PromptsAndTrainingTextGoThroughTheChatTemplate) {
  options_.chat_template = *ChatTemplate::Parse(
      "{% for m in messages %}{{ '!' if m.role == 'user' else 'h' }}{{ m.content }}</s>{% endfor %}"
      "{% if add_generation_prompt %}h{% endif %}",
      "t", nullptr);
  options_.end_ids.clear();  // the template says what closes a turn
  const auto raw = [&](const std::string& ids) {
    std::vector<int32_t> values(ids.size() / 4);
    std::memcpy(values.data(), ids.data(), ids.size());
    return tokenizer_->Decode(values, false);
  };
  int ended = 0;
  for (const auto& [uid, t] : Play(Task())) {
    const v1::Chain& chain = t.chain();
    const std::string hint = chain.hinted() ? "!" + chain.answer() : "";
    EXPECT_EQ(raw(chain.stages(0).prompt_token_ids()),
              "!" + chain.guideline_text() + ":" + chain.question() + hint + "</s>h");
    const std::string path = chain.stages(2).text();
    const bool closed = t.done() && !path.ends_with(";");
    EXPECT_EQ(raw(t.token_ids()), "!" + chain.question() + "?</s>h" + path + (closed ? "</s>" : ""));
    ended += closed ? 1 : 0;
  }
  EXPECT_GT(ended, 0);
}

TEST_F(ChainProgramTest, ASelfCheckRejectsAndAPromptThatDoesNotFitIsSaid) {
  v1::RolloutTask task = Task();
  v1::ChainStageSpec& check = *task.mutable_program()->add_stages();
  check.set_name("check");
  check.set_prompt("{path}?");
  check.mutable_sampling()->set_temperature(1);
  int checked = 0;
  for (const auto& [uid, t] : Play(task)) {
    const bool right = t.success();
    EXPECT_EQ(t.chain().stages_size(), right ? 4 : 3);  // of what fails anyway nothing is asked
    EXPECT_FALSE(Has(t, "kept"));                       // this model cannot spell yes
    checked += right ? 1 : 0;
    if (right) {
      EXPECT_EQ(t.chain().rejected(), "self-check says no");
    }
  }
  EXPECT_GT(checked, 0);
  v1::RolloutTask long_prompt = Task();
  long_prompt.mutable_program()->mutable_stages(2)->set_prompt(std::string(70, 'A'));
  for (const auto& [uid, t] : Play(long_prompt)) {
    EXPECT_EQ(t.chain().rejected(), "the prompt of stage solve has 70 tokens; between 1 and 63 are possible");
    EXPECT_EQ(t.turns_size(), 0);
  }
}

}  // namespace
}  // namespace quern
