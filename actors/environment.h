#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace quern {

// What an environment says: text the policy reads before it acts.
struct Observation {
  std::string text;
};

struct StepOutcome {
  std::string text;  // the environment's answer; part of the next state, never of the loss
  double reward = 0;
  bool done = false;
  bool success = false;    // meaningful when done: the task was solved
  bool truncated = false;  // done because of a limit on steps, not because of what happened: the state had a future
};

// A text environment for one episode at a time. Deterministic given (seed, actions). Pure CPU code, no I/O after
// creation. Not thread-safe: one object per concurrent episode.
class Environment {
 public:
  virtual ~Environment() = default;
  // Starts episode `seed` and returns what the policy sees first.
  virtual Observation Reset(uint64_t seed) = 0;
  // The policy's utterance, with its closing newline if it wrote one.
  virtual StepOutcome Step(const std::string& action) = 0;
  // An utterance ends at this text (included in it), at end of text, or after max_action_tokens tokens.
  virtual std::string action_end() const { return "\n"; }
  virtual int max_action_tokens() const = 0;
  virtual int max_turns() const = 0;
  // Bounds of an episode's return, for normalisation to [0, 1].
  virtual double min_return() const = 0;
  virtual double max_return() const = 0;
  // What identifies the task of the current episode, for queries (a hidden word, a question).
  virtual std::string task_id() const = 0;
};

// A scripted policy that makes offline data and bounds. Deterministic given (seed, what it has seen). It may be given
// the environment's public rules (word list, grid) but never its hidden state.
class Player {
 public:
  virtual ~Player() = default;
  virtual void Reset(uint64_t seed, const Observation& first) = 0;
  virtual std::string Act() = 0;  // the next utterance
  virtual void Observe(const StepOutcome& outcome) = 0;
};

// Options from the job file: `environment: {name: wordle, words: words.txt}` arrives as {"words": "words.txt"}.
using Options = std::map<std::string, std::string>;

// A question whose answer is known.
struct Question {
  std::string id;        // the same wherever and in whatever order the question is read; Environment::task_id()
  std::string text;      // with its choices, if it has any
  std::string answer;    // the truth that `grader` compares with
  std::string solution;  // a worked one that ends in the answer, where the data has one, else the answer
  std::string grader;    // spec for MakeGrader (methods/graders/grader.h)
};

// The questions of an environment, for programs that ask them in their own way: with other prompts, or many times.
// Immutable, thread-safe.
class QuestionSource {
 public:
  virtual ~QuestionSource() = default;
  virtual size_t size() const = 0;
  // i < size().
  virtual const Question& At(size_t i) const = 0;
  // The question as the environment poses it: what Environment::Reset shows.
  virtual std::string Prompt(size_t i) const { return At(i).text; }
};

// name: "wordle", "maze", "dataset", ... An unknown name or option is an error with the nearest name. One factory
// object may be asked for many environments, from any thread.
class EnvironmentFactory {
 public:
  virtual ~EnvironmentFactory() = default;
  virtual std::unique_ptr<Environment> NewEnvironment() const = 0;
  // Players of this environment by name, e.g. "random", "consistent", "best". Options are the player's own (noise:
  // 0.3).
  virtual Result<std::unique_ptr<Player>> NewPlayer(const std::string& name, const Options& options) const = 0;
  virtual std::vector<std::string> player_names() const = 0;
  // The characters or texts a tokenizer must cover; used by `quern init --tokenizer chars` for self-made models.
  virtual std::vector<std::string> vocabulary() const = 0;
  // How many different tasks there are. Where the options ask for all of them (`tasks: all`, a maze's `start: all`),
  // seed s plays task s mod task_count(): seeds 0..task_count()-1 visit each once.
  virtual size_t task_count() const = 0;
  // Where the tasks are questions with known answers (task i is question i), those; else null. Owned by the factory.
  virtual const QuestionSource* questions() const { return nullptr; }
};

// base_dir: relative file options are looked up there (the job file's folder).
Result<std::shared_ptr<const EnvironmentFactory>> MakeEnvironmentFactory(const std::string& name,
                                                                         const Options& options,
                                                                         const std::string& base_dir);
std::vector<std::string> EnvironmentNames();

}  // namespace quern
