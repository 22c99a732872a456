#pragma once

#include "methods/objective.h"
#include "methods/policy_head.h"

namespace quern {

// Q-SFT (Hong, Dragan, Levine, arXiv 2411.05193): the value model's probability of a token converges to
// pi_behaviour(a|s) * Q*(s, a) by a weighted cross-entropy; no new head. Our decisions: docs/methods.md.
struct QSftOptions {
  enum class Remainder {
    kDummy,    // the mass 1 - w goes to a reserved token: p = pi * Q exactly
    kUniform,  // spread evenly over all other tokens, as published
  };
  enum class Rule {
    kRatio,  // score = min(1, p_value / p_behaviour), an estimate of Q
    kPaper,  // score = p_value
  };
  Remainder remainder = Remainder::kDummy;
  Rule rule = Rule::kRatio;
  float beta = 16.0f;             // strength of the extraction: policy = pi_behaviour * exp(beta * score)
  float gamma_token = 1.0f;       // discount inside an utterance
  float gamma_turn = 0.99f;       // discount where an utterance ends
  float support_epsilon = 0.01f;  // an action is supported when pi_behaviour >= epsilon ...
  float support_top_p = 0.95f;    // ... or it belongs to the nucleus of this mass
  float polyak = 0.01f;           // target <- target + polyak (value - target) after each step
  // Share of the observed outcome in the target: w = r + gamma ((1 - lambda) max ratio + lambda w'), w' the target of
  // the agent's next token (Sutton's lambda-return). Goes linearly from lambda_start to lambda_end
  // over the first lambda_anneal of a stage. A
  // value model that starts as the behaviour model has ratio 1 everywhere and a bare bootstrap would keep it there for
  // long.
  float lambda_start = 0.0f;
  float lambda_end = 0.0f;
  float lambda_anneal = 1.0f;
  int32_t reserved_token = -1;  // the dummy action's id; needed for kDummy
};

// Trains the value model: w = reward + gamma * discount * max over the support of min(1, p_target / p_behaviour) at the
// agent's next token, clipped to [0, 1]. Metrics (sums over rows): "clip_low", "clip_high" (how often the clip acted on
// a target that the bootstrap or reward moved outside by more than 1e-6), "target" (mean w).
class QSftObjective : public Objective {
 public:
  // vocab_size: K of the uniform form.
  QSftObjective(const QSftOptions& options, int64_t vocab_size);
  int32_t reserved_token() const override;
  bool needs_max_ratio() const override { return true; }
  void SetProgress(double progress) override;
  void Coefficients(std::span<const LossRow> rows, std::span<const float> max_ratio, double normaliser,
                    RowCoefficients& out, MethodMetrics& metrics) const override;

 private:
  QSftOptions options_;
  int64_t vocab_size_;
  double lambda_;
};

// The policy: models are [behaviour, value].
class QSftHead : public PolicyHead {
 public:
  explicit QSftHead(const QSftOptions& options) : options_(options) {}
  int models() const override { return 2; }
  void Combine(std::span<const std::span<const float>> model_logits, std::span<float> out) const override;

 private:
  QSftOptions options_;
};

}  // namespace quern
