#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "actors/kv_cache.h"
#include "actors/lru_store.h"
#include "actors/served_model.h"
#include "base/deadline.h"
#include "base/status.h"
#include "model/compressed_cache.h"
#include "model/sampler.h"

namespace quern {

struct EngineOptions {
  int64_t max_step_tokens = 512;        // rows of one forward pass: decodes first, then chunks of prompts
  int64_t kv_bytes = int64_t{2} << 30;  // budget of all models' caches together
  bool share_prefixes = true;           // sequences that begin alike compute their beginning once
};

struct GenerateOptions {
  int64_t max_new_tokens = 128;
  SamplingOptions sampling;
  uint64_t seed = 0;              // the n-th token's randomness is a function of (seed, n) only
  std::vector<int32_t> stop_ids;  // end of text and the like: kept as the last token
  // Called after each token with the tokens so far; true ends the generation (a stop text).
  std::function<bool(std::span<const int32_t>)> stop;
  std::optional<Deadline> deadline;  // ends with kDeadline and the tokens so far
  int32_t top_log_probs = 0;         // so many of the likeliest ids of each step as well
  bool sampling_masks = false;       // the ids that could be drawn, each step
};

// kContext: the model has no further positions.
enum class FinishReason { kStop, kLength, kContext, kDeadline };
const char* FinishReasonName(FinishReason reason);

struct TokenLogProb {
  int32_t id = 0;
  float log_prob = 0;
};

struct Completion {
  int64_t sequence = 0;
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;  // raw: under the policy's distribution at temperature 1, before any truncation
  std::vector<std::vector<TokenLogProb>> top;  // with top_log_probs: likeliest first, raw as well
  std::vector<std::vector<int32_t>> masks;     // with sampling_masks: ids in ascending order; empty: every finite logit
  FinishReason finish_reason = FinishReason::kStop;
};

// Batched generation with a paged KV cache. Sequences live across turns: Extend appends tokens (a prompt, an
// observation), Generate asks for a continuation, Step advances every sequence that has work by one token or one prompt
// chunk, in one forward pass per model. A sequence's tokens and log-probabilities do not depend on what else is in the
// batch, on the order of steps, on the cache budget, or on whose pages it shares. Keys and values lie where the backend
// computes, and it draws (Ops::Draw); only logits that are truncated, penalised, put together of several models' or
// listed come to the host. Not thread-safe.
class Engine {
 public:
  // `ops` must outlive the engine.
  Engine(Ops& ops, const EngineOptions& options);
  ~Engine();

  // Takes effect before the next step. Sequences that are open keep their tokens; unless the weights are the same ones,
  // all pages are dropped and they are read again by the new policy.
  void SetPolicy(std::shared_ptr<const Policy> policy);
  const std::shared_ptr<const Policy>& policy() const { return policy_; }

  int64_t Open();
  void Extend(int64_t sequence, std::span<const int32_t> tokens);
  // One generation at a time per sequence; the sequence must hold at least one token.
  void Generate(int64_t sequence, GenerateOptions options);
  void Close(int64_t sequence);  // also cancels
  const std::vector<int32_t>& tokens(int64_t sequence) const;
  // What the generation under way has so far.
  const Completion& progress(int64_t sequence) const;
  int64_t max_positions() const;
  // The longest sequence that the cache budget holds, when nothing else is in it.
  int64_t max_cached_tokens() const;

  // Of every token but the first, under the policy without its compression: the numbers that a learner computes.
  std::vector<float> WholeLogProbs(std::span<const int32_t> tokens);

  bool HasWork() const;
  // Finished generations, in sequence order. Fails when a single sequence does not fit the cache budget.
  Result<std::vector<Completion>> Step();

  int64_t generated_tokens() const { return generated_tokens_; }
  int64_t prompt_tokens() const { return prompt_tokens_; }  // computed ones: anew after a preemption, too
  int64_t shared_tokens() const { return shared_tokens_; }  // that were found in the cache
  int64_t preemptions() const { return preemptions_; }
  int64_t used_pages() const { return cache_ ? cache_->used_pages() : 0; }
  int64_t max_pages() const { return cache_ ? cache_->max_pages() : 0; }

 private:
  struct Sequence;
  struct Planned {
    Sequence* sequence = nullptr;
    int64_t count = 0;  // tokens from `cached` that this step computes
  };
  void FinishEarly(std::vector<Completion>& finished);
  Status Schedule();
  enum class Admission { kAdmitted, kAwaitsPrefix, kNoRoom };
  Admission Admit(Sequence& sequence);
  Admission AdmitCompressed(Sequence& sequence);
  int64_t CompressedBytes(const Sequence& sequence) const;
  bool AwaitsPrefix(const Sequence& sequence, int64_t cached) const;
  bool SharesPrompt(const Sequence& sequence) const;
  bool AwaitsPrompt(const Sequence& sequence) const;
  void KeepToSelections(KvCache::Prefix& prefix);
  void KeepSelections(const Sequence& sequence);
  void KeepPrompt(const Sequence& sequence);
  bool EnsurePages(Sequence& sequence, int64_t positions);
  bool Preempt(int64_t younger_than, int64_t keep);
  void DropPages(Sequence& sequence);
  TensorView PolicyLogits();
  TensorView Combined(const std::vector<TensorView>& model_logits);
  TensorView Gathered(const TensorView& x, const std::vector<int64_t>& rows);
  TensorView OnHost(const TensorView& x);
  TensorView GrowSelection(Sequence& sequence, size_t model);
  bool DrawsFromHidden(const Sequence& sequence) const;
  void Draw(const ServedModel& model, const TensorView& hidden);
  void KeepDrawn();
  void Sample(const TensorView& logits);
  void Keep(Sequence& sequence, int32_t id, float log_prob);
  bool Finish(Sequence& sequence, Completion& completion);

  Ops& ops_;
  EngineOptions options_;
  std::shared_ptr<const Policy> policy_;
  std::unique_ptr<KvCache> cache_;
  // With selective attention a beginning can be shared where it is known how far its positions are masked: at the ends
  // of full pages, by the page's serial; one selection a model.
  bool selective_ = false;
  LruStore<uint64_t, std::vector<Tensor>> kept_selections_;
  // Under a compression: prompts but their last token, read and whole; one cache a model.
  LruStore<std::vector<int32_t>, std::vector<std::unique_ptr<CompressedCache>>> kept_prompts_;
  int64_t own_bytes_ = 0;  // that sequences under a compression may come to need
  std::map<int64_t, std::unique_ptr<Sequence>> sequences_;
  int64_t next_id_ = 1;
  Arena arena_;  // where the backend computes
  Arena host_;   // where the sampler looks, if that is elsewhere
  int64_t generated_tokens_ = 0, prompt_tokens_ = 0, shared_tokens_ = 0, preemptions_ = 0;

  // One step's, kept to save allocations.
  std::vector<Planned> planned_;
  std::vector<Sequence*> sampled_;
  std::vector<int64_t> drawn_rows_, logits_rows_;  // of sampled_: how they get their token
  TensorView drawn_;  // [2, drawn_rows_] int32: ids, and the bits of their log-probabilities
  TokenBatch batch_;
};

}  // namespace quern
