#pragma once

#include "model/config.h"

namespace quern {

// Two layers of four heads that share two of keys and values: the least in which a mistake in layers, groups or offsets
// shows. Weights of 0.3 make logits differ; training begins with smaller ones.
inline ModelConfig SmallModel(int64_t vocabulary, double initializer_range = 0.3) {
  ModelConfig config;
  config.vocab_size = vocabulary;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.initializer_range = initializer_range;
  return config;
}

}  // namespace quern
