#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace quern {

// Rotary frequencies. kLlama3 rescales low frequencies (Llama 3.1); kLinear divides positions by `factor`.
struct RopeScaling {
  enum class Type { kNone, kLinear, kLlama3 };
  Type type = Type::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_positions = 8192;
};

// The architecture of a decoder of the Llama family, with the names and defaults of Hugging Face's config.json.
struct ModelConfig {
  std::string model_type = "llama";  // llama | mistral | qwen2 | qwen3
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_positions = 2048;
  int64_t sliding_window = 0;  // 0: full attention
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  float rms_norm_eps = 1e-5f;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // q, k, v (and o when o_bias)
  bool attention_output_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;  // qwen3: RMS norm of every query and key head
  // Attention with selection by head 0 (compute/ops.h); key "quern_selective_attention" of config.json, which other
  // programs do not know. Not with a sliding window.
  bool selective_attention = false;
  // Each layer learns by how much its head 0 selects, from nothing on: a model that was trained without selection.
  bool selection_gain = false;
  int32_t bos_token_id = -1;  // -1: none
  std::vector<int32_t> eos_token_ids;
  int32_t pad_token_id = -1;
  double initializer_range = 0.02;

  int64_t q_size() const { return heads * head_dim; }
  int64_t kv_size() const { return kv_heads * head_dim; }
  int64_t qkv_size() const { return q_size() + 2 * kv_size(); }
};

}  // namespace quern
