#include "actors/chain_program.h"

#include <algorithm>
#include <cmath>
#include <deque>

#include "actors/records.h"
#include "base/random.h"
#include "base/strings.h"
#include "methods/graders/grader.h"
#include "methods/regenesis/paths.h"
#include "methods/regenesis/templates.h"
#include "replay/sampler.h"

namespace quern {

namespace {

constexpr uint64_t kHintedBit = uint64_t{1} << 32;
constexpr uint64_t kSelectionStream = 0x5E1EC7;
constexpr int kSolveNotReached = -1;

// One chain under way.
struct ChainRun {
  uint32_t number = 0;  // among the question's own, or among its hinted ones
  bool hinted = false;
  int stage = 0;                 // the one that runs now
  int solve = kSolveNotReached;  // which of chain.stages wrote the path
  Placeholders values;
  PathFacts facts;
  // Under a compression: what it changed the log-probabilities of the chain's tokens by, and how many those are.
  double difference = 0;
  int64_t compared = 0;
  std::string failure;  // what stopped it before its last stage
  v1::Chain chain;
};

// One question with all its chains.
struct QuestionRun {
  uint64_t episode = 0;
  size_t index = 0;  // in the source
  const Question* question = nullptr;
  std::string prompt;
  const Grader* grader = nullptr;
  std::deque<ChainRun> chains;  // stays where it is while hinted ones are added
  size_t open = 0;
};

std::string WithoutClosing(const std::string& text, const std::string& closing) {
  return !closing.empty() && text.ends_with(closing) ? text.substr(0, text.size() - closing.size()) : text;
}

class ChainPlayer {
 public:
  ChainPlayer(const v1::RolloutTask& task, const EnvironmentFactory& factory, const Tokenizer& tokenizer,
              const Dialogue& dialogue, const RolloutOptions& options, Engine& engine, const TrajectorySink& sink)
      : task_(task),
        program_(task.program()),
        factory_(factory),
        tokenizer_(tokenizer),
        dialogue_(dialogue),
        options_(options),
        engine_(engine),
        sink_(sink) {
    const std::unique_ptr<Environment> environment = factory.NewEnvironment();
    closing_ = environment->action_end();
    utterance_tokens_ = environment->max_action_tokens();
    if (options.max_completion_length > 0)
      utterance_tokens_ = std::min(utterance_tokens_, options.max_completion_length);
    limit_ = engine.max_positions();
    if (options.max_positions > 0) limit_ = std::min(limit_, options.max_positions);
  }
  ~ChainPlayer() {
    for (const auto& [sequence, where] : open_) engine_.Close(sequence);
  }

  Result<RolloutCounters> Play(const std::atomic<bool>& stop) {
    const QuestionSource* source = factory_.questions();
    if (source == nullptr)
      return InvalidArgument("this environment has no questions with known answers to reason about");
    const int64_t tokens_before = engine_.generated_tokens();
    // A question's chains are stored together: the first of them tells.
    QUERN_ASSIGN_OR_RETURN(const std::vector<uint64_t> episodes, EpisodesToPlay(task_, options_, "/0"));
    counters_.stored = task_.episodes() - task_.skip_size() - episodes.size();
    size_t started = 0;
    while (started < episodes.size() || !questions_.empty()) {
      if (stop.load(std::memory_order_relaxed)) return Cancelled("rollout stopped");
      if (options_.tick) QUERN_RETURN_IF_ERROR(options_.tick());
      while (static_cast<int64_t>(open_.size()) < options_.concurrent_episodes) {
        if (waiting_.empty()) {
          if (started == episodes.size() || (task_.one_at_a_time() && !questions_.empty())) break;
          if (options_.begin) QUERN_RETURN_IF_ERROR(options_.begin(episodes[started]));
          QUERN_RETURN_IF_ERROR(Begin(*source, episodes[started++]));
          continue;
        }
        const Place place = waiting_.front();
        waiting_.pop_front();
        QUERN_RETURN_IF_ERROR(StartStage(place));
      }
      if (open_.empty()) continue;
      QUERN_ASSIGN_OR_RETURN(std::vector<Completion> completions, engine_.Step());
      for (Completion& completion : completions) {
        const Place place = open_.at(completion.sequence);
        open_.erase(completion.sequence);
        if (!engine_.policy()->compression.off()) CompareLogProbs(completion, *place.chain);
        engine_.Close(completion.sequence);
        QUERN_RETURN_IF_ERROR(EndStage(place, completion));
      }
    }
    counters_.generated_tokens = static_cast<uint64_t>(engine_.generated_tokens() - tokens_before);
    return counters_;
  }

 private:
  struct Place {
    QuestionRun* question = nullptr;
    ChainRun* chain = nullptr;
  };

  Result<const Grader*> GraderOf(const std::string& spec) {
    std::unique_ptr<Grader>& grader = graders_[spec];
    if (grader == nullptr) {
      QUERN_ASSIGN_OR_RETURN(grader, MakeGrader(spec));
    }
    return const_cast<const Grader*>(grader.get());
  }

  Status Begin(const QuestionSource& source, uint64_t episode) {
    auto run = std::make_unique<QuestionRun>();
    run->episode = episode;
    run->index = QuestionOf(program_, episode, source.size());
    run->question = &source.At(run->index);
    run->prompt = source.Prompt(run->index);
    QUERN_ASSIGN_OR_RETURN(run->grader, GraderOf(run->question->grader));
    QuestionRun& question = *run;
    questions_.emplace(episode, std::move(run));
    AddChains(question, program_.chains(), false);
    return {};
  }

  void AddChains(QuestionRun& question, uint32_t count, bool hinted) {
    const auto guidelines = static_cast<uint32_t>(program_.guidelines_size());
    for (uint32_t i = 0; i < count; ++i) {
      ChainRun& chain = question.chains.emplace_back();
      chain.number = i;
      chain.hinted = hinted;
      chain.chain.set_question(question.question->text);
      if (!program_.majority()) chain.chain.set_answer(question.question->answer);
      chain.chain.set_hinted(hinted);
      std::string guideline;
      if (guidelines > 0) {
        chain.chain.set_guideline(i % guidelines + 1);
        guideline = program_.guidelines(static_cast<int>(i % guidelines));
        chain.chain.set_guideline_text(guideline);
      }
      chain.values = {{"question", question.question->text},
                      {"prompt", question.prompt},
                      {"guideline", guideline},
                      {"adapted", guideline},
                      {"structure", guideline},
                      {"nl", "\n"}};
      if (hinted)
        chain.values["hint"] = ExpandTemplate(program_.hint(), {{"answer", question.question->answer}, {"nl", "\n"}});
      ++question.open;
      waiting_.push_back({&question, &chain});
    }
  }

  Status StartStage(const Place& place) {
    ChainRun& run = *place.chain;
    const v1::ChainStageSpec& spec = program_.stages(run.stage);
    QUERN_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                           dialogue_.Opening(ExpandTemplate(spec.prompt(), run.values)));
    v1::ChainStage& stage = *run.chain.add_stages();
    stage.set_name(spec.name());
    SetInt32s(ids, stage.mutable_prompt_token_ids());
    *stage.mutable_sampling() = spec.sampling();
    if (task_.policy().sampling().has_compression())
      *stage.mutable_sampling()->mutable_compression() = task_.policy().sampling().compression();
    // The stream of the chain's stage, whatever else is played beside it.
    const uint64_t which = (run.hinted ? kHintedBit : 0) | run.number;
    const uint64_t seed =
        MixSeed(MixSeed(MixSeed(task_.seed(), place.question->index), which), static_cast<uint64_t>(run.stage));
    stage.mutable_sampling()->set_seed(seed);
    const auto length = static_cast<int64_t>(ids.size());
    if (ids.empty() || length >= limit_) {
      run.failure = StrCat("the prompt of stage ", spec.name(), " has ", length, " tokens; between 1 and ", limit_ - 1,
                           " are possible");
      return EndChain(place);
    }
    GenerateOptions generate;
    generate.max_new_tokens =
        std::min(spec.max_tokens() > 0 ? int64_t{spec.max_tokens()} : utterance_tokens_, limit_ - length);
    generate.sampling = SamplingOf(spec.sampling());
    generate.seed = seed;
    generate.stop_ids = dialogue_.end_ids();
    generate.stop = StopAt(tokenizer_, spec.stop().empty() ? closing_ : spec.stop());
    const int64_t sequence = engine_.Open();
    engine_.Extend(sequence, ids);
    engine_.Generate(sequence, std::move(generate));
    open_.emplace(sequence, place);
    return {};
  }

  void CompareLogProbs(const Completion& completion, ChainRun& run) {
    const std::vector<float> whole = engine_.WholeLogProbs(engine_.tokens(completion.sequence));
    const size_t first = whole.size() - completion.log_probs.size();
    for (size_t i = 0; i < completion.log_probs.size(); ++i)
      run.difference += std::abs(static_cast<double>(completion.log_probs[i] - whole[first + i]));
    run.compared += std::ssize(completion.log_probs);
  }

  Status EndStage(const Place& place, const Completion& completion) {
    ChainRun& run = *place.chain;
    const std::string& name = program_.stages(run.stage).name();
    const std::string text = tokenizer_.Decode(completion.tokens, true);
    v1::ChainStage& stage = *run.chain.mutable_stages(run.chain.stages_size() - 1);
    stage.set_text(text);
    SetInt32s(completion.tokens, stage.mutable_token_ids());
    SetFloats(completion.log_probs, stage.mutable_log_probs());
    const std::string& stop = program_.stages(run.stage).stop();
    const std::string bare = WithoutClosing(text, stop.empty() ? closing_ : stop);
    if (name == "adapt") {
      run.values["adapted"] = run.values["structure"] = bare;
    } else if (name == "plan") {
      run.values["structure"] = bare;
    } else if (name == "check") {
      run.facts.checked = ReadYesNo(bare).value_or(false);
    } else {
      run.solve = run.chain.stages_size() - 1;
      run.values["path"] = bare;
      run.facts.finished = completion.finish_reason == FinishReason::kStop;
      run.facts.tokens = static_cast<int64_t>(completion.tokens.size());
      run.facts.has_steps = HasSteps(bare);
      if (run.facts.finished) {
        const std::optional<std::string> extracted = place.question->grader->Extract(bare);
        run.chain.set_extracted(extracted.value_or(""));
        run.facts.found = extracted.has_value();
        run.facts.matches = run.facts.found && !program_.majority() &&
                            place.question->grader->Matches(*extracted, place.question->question->answer);
      }
      // A self-check of what fails anyway is not asked for.
      if (!run.facts.found || (!program_.majority() && !run.facts.matches)) return EndChain(place);
    }
    if (++run.stage == program_.stages_size()) return EndChain(place);
    return StartStage(place);
  }

  Status EndChain(const Place& place) {
    QuestionRun& question = *place.question;
    if (--question.open > 0) return {};
    if (program_.majority()) Vote(question);
    const auto limits = PathLimits{static_cast<int64_t>(program_.max_path_tokens()), program_.require_steps()};
    bool passed = false;
    bool had_hints = false;
    for (ChainRun& run : question.chains) {
      run.chain.set_rejected(run.failure.empty() ? RejectReason(run.facts, limits) : run.failure);
      passed = passed || run.chain.rejected().empty();
      had_hints = had_hints || run.hinted;
    }
    if (!passed && !had_hints && program_.hinted_chains() > 0 && !program_.majority()) {
      AddChains(question, program_.hinted_chains(), true);
      return {};
    }
    return Deliver(question);
  }

  // Without labels: the answer is the one that most of the chains found.
  void Vote(QuestionRun& question) {
    std::vector<std::string> answers;
    for (const ChainRun& run : question.chains)
      answers.push_back(run.facts.found ? question.grader->Normalise(run.chain.extracted()) : "");
    const std::optional<Majority> majority = MajorityVote(answers, program_.min_majority_share());
    for (size_t i = 0; i < answers.size(); ++i) {
      ChainRun& run = question.chains[i];
      run.facts.matches = majority && answers[i] == majority->answer;
      if (run.facts.found && !run.facts.matches && run.failure.empty())
        run.failure = majority ? "not the majority's answer" : "the chains do not agree on an answer";
    }
  }

  Status Deliver(QuestionRun& question) {
    std::vector<PassedPath> passed;
    std::vector<ChainRun*> of_passed;
    bool solved = false;
    for (ChainRun& run : question.chains) {
      if (!run.chain.rejected().empty()) continue;
      passed.push_back({run.chain.guideline(), run.chain.stages(run.solve).text()});
      of_passed.push_back(&run);
      solved = solved || !run.hinted;
    }
    const uint64_t seed = MixSeed(MixSeed(task_.seed(), question.index), kSelectionStream);
    std::vector<bool> kept(passed.size(), false);
    for (const size_t i : SelectPaths(passed, program_.max_kept(), seed)) kept[i] = true;
    for (size_t i = 0; i < kept.size(); ++i)
      if (!kept[i])
        of_passed[i]->chain.set_rejected(
            StrCat("passed, not among the paths kept (", program_.max_kept(), " at most, equal ones once)"));
    for (ChainRun& run : question.chains) {
      QUERN_ASSIGN_OR_RETURN(v1::Trajectory record, Record(question, run));
      record.add_tags(run.chain.rejected().empty() ? kKeptTag : kNotKeptTag);
      if (run.hinted) record.add_tags(kHintedTag);
      if (!solved && !run.hinted && run.number == 0) record.add_tags(kUnsolvedTag);
      *record.mutable_chain() = std::move(run.chain);
      ++counters_.episodes;
      counters_.return_sum += record.episode_return();
      QUERN_RETURN_IF_ERROR(sink_(std::move(record)));
    }
    questions_.erase(question.episode);
    return options_.whole ? options_.whole() : Status();
  }

  // Everything but the chain itself and the tags it earns.
  Result<v1::Trajectory> Record(const QuestionRun& question, const ChainRun& run) {
    v1::Trajectory record = NewRecord(task_, options_);
    record.set_uid(StrCat(record.uid(), question.episode, run.hinted ? "/h" : "/", run.number));
    record.set_task(question.question->id);
    record.set_episode_seed(question.index);
    if (run.compared > 0)
      record.set_log_prob_difference(static_cast<float>(run.difference / static_cast<double>(run.compared)));
    QUERN_ASSIGN_OR_RETURN(const std::vector<int32_t> prompt, dialogue_.Opening(question.prompt));
    AppendTokens(prompt, {}, false, record);
    AddMessage("user", question.prompt, record);
    record.set_success(run.facts.matches);
    record.set_verdict(!run.facts.matches    ? v1::VERDICT_FAILED
                       : program_.majority() ? v1::VERDICT_UNVERIFIED
                       : run.hinted          ? v1::VERDICT_HINTED
                                             : v1::VERDICT_VERIFIED);
    if (run.solve == kSolveNotReached) return record;
    const v1::ChainStage& solve = run.chain.stages(run.solve);
    *record.mutable_sampling() = solve.sampling();
    record.set_done(run.facts.finished);
    const std::string path = TrainingPath(solve.text(), program_.opener());
    const bool closed = !closing_.empty() && path.ends_with(closing_);
    const auto begin = static_cast<uint32_t>(record.loss_mask().size());
    // What was cut off has no end that could be learnt.
    AppendTokens(dialogue_.Utterance(path, closed || !run.facts.finished), {}, true, record);
    AddMessage("assistant", path, record);
    const auto end = static_cast<uint32_t>(record.loss_mask().size());
    if (end == begin) return record;
    const double reward = run.facts.matches ? 1 : 0;
    v1::Turn& turn = *record.add_turns();
    turn.set_begin(begin);
    turn.set_end(end);
    turn.set_reward(static_cast<float>(reward));
    record.set_episode_return(reward);
    return record;
  }

  const v1::RolloutTask& task_;
  const v1::ChainProgram& program_;
  const EnvironmentFactory& factory_;
  const Tokenizer& tokenizer_;
  const Dialogue& dialogue_;
  const RolloutOptions& options_;
  Engine& engine_;
  const TrajectorySink& sink_;
  std::string closing_;
  int64_t utterance_tokens_ = 0;
  int64_t limit_ = 0;
  std::map<std::string, std::unique_ptr<Grader>> graders_;
  std::map<uint64_t, std::unique_ptr<QuestionRun>> questions_;  // by episode: those under way
  std::deque<Place> waiting_;
  std::map<int64_t, Place> open_;  // by the engine's sequence
  RolloutCounters counters_;
};

}  // namespace

size_t QuestionOf(const v1::ChainProgram& program, uint64_t episode, size_t count) {
  const uint64_t place = program.first_question() + episode;
  if (program.question_seed() == 0) return place % count;
  return SequenceIndices(count, program.question_seed(), place, 1).front();
}

Result<RolloutCounters> PlayChains(const v1::RolloutTask& task, const EnvironmentFactory& factory,
                                   const Tokenizer& tokenizer, const Dialogue& dialogue, const RolloutOptions& options,
                                   Engine& engine, const TrajectorySink& sink, const std::atomic<bool>& stop) {
  return ChainPlayer(task, factory, tokenizer, dialogue, options, engine, sink).Play(stop);
}

}  // namespace quern
