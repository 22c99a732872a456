#include "actors/rollout.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "base/random.h"
#include "base/strings.h"

namespace quern {

namespace {

void AppendInt32(std::string& bytes, int32_t value) { bytes.append(reinterpret_cast<const char*>(&value), 4); }
void AppendFloat(std::string& bytes, float value) { bytes.append(reinterpret_cast<const char*>(&value), 4); }

// One episode under way: the environment, who plays, and the record so far.
class Episode {
 public:
  Episode(const v1::RolloutTask& task, uint64_t index, const EnvironmentFactory& factory, const Tokenizer& tokenizer,
          const RolloutOptions& options)
      : tokenizer_(tokenizer), environment_(factory.NewEnvironment()), seed_(task.seed() + index) {
    record_.set_uid(StrCat(options.run, "/", task.stage(), "/", index));
    record_.set_run(options.run);
    record_.set_source(task.source());
    record_.set_generation_depth(task.generation_depth());
    record_.set_episode_seed(seed_);
    *record_.mutable_tags() = task.tags();
    *record_.mutable_sampling() = task.policy().sampling();
    record_.mutable_sampling()->set_seed(seed_);
    if (task.policy().weights().empty()) {
      record_.add_policies()->set_name(task.policy().name());
    }
    for (const v1::WeightVersion& weights : task.policy().weights()) {
      v1::PolicyVersion& policy = *record_.add_policies();
      policy.set_name(weights.name());
      policy.set_version(weights.version());
      policy.set_content_hash(weights.content_hash());
    }
    first_ = environment_->Reset(seed_);
    record_.set_task(environment_->task_id());
    new_tokens_ = tokenizer_.Encode(first_.text, true);
    Append(new_tokens_, {}, false);
    AddMessage("user", first_.text);
  }

  const Observation& first() const { return first_; }
  uint64_t seed() const { return seed_; }
  int turns() const { return record_.turns_size(); }
  int64_t length() const { return static_cast<int64_t>(record_.loss_mask().size()); }
  Environment& environment() { return *environment_; }
  // Tokens the policy has not read yet: the first observation, then each answer of the environment.
  const std::vector<int32_t>& new_tokens() const { return new_tokens_; }

  // The agent's utterance; `log_probs` is empty for scripted players. `text` is what the environment is given.
  StepOutcome Act(const std::vector<int32_t>& ids, const std::vector<float>& log_probs, const std::string& text) {
    const auto begin = static_cast<uint32_t>(length());
    Append(ids, log_probs, true);
    AddMessage("assistant", text);
    const StepOutcome outcome = environment_->Step(text);
    v1::Turn& turn = *record_.add_turns();
    turn.set_begin(begin);
    turn.set_end(static_cast<uint32_t>(length()));
    turn.set_reward(static_cast<float>(outcome.reward));
    return_ += outcome.reward;
    if (!outcome.text.empty() && !outcome.done) {
      new_tokens_ = tokenizer_.Encode(outcome.text, false);
      Append(new_tokens_, {}, false);
      AddMessage("user", outcome.text);
    } else {
      new_tokens_.clear();
    }
    record_.set_done(outcome.done && !outcome.truncated);
    record_.set_success(outcome.done && outcome.success);
    return outcome;
  }

  v1::Trajectory Take() {
    using std::chrono::duration_cast;
    record_.set_episode_return(return_);
    record_.set_created_unix_ms(
        duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count());
    return std::move(record_);
  }

 private:
  void Append(const std::vector<int32_t>& ids, const std::vector<float>& log_probs, bool agent) {
    for (size_t i = 0; i < ids.size(); ++i) {
      AppendInt32(*record_.mutable_token_ids(), ids[i]);
      record_.mutable_loss_mask()->push_back(agent ? 1 : 0);
      AppendFloat(*record_.mutable_log_probs(),
                  i < log_probs.size() ? log_probs[i] : std::numeric_limits<float>::quiet_NaN());
    }
  }
  void AddMessage(const char* role, const std::string& text) {
    v1::Message& message = *record_.add_messages();
    message.set_role(role);
    message.set_content(text);
  }

  const Tokenizer& tokenizer_;
  std::unique_ptr<Environment> environment_;
  uint64_t seed_;
  v1::Trajectory record_;
  Observation first_;
  std::vector<int32_t> new_tokens_;
  double return_ = 0;
};

Status Deliver(Episode& episode, const TrajectorySink& sink, RolloutCounters& counters) {
  v1::Trajectory record = episode.Take();
  ++counters.episodes;
  counters.return_sum += record.episode_return();
  return sink(std::move(record));
}

Result<RolloutCounters> PlayScripted(const v1::RolloutTask& task, const EnvironmentFactory& factory,
                                     const Tokenizer& tokenizer, const RolloutOptions& options,
                                     const TrajectorySink& sink, const std::atomic<bool>& stop) {
  RolloutCounters counters;
  Options player_options(task.policy().player_options().begin(), task.policy().player_options().end());
  QUERN_ASSIGN_OR_RETURN(std::unique_ptr<Player> player, factory.NewPlayer(task.policy().player(), player_options));
  for (uint64_t i = 0; i < task.episodes(); ++i) {
    if (stop.load(std::memory_order_relaxed)) return Cancelled("rollout stopped");
    Episode episode(task, task.first_episode() + i, factory, tokenizer, options);
    // The player's randomness is apart from the environment's: equal tasks, independent choices.
    player->Reset(MixSeed(episode.seed(), 0x9A4E), episode.first());
    while (episode.turns() < episode.environment().max_turns()) {
      const std::string action = player->Act();
      std::vector<int32_t> ids = tokenizer.Encode(action, false);
      // Where nothing in the text closes an utterance, end of text does.
      if (episode.environment().action_end().empty() && !options.end_ids.empty()) ids.push_back(options.end_ids[0]);
      const StepOutcome outcome = episode.Act(ids, {}, action);
      if (outcome.done) break;
      player->Observe(outcome);
    }
    QUERN_RETURN_IF_ERROR(Deliver(episode, sink, counters));
  }
  return counters;
}

SamplingOptions SamplingOf(const v1::SamplingParams& params) {
  SamplingOptions out;
  out.temperature = params.temperature();
  out.top_k = static_cast<int32_t>(params.top_k());
  out.top_p = params.top_p() > 0 ? params.top_p() : 1.0f;
  out.min_p = params.min_p();
  out.repetition_penalty = params.repetition_penalty() > 0 ? params.repetition_penalty() : 1.0f;
  return out;
}

}  // namespace

Result<RolloutCounters> PlayTask(const v1::RolloutTask& task, const EnvironmentFactory& factory,
                                 const Tokenizer& tokenizer, const RolloutOptions& options, Engine* engine,
                                 const TrajectorySink& sink, const std::atomic<bool>& stop) {
  if (!task.policy().player().empty()) return PlayScripted(task, factory, tokenizer, options, sink, stop);
  QUERN_CHECK(engine != nullptr);
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
    const std::string end = environment.action_end();
    int64_t length = environment.max_action_tokens();
    if (options.max_completion_length > 0) length = std::min(length, options.max_completion_length);
    GenerateOptions generate;
    generate.max_new_tokens = std::min(length, limit - static_cast<int64_t>(engine->tokens(id).size()));
    generate.sampling = sampling;
    generate.seed = MixSeed(episode.seed(), 0x7012 + static_cast<uint64_t>(episode.turns()));
    generate.stop_ids = options.end_ids;
    if (!end.empty()) {
      generate.stop = [&tokenizer, end](std::span<const int32_t> ids) {
        return tokenizer.Decode(ids, true).find(end) != std::string::npos;
      };
    }
    engine->Generate(id, std::move(generate));
  };

  uint64_t started = 0;
  while (started < task.episodes() || !open.empty()) {
    if (stop.load(std::memory_order_relaxed)) return Cancelled("rollout stopped");
    while (started < task.episodes() && static_cast<int64_t>(open.size()) < options.concurrent_episodes) {
      auto episode = std::make_unique<Episode>(task, task.first_episode() + started++, factory, tokenizer, options);
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
      const StepOutcome outcome =
          episode.Act(completion.tokens, completion.log_probs, tokenizer.Decode(completion.tokens, true));
      engine->Extend(completion.sequence, episode.new_tokens());
      const bool room = static_cast<int64_t>(engine->tokens(completion.sequence).size()) < limit;
      if (!outcome.done && room && episode.turns() < episode.environment().max_turns()) {
        ask(completion.sequence, episode);
        continue;
      }
      engine->Close(completion.sequence);
      const auto node = open.extract(completion.sequence);
      QUERN_RETURN_IF_ERROR(Deliver(*node.mapped(), sink, counters));
    }
  }
  counters.generated_tokens = static_cast<uint64_t>(engine->generated_tokens() - tokens_before);
  return counters;
}

}  // namespace quern
