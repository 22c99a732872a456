#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "compute/ops.h"

namespace quern {

// How a token is drawn from a row of logits. Applied in this order: repetition penalty (Keskar et al. 2019),
// temperature, top-k, top-p (Holtzman et al. 2020), min-p; the survivors are renormalised. temperature 0 takes the most
// likely id, the lowest among equals.
struct SamplingOptions {
  float temperature = 1.0f;
  int32_t top_k = 0;                // 0: off
  float top_p = 1.0f;               // 1: off
  float min_p = 0.0f;               // 0: off
  float repetition_penalty = 1.0f;  // 1: off
  bool plain() const { return top_k <= 0 && top_p >= 1.0f && min_p <= 0.0f && repetition_penalty == 1.0f; }
};

// Draws a token. `uniform` in [0, 1) decides; equal arguments give equal tokens on every machine and in every batch.
// `history` (prompt and generated ids) feeds the repetition penalty. Ids with logit -infinity are never drawn. `logits`
// is not changed; `scratch` saves allocations. Thread-safe for distinct scratch.
// `kept`, when given, becomes the sampling mask: the ids that could be drawn, in ascending order; it is left empty
// where nothing is cut and every finite logit could be.
int32_t SampleToken(std::span<const float> logits, const SamplingOptions& options, std::span<const int32_t> history,
                    float uniform, std::vector<float>& scratch, std::vector<int32_t>* kept = nullptr);

// The uniform number for the n-th generated token of a request: a pure function of (seed, n), so that it does not
// depend on the batch.
float SamplingUniform(uint64_t seed, int64_t n);

// What Ops::Draw wants for the same; it draws from the distribution that plain() options ask for.
DrawUniforms SamplingUniforms(const SamplingOptions& options, uint64_t seed, int64_t n);

}  // namespace quern
