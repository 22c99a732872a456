#include <gtest/gtest.h>

#include "model/hf/json_reader.h"
#include "model/hf/model_directory.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

Json Base(const std::string& type) {
  return {{"model_type", type},       {"vocab_size", 256},      {"hidden_size", 64},
          {"intermediate_size", 128}, {"num_hidden_layers", 2}, {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"rms_norm_eps", 1e-6},   {"eos_token_id", 2}};
}

ModelConfig Parse(const Json& json) {
  auto config = ParseModelConfig(json.dump(), "config.json");
  EXPECT_TRUE(config.ok()) << config.status().ToString();
  return config.ok() ? *config : ModelConfig();
}

void ExpectError(const Json& json, const std::string& part) {
  const auto config = ParseModelConfig(json.dump(), "config.json");
  ASSERT_FALSE(config.ok()) << part;
  EXPECT_NE(config.status().message().find(part), std::string::npos) << config.status().ToString();
  EXPECT_EQ(config.status().message().find('\n'), std::string::npos);
}

Json With(Json json, const std::string& key, const Json& value) {
  json[key] = value;
  return json;
}

TEST(ModelConfig, Families) {
  ModelConfig config = Parse(Base("llama"));
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_FALSE(config.attention_bias);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int32_t>{2}));
  EXPECT_EQ(config.bos_token_id, -1);

  config = Parse(With(With(Base("llama"), "attention_bias", true), "mlp_bias", true));
  EXPECT_TRUE(config.attention_bias && config.attention_output_bias && config.mlp_bias);

  config = Parse(Base("qwen2"));
  EXPECT_TRUE(config.attention_bias);
  EXPECT_FALSE(config.attention_output_bias);
  EXPECT_FALSE(config.qk_norm);

  config = Parse(With(Base("qwen3"), "head_dim", 32));
  EXPECT_TRUE(config.qk_norm);
  EXPECT_FALSE(config.attention_bias);
  EXPECT_EQ(config.head_dim, 32);
  EXPECT_EQ(Parse(Base("qwen3")).head_dim, 128);

  EXPECT_EQ(Parse(Base("mistral")).sliding_window, 4096);
  EXPECT_EQ(Parse(With(Base("mistral"), "sliding_window", nullptr)).sliding_window, 0);
  EXPECT_EQ(Parse(With(Base("mistral"), "sliding_window", 8)).sliding_window, 8);
}

TEST(ModelConfig, SelectiveAttentionIsKeptInTheFile) {
  EXPECT_FALSE(Parse(Base("llama")).selective_attention);
  const Json json = With(Base("qwen3"), "quern_selective_attention", true);
  EXPECT_TRUE(Parse(json).selective_attention);
  const std::string written = ModelConfigJson(Parse(json), DType::kBf16);
  EXPECT_TRUE(Parse(Json::parse(written)).selective_attention);
  EXPECT_EQ(ModelConfigJson(Parse(Base("qwen3")), DType::kBf16).find("selective"), std::string::npos);
  ExpectError(With(With(Base("mistral"), "quern_selective_attention", true), "sliding_window", 8), "sliding window");
  EXPECT_FALSE(Parse(json).selection_gain);
  const Json gained = With(json, "quern_selection_gain", true);
  EXPECT_TRUE(Parse(Json::parse(ModelConfigJson(Parse(gained), DType::kBf16))).selection_gain);
  ExpectError(With(Base("qwen3"), "quern_selection_gain", true), "quern_selective_attention");
}

TEST(ModelConfig, KeyValueHeadsDefaultToHeadsInLlama) {
  Json json = Base("llama");
  json.erase("num_key_value_heads");
  EXPECT_EQ(Parse(json).kv_heads, 4);
  json["model_type"] = "qwen2";
  ExpectError(json, "\"num_key_value_heads\" is missing");
}

TEST(ModelConfig, RopeOldAndNewSpelling) {
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 4096}};
  ModelConfig config = Parse(With(With(Base("llama"), "rope_theta", 5e5), "rope_scaling", llama3));
  EXPECT_EQ(config.rope_theta, 5e5);
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLlama3);
  EXPECT_EQ(config.rope_scaling.original_max_positions, 4096);

  Json both = llama3;
  both["rope_theta"] = 7e5;
  config = Parse(With(Base("llama"), "rope_parameters", both));
  EXPECT_EQ(config.rope_theta, 7e5);
  EXPECT_EQ(config.rope_scaling.factor, 8.0);

  config = Parse(With(Base("llama"), "rope_scaling", {{"type", "linear"}, {"factor", 2}}));
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLinear);
  EXPECT_EQ(config.rope_scaling.factor, 2.0);
  config = Parse(With(Base("llama"), "rope_parameters", {{"rope_type", "default"}, {"rope_theta", 3e4}}));
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kNone);
  EXPECT_EQ(config.rope_theta, 3e4);

  ExpectError(With(Base("llama"), "rope_scaling", {{"rope_type", "yarn"}, {"factor", 2}}), "rope_type \"yarn\"");
  ExpectError(With(Base("llama"), "rope_scaling", {{"rope_type", "llama3"}, {"factor", 2}}),
              "needs \"low_freq_factor\"");
  ExpectError(With(Base("llama"), "rope_scaling", {{"rope_type", "linear"}}), "needs \"factor\"");
  ExpectError(With(Base("llama"), "rope_scaling", 3), "\"rope_scaling\" must be an object");
}

TEST(ModelConfig, SlidingWindowOfQwen) {
  Json json = With(With(Base("qwen2"), "use_sliding_window", true), "sliding_window", 32);
  ExpectError(With(json, "max_window_layers", 1), "1 of 2 layers");
  EXPECT_EQ(Parse(With(json, "max_window_layers", 0)).sliding_window, 32);
  EXPECT_EQ(Parse(With(json, "max_window_layers", 2)).sliding_window, 0);
  EXPECT_EQ(Parse(With(json, "use_sliding_window", false)).sliding_window, 0);
  EXPECT_EQ(Parse(With(json, "layer_types", {"full_attention", "full_attention"})).sliding_window, 0);
  ExpectError(With(json, "layer_types", {"full_attention", "sliding_attention"}), "1 of 2 layers");
  ExpectError(With(json, "layer_types", {"linear_attention", "full_attention"}), "linear_attention");
}

TEST(ModelConfig, RefusesWhatItDoesNotCompute) {
  ExpectError(Base("gpt_neox"), "model_type \"gpt_neox\" is not supported");
  ExpectError(Json::object(), "\"model_type\" is missing");
  ExpectError(With(Base("llama"), "hidden_act", "gelu"), "hidden_act \"gelu\"");
  ExpectError(With(Base("llama"), "quantization_config", {{"quant_method", "gptq"}}), "gptq");
  ExpectError(With(Base("llama"), "quantization", {{"bits", 4}}), "quantised by MLX to 4 bits");
  ExpectError(With(Base("llama"), "partial_rotary_factor", 0.5), "partial_rotary_factor");
  ExpectError(With(Base("llama"), "architectures", {"LlamaForSequenceClassification"}),
              "LlamaForSequenceClassification");
  EXPECT_EQ(ParseModelConfig(Base("bert").dump(), "c").status().code(), StatusCode::kUnimplemented);
}

TEST(ModelConfig, RefusesMalformed) {
  EXPECT_FALSE(ParseModelConfig("", "config.json").ok());
  EXPECT_FALSE(ParseModelConfig("{\"model_type\": \"llama\"", "config.json").ok());
  EXPECT_FALSE(ParseModelConfig("[]", "config.json").ok());
  EXPECT_FALSE(ParseModelConfig("\xff", "config.json").ok());
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}) {
    Json json = Base("llama");
    json.erase(key);
    ExpectError(json, std::string("\"") + key + "\" is missing");
    for (const Json& bad : {Json(0), Json(-3), Json(1.5), Json("64"), Json(1e30), Json(UINT64_MAX), Json::array()})
      ExpectError(With(Base("llama"), key, bad), std::string("\"") + key + "\" must be an integer");
  }
  ExpectError(With(Base("llama"), "num_key_value_heads", 3), "not a multiple");
  ExpectError(With(Base("llama"), "head_dim", 15), "must be even");
  ExpectError(With(Base("llama"), "hidden_size", 66), "not a multiple of num_attention_heads");
  ExpectError(With(Base("llama"), "rms_norm_eps", 0), "\"rms_norm_eps\" must be a positive number");
  ExpectError(With(Base("llama"), "eos_token_id", "x"), "\"eos_token_id\"");
  ExpectError(With(Base("llama"), "eos_token_id", {1, -1}), "\"eos_token_id\"");
  ExpectError(With(Base("llama"), "tie_word_embeddings", 1), "\"tie_word_embeddings\" must be true or false");
}

TEST(ModelConfig, WrittenTextReadsBack) {
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3"}) {
    ModelConfig config = Parse(With(Base(type), "rope_theta", 123456.5));
    config.sliding_window = std::string(type) == "llama" ? 0 : 64;
    config.rms_norm_eps = 1e-5f;
    config.eos_token_ids = {1, 5};
    config.bos_token_id = 3;
    config.tie_word_embeddings = true;
    config.rope_scaling = {RopeScaling::Type::kLlama3, 8.0, 1.0, 4.0, 4096};
    const std::string text = ModelConfigJson(config, DType::kBf16);
    const ModelConfig again = Parse(Json::parse(text));
    EXPECT_EQ(ModelConfigJson(again, DType::kBf16), text);
    EXPECT_EQ(again.sliding_window, config.sliding_window) << type;
    EXPECT_EQ(again.rms_norm_eps, 1e-5f);
    EXPECT_EQ(again.rope_theta, 123456.5);
    EXPECT_EQ(again.eos_token_ids, config.eos_token_ids);
    EXPECT_EQ(Json::parse(text)["rope_parameters"]["rope_type"], "llama3");
    EXPECT_EQ(Json::parse(text)["torch_dtype"], "bfloat16");
    EXPECT_EQ(Json::parse(text)["rms_norm_eps"].dump(), "1e-05");
  }
}

}  // namespace
}  // namespace quern
