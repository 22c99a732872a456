#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "actors/kv_pool.h"
#include "actors/served_model.h"
#include "base/status.h"
#include "model/sampler.h"

namespace quern {

struct EngineOptions {
  int64_t max_step_tokens = 512;        // rows of one forward pass: decodes first, then chunks of prompts
  int64_t kv_bytes = int64_t{2} << 30;  // budget of all models' caches together
};

struct GenerateOptions {
  int64_t max_new_tokens = 128;
  SamplingOptions sampling;
  uint64_t seed = 0;              // the n-th token's randomness is a function of (seed, n) only
  std::vector<int32_t> stop_ids;  // end of text and the like: kept as the last token
  // Called after each token with the tokens so far; true ends the generation (a stop text).
  std::function<bool(std::span<const int32_t>)> stop;
};

enum class FinishReason { kStop, kLength, kContext };  // kContext: the model has no further positions
const char* FinishReasonName(FinishReason reason);

struct Completion {
  int64_t sequence = 0;
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;  // raw: under the policy's distribution at temperature 1, before any truncation
  FinishReason finish_reason = FinishReason::kStop;
};

// Batched generation with a paged KV cache. Sequences live across turns: Extend appends tokens (a prompt, an
// observation), Generate asks for a continuation, Step advances every sequence that has work by one token or one prompt
// chunk, in one forward pass per model. A sequence's tokens and log-probabilities do not depend on what else is in the
// batch, on the order of steps, or on the cache budget. Not thread-safe.
class Engine {
 public:
  // `ops` must outlive the engine.
  Engine(Ops& ops, const EngineOptions& options);
  ~Engine();

  // Takes effect before the next step. Sequences that are open keep their tokens and are read again by the new policy.
  void SetPolicy(std::shared_ptr<const Policy> policy);
  const std::shared_ptr<const Policy>& policy() const { return policy_; }

  int64_t Open();
  void Extend(int64_t sequence, std::span<const int32_t> tokens);
  // One generation at a time per sequence; the sequence must hold at least one token.
  void Generate(int64_t sequence, GenerateOptions options);
  void Close(int64_t sequence);  // also cancels
  const std::vector<int32_t>& tokens(int64_t sequence) const;
  int64_t max_positions() const;

  bool HasWork() const;
  // Finished generations, in sequence order. Fails when a single sequence does not fit the cache budget.
  Result<std::vector<Completion>> Step();

  int64_t generated_tokens() const { return generated_tokens_; }
  int64_t prompt_tokens() const { return prompt_tokens_; }

 private:
  struct Sequence;
  struct Planned;
  Status Schedule(std::vector<Planned>& planned);
  bool EnsurePages(Sequence& sequence, int64_t positions);
  bool PreemptOther(int64_t keep, const std::vector<Planned>& planned);
  void DropCache(Sequence& sequence);
  TensorView PolicyLogits(const std::vector<Planned>& planned, std::vector<size_t>& sampled);
  bool Finish(Sequence& sequence, Completion& completion);

  Ops& ops_;
  EngineOptions options_;
  std::shared_ptr<const Policy> policy_;
  std::vector<KvPool> pools_;  // one per model of the policy
  std::map<int64_t, std::unique_ptr<Sequence>> sequences_;
  int64_t next_id_ = 1;
  Arena arena_;
  int64_t generated_tokens_ = 0;
  int64_t prompt_tokens_ = 0;
};

}  // namespace quern
