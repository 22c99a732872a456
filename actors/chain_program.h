#pragma once

#include "actors/rollout.h"

namespace quern {

// Tags of a chain's record. Training leaves out what is not kept.
inline constexpr char kKeptTag[] = "kept";
inline constexpr char kNotKeptTag[] = "not_kept";
inline constexpr char kHintedTag[] = "hinted";
inline constexpr char kUnsolvedTag[] = "unsolved";

// Plays a task whose `program` is set: an episode is a question of the environment, asked once per guideline through
// the program's stages (adapt, plan, solve, check; methods/regenesis). All chains of several questions run side by side
// in the engine. Every chain becomes a record, in the order in which questions end:
//   tokens      the question as evaluation asks it, and the path: what is trained on; log_probs are NaN, since the path
//   was
//               sampled under another prompt (those are in chain.stages)
//   return      1 for a right answer (without labels: the majority's), else 0
//   verdict     verified | hinted | unverified | failed
//   tags        the task's; `kept` where it was selected for training, else `not_kept`; `hinted`; and `unsolved` on the
//               first chain of a question that no chain solved without help
// A chain is a pure function of (task.seed, question, number of the chain, policy): played again it has the same uid
// and the same tokens.
Result<RolloutCounters> PlayChains(const v1::RolloutTask& task, const EnvironmentFactory& factory,
                                   const Tokenizer& tokenizer, const Dialogue& dialogue, const RolloutOptions& options,
                                   Engine& engine, const TrajectorySink& sink, const std::atomic<bool>& stop);

// Which question of `count` the stage's `episode` asks.
size_t QuestionOf(const v1::ChainProgram& program, uint64_t episode, size_t count);

}  // namespace quern
