#pragma once

#include <string>

#include "base/check.h"
#include "model/config.h"

namespace quern::bench {

// The two shapes that benchmarks use, after the Llama models trained on TinyStories: "15m" and "110m" parameters with a
// tied head, vocabulary 32000.
inline ModelConfig BenchModel(const std::string& name, bool tied) {
  ModelConfig c;
  const bool small = name == "15m";
  QUERN_CHECK(small || name == "110m", "no model " + name + "; there are 15m and 110m");
  c.vocab_size = 32000;
  c.hidden_size = small ? 288 : 768;
  c.intermediate_size = small ? 768 : 2048;
  c.layers = small ? 6 : 12;
  c.heads = c.kv_heads = small ? 6 : 12;
  c.head_dim = c.hidden_size / c.heads;
  c.max_positions = 1024;
  c.tie_word_embeddings = tied;
  return c;
}

}  // namespace quern::bench
