#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "actors/engine.h"
#include "actors/environment.h"
#include "model/chat_template/dialogue.h"
#include "model/tokenizer/tokenizer.h"
#include "proto/coordinator.pb.h"

namespace quern {

struct RolloutOptions {
  std::string run;  // name of the run, into every record
  int64_t concurrent_episodes = 64;
  int64_t max_completion_length = 0;                  // tokens an utterance; 0: what the environment allows
  int64_t max_positions = 0;                          // length limit of an episode in tokens; 0: the model's
  std::vector<int32_t> end_ids;                       // end-of-text ids that also end an utterance
  std::shared_ptr<const ChatTemplate> chat_template;  // null: texts are put one after the other as they are
  // Called before an episode begins (with a program: a question with all its chains); an error ends the rollout.
  std::function<Status(uint64_t episode)> begin;
  std::function<Status()> tick;  // called between the engine's steps; an error ends the rollout
  // Which of these records the store has: what they belong to is not played again. None: everything is played.
  std::function<Result<std::vector<bool>>(const std::vector<std::string>& uids)> stored;
  // Called when what the sink was given so far is whole: every question with all its chains. Records between two calls
  // must be stored together or not at all.
  std::function<Status()> whole;
  std::function<void(double seconds)> answered;  // the environment took so long for a step; may be null
  std::function<void(double seconds)> ended;     // an episode did, from its first prompt on; may be null
};

struct RolloutCounters {
  uint64_t episodes = 0;  // records given to the sink
  uint64_t stored = 0;    // of the task's episodes: left out, the store has them
  uint64_t generated_tokens = 0;
  double return_sum = 0;
};

// Gets each finished episode; not called concurrently. An error ends the rollout.
using TrajectorySink = std::function<Status(v1::Trajectory)>;

// Plays the task's episodes with a scripted player (engine not needed) or with the engine's policy, and gives the
// trajectories to `sink` in the order in which they end. Episode e of a task is a pure function of (task.seed, e,
// policy): played again it has the same uid and the same tokens. Stops early, with Cancelled, when `stop` becomes true.
Result<RolloutCounters> PlayTask(const v1::RolloutTask& task, const EnvironmentFactory& factory,
                                 const Tokenizer& tokenizer, const RolloutOptions& options, Engine* engine,
                                 const TrajectorySink& sink, const std::atomic<bool>& stop);

}  // namespace quern
