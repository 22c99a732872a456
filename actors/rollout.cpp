#include "actors/rollout.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "actors/chain_program.h"
#include "actors/records.h"
#include "base/random.h"
#include "base/strings.h"

namespace quern {

namespace {

// One episode under way: the environment, who plays, and the record so far.
class Episode {
 public:
  static Result<std::unique_ptr<Episode>> Begin(const v1::RolloutTask& task, uint64_t index,
                                                const EnvironmentFactory& factory, const Dialogue& dialogue,
                                                const RolloutOptions& options) {
    std::unique_ptr<Episode> episode(new Episode(task, index, factory, dialogue, options));
    QUERN_ASSIGN_OR_RETURN(episode->new_tokens_, dialogue.Opening(episode->first_.text));
    AppendTokens(episode->new_tokens_, {}, false, episode->record_);
    AddMessage("user", episode->first_.text, episode->record_);
    episode->answered_ = options.answered;
    return episode;
  }

  const Observation& first() const { return first_; }
  uint64_t seed() const { return seed_; }
  double seconds() const { return SecondsSince(begun_); }
  int turns() const { return record_.turns_size(); }
  int64_t length() const { return static_cast<int64_t>(record_.loss_mask().size()); }
  Environment& environment() { return *environment_; }
  // Tokens the policy has not read yet: the first observation, then each answer of the environment.
  const std::vector<int32_t>& new_tokens() const { return new_tokens_; }

  // The agent's utterance; `log_probs` is empty for scripted players. `text` is what the environment is given.
  Result<StepOutcome> Act(const std::vector<int32_t>& ids, const std::vector<float>& log_probs,
                          const std::string& text) {
    const auto begin = static_cast<uint32_t>(length());
    AppendTokens(ids, log_probs, true, record_);
    AddMessage("assistant", text, record_);
    const auto asked = Clock::now();
    const StepOutcome outcome = environment_->Step(text);
    if (answered_) answered_(SecondsSince(asked));
    v1::Turn& turn = *record_.add_turns();
    turn.set_begin(begin);
    turn.set_end(static_cast<uint32_t>(length()));
    turn.set_reward(static_cast<float>(outcome.reward));
    return_ += outcome.reward;
    if (!outcome.text.empty() && !outcome.done) {
      AddMessage("user", outcome.text, record_);
      QUERN_ASSIGN_OR_RETURN(new_tokens_, NextIds());
      AppendTokens(new_tokens_, {}, false, record_);
    } else {
      new_tokens_.clear();
    }
    record_.set_done(outcome.done && !outcome.truncated);
    record_.set_success(outcome.done && outcome.success);
    return outcome;
  }

  std::vector<int32_t> ids() const {
    std::vector<int32_t> ids(record_.loss_mask().size());
    std::memcpy(ids.data(), record_.token_ids().data(), 4 * ids.size());
    return ids;
  }
  // `whole`: log-probabilities without the compression, of every token but the first.
  void CompareLogProbs(std::span<const float> whole) {
    double sum = 0, count = 0;
    for (size_t i = 0; i < whole.size(); ++i) {
      float log_prob = 0;
      std::memcpy(&log_prob, record_.log_probs().data() + 4 * (i + 1), 4);
      if (record_.loss_mask()[i + 1] == 0 || std::isnan(log_prob)) continue;
      sum += std::abs(static_cast<double>(log_prob - whole[i]));
      ++count;
    }
    if (count > 0) record_.set_log_prob_difference(static_cast<float>(sum / count));
  }

  v1::Trajectory Take() {
    record_.set_episode_return(return_);
    return std::move(record_);
  }

 private:
  Episode(const v1::RolloutTask& task, uint64_t index, const EnvironmentFactory& factory, const Dialogue& dialogue,
          const RolloutOptions& options)
      : dialogue_(dialogue),
        environment_(factory.NewEnvironment()),
        seed_(task.seed() + index),
        record_(NewRecord(task, options)) {
    record_.set_uid(StrCat(record_.uid(), index));
    record_.set_episode_seed(seed_);
    record_.mutable_sampling()->set_seed(seed_);
    first_ = environment_->Reset(seed_);
    record_.set_task(environment_->task_id());
  }

  // Of the record's last message, the environment's answer.
  Result<std::vector<int32_t>> NextIds() const {
    std::vector<ChatMessage> messages;
    for (const v1::Message& message : record_.messages()) messages.push_back({message.role(), message.content()});
    return dialogue_.Next(messages, messages.size() - 1, ids());
  }

  const Dialogue& dialogue_;
  std::unique_ptr<Environment> environment_;
  uint64_t seed_;
  v1::Trajectory record_;
  Observation first_;
  std::vector<int32_t> new_tokens_;
  double return_ = 0;
  const Clock::time_point begun_ = Clock::now();
  std::function<void(double)> answered_;
};

Status Deliver(Episode& episode, const RolloutOptions& options, const TrajectorySink& sink, RolloutCounters& counters) {
  if (options.ended) options.ended(episode.seconds());
  v1::Trajectory record = episode.Take();
  ++counters.episodes;
  counters.return_sum += record.episode_return();
  QUERN_RETURN_IF_ERROR(sink(std::move(record)));
  return options.whole ? options.whole() : Status();
}

Result<RolloutCounters> PlayScripted(const v1::RolloutTask& task, const EnvironmentFactory& factory,
                                     const Dialogue& dialogue, const RolloutOptions& options,
                                     const TrajectorySink& sink, const std::atomic<bool>& stop) {
  RolloutCounters counters;
  Options player_options(task.policy().player_options().begin(), task.policy().player_options().end());
  QUERN_ASSIGN_OR_RETURN(std::unique_ptr<Player> player, factory.NewPlayer(task.policy().player(), player_options));
  QUERN_ASSIGN_OR_RETURN(const std::vector<uint64_t> episodes, EpisodesToPlay(task, options, ""));
  counters.stored = task.episodes() - task.skip_size() - episodes.size();
  for (const uint64_t index : episodes) {
    if (stop.load(std::memory_order_relaxed)) return Cancelled("rollout stopped");
    if (options.tick) QUERN_RETURN_IF_ERROR(options.tick());
    if (options.begin) QUERN_RETURN_IF_ERROR(options.begin(index));
    QUERN_ASSIGN_OR_RETURN(const std::unique_ptr<Episode> begun,
                           Episode::Begin(task, index, factory, dialogue, options));
    Episode& episode = *begun;
    // The player's randomness is apart from the environment's: equal tasks, independent choices.
    player->Reset(MixSeed(episode.seed(), 0x9A4E), episode.first());
    while (episode.turns() < episode.environment().max_turns()) {
      const std::string action = player->Act();
      // Where nothing in the text closes an utterance, end of text does.
      const std::vector<int32_t> ids = dialogue.Utterance(action, !episode.environment().action_end().empty());
      QUERN_ASSIGN_OR_RETURN(const StepOutcome outcome, episode.Act(ids, {}, action));
      if (outcome.done) break;
      player->Observe(outcome);
    }
    QUERN_RETURN_IF_ERROR(Deliver(episode, options, sink, counters));
  }
  return counters;
}

}  // namespace

Result<RolloutCounters> PlayTask(const v1::RolloutTask& task, const EnvironmentFactory& factory,
                                 const Tokenizer& tokenizer, const RolloutOptions& options, Engine* engine,
                                 const TrajectorySink& sink, const std::atomic<bool>& stop) {
  QUERN_ASSIGN_OR_RETURN(const Dialogue dialogue, Dialogue::Make(tokenizer, options.chat_template, options.end_ids));
  if (!task.policy().player().empty()) return PlayScripted(task, factory, dialogue, options, sink, stop);
  QUERN_CHECK(engine != nullptr);
  if (task.has_program()) return PlayChains(task, factory, tokenizer, dialogue, options, *engine, sink, stop);
  RolloutCounters counters;
  const int64_t tokens_before = engine->generated_tokens();
  const int64_t limit =
      options.max_positions > 0 ? std::min(options.max_positions, engine->max_positions()) : engine->max_positions();
  const SamplingOptions sampling = SamplingOf(task.policy().sampling());
  std::map<int64_t, std::unique_ptr<Episode>> open;
  // Whatever ends this function early, the engine is left without our sequences.
  struct Closer {
    Engine& engine;
    std::map<int64_t, std::unique_ptr<Episode>>& open;
    ~Closer() {
      for (auto& [id, episode] : open) engine.Close(id);
    }
  } closer{*engine, open};

  const auto ask = [&](int64_t id, Episode& episode) {
    Environment& environment = episode.environment();
    int64_t length = environment.max_action_tokens();
    if (options.max_completion_length > 0) length = std::min(length, options.max_completion_length);
    GenerateOptions generate;
    generate.max_new_tokens = std::min(length, limit - static_cast<int64_t>(engine->tokens(id).size()));
    generate.sampling = sampling;
    generate.seed = MixSeed(episode.seed(), 0x7012 + static_cast<uint64_t>(episode.turns()));
    generate.stop_ids = dialogue.end_ids();
    generate.stop = StopAt(tokenizer, environment.action_end());
    engine->Generate(id, std::move(generate));
  };

  QUERN_ASSIGN_OR_RETURN(const std::vector<uint64_t> episodes, EpisodesToPlay(task, options, ""));
  counters.stored = task.episodes() - task.skip_size() - episodes.size();
  const int64_t side_by_side = task.one_at_a_time() ? 1 : options.concurrent_episodes;
  size_t started = 0;
  while (started < episodes.size() || !open.empty()) {
    if (stop.load(std::memory_order_relaxed)) return Cancelled("rollout stopped");
    if (options.tick) QUERN_RETURN_IF_ERROR(options.tick());
    while (started < episodes.size() && static_cast<int64_t>(open.size()) < side_by_side) {
      if (options.begin) QUERN_RETURN_IF_ERROR(options.begin(episodes[started]));
      QUERN_ASSIGN_OR_RETURN(std::unique_ptr<Episode> episode,
                             Episode::Begin(task, episodes[started++], factory, dialogue, options));
      const int64_t id = engine->Open();
      engine->Extend(id, episode->new_tokens());
      Episode& entered = *open.emplace(id, std::move(episode)).first->second;
      if (engine->tokens(id).empty() || static_cast<int64_t>(engine->tokens(id).size()) >= limit) {
        return InvalidArgument(StrCat("episode ", entered.seed(), ": its first observation has ",
                                      engine->tokens(id).size(), " tokens; between 1 and ", limit - 1, " are needed"));
      }
      ask(id, entered);
    }
    QUERN_ASSIGN_OR_RETURN(std::vector<Completion> completions, engine->Step());
    for (Completion& completion : completions) {
      Episode& episode = *open.at(completion.sequence);
      QUERN_ASSIGN_OR_RETURN(const StepOutcome outcome, episode.Act(completion.tokens, completion.log_probs,
                                                                    tokenizer.Decode(completion.tokens, true)));
      engine->Extend(completion.sequence, episode.new_tokens());
      const bool room = static_cast<int64_t>(engine->tokens(completion.sequence).size()) < limit;
      if (!outcome.done && room && episode.turns() < episode.environment().max_turns()) {
        ask(completion.sequence, episode);
        continue;
      }
      if (!engine->policy()->compression.off()) episode.CompareLogProbs(engine->WholeLogProbs(episode.ids()));
      engine->Close(completion.sequence);
      const auto node = open.extract(completion.sequence);
      QUERN_RETURN_IF_ERROR(Deliver(*node.mapped(), options, sink, counters));
    }
  }
  counters.generated_tokens = static_cast<uint64_t>(engine->generated_tokens() - tokens_before);
  return counters;
}

}  // namespace quern
