#include "model/hf/model_config.h"

#include <cmath>

#include "base/file.h"
#include "base/strings.h"
#include "model/hf/model_directory.h"

namespace quern {
namespace {

constexpr int64_t kMaxVocab = int64_t{1} << 30;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxIntermediate = int64_t{1} << 23;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxPositions = int64_t{1} << 40;

// Reads fields of one JSON object, collecting every problem instead of stopping at the first.
class FieldReader {
 public:
  FieldReader(const Json& object, std::vector<std::string>* problems) : object_(object), problems_(problems) {}

  const Json& operator[](const char* key) const { return JsonField(object_, key); }
  bool Has(const char* key) const { return object_.contains(key); }

  int64_t Required(const char* key, int64_t max) {
    if ((*this)[key].is_null()) {
      Problem(StrCat("\"", key, "\" is missing"));
      return 1;
    }
    return Int(key, 1, 1, max);
  }
  int64_t Int(const char* key, int64_t fallback, int64_t min, int64_t max) {
    return Take(JsonInt(object_, key, fallback, min, max, "config.json"), fallback);
  }
  bool Bool(const char* key, bool fallback) { return Take(JsonBool(object_, key, fallback, "config.json"), fallback); }
  std::string String(const char* key, const std::string& fallback) {
    return Take(JsonString(object_, key, fallback, "config.json"), fallback);
  }
  double Positive(const char* key, double fallback) {
    const Json& value = (*this)[key];
    if (value.is_null()) return fallback;
    const double number = value.is_number() ? value.get<double>() : 0;
    if (!(number > 0) || !std::isfinite(number)) {
      Problem(StrCat("\"", key, "\" must be a positive number, not ", JsonExcerpt(value)));
      return fallback;
    }
    return number;
  }
  void Problem(const std::string& what) { problems_->push_back(OneLine(what)); }

 private:
  template <typename T>
  T Take(Result<T> result, const T& fallback) {
    if (result.ok()) return std::move(result).value();
    std::string message = result.status().message();
    Problem(message.substr(message.find(": ") + 2));
    return fallback;
  }

  const Json& object_;
  std::vector<std::string>* problems_;
};

// A token id, a list of them, or null.
std::vector<int32_t> TokenIds(FieldReader& fields, const char* key) {
  const Json& value = fields[key];
  if (value.is_null()) return {};
  std::vector<int32_t> ids;
  bool good = true;
  for (const Json& item : value.is_array() ? value : Json::array({value})) {
    good = good && item.is_number_integer() && item.get<int64_t>() >= 0 && item.get<int64_t>() <= INT32_MAX;
    if (good) ids.push_back(item.get<int32_t>());
  }
  if (!good) fields.Problem(StrCat("\"", key, "\" must be a token id or a list of them, not ", JsonExcerpt(value)));
  return good ? ids : std::vector<int32_t>{};
}

void ReadRope(FieldReader& fields, ModelConfig* config, std::vector<std::string>* problems) {
  // Transformers 5 writes one dict, older versions rope_theta and rope_scaling beside each other.
  const Json& parameters = fields["rope_parameters"];
  const Json& scaling_json = parameters.is_object() ? parameters : fields["rope_scaling"];
  config->rope_theta = fields.Positive("rope_theta", 10000.0);
  if (scaling_json.is_null()) return;
  if (!scaling_json.is_object()) return fields.Problem("\"rope_scaling\" must be an object");
  FieldReader scaling(scaling_json, problems);
  if (parameters.is_object()) config->rope_theta = scaling.Positive("rope_theta", config->rope_theta);
  if (scaling.Has("full_attention") || scaling.Has("sliding_attention"))
    return fields.Problem("rope parameters per layer type are not supported");
  const std::string type = scaling.String("rope_type", scaling.String("type", "default"));
  RopeScaling& rope = config->rope_scaling;
  if (type == "default") {
    rope.type = RopeScaling::Type::kNone;
  } else if (type == "linear") {
    rope.type = RopeScaling::Type::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeScaling::Type::kLlama3;
    for (const char* key : {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"})
      if (scaling[key].is_null()) scaling.Problem(StrCat("rope_type llama3 needs \"", key, "\""));
    rope.low_freq_factor = scaling.Positive("low_freq_factor", 1.0);
    rope.high_freq_factor = scaling.Positive("high_freq_factor", 4.0);
    rope.original_max_positions = scaling.Int("original_max_position_embeddings", 8192, 1, kMaxPositions);
    if (!(rope.high_freq_factor > rope.low_freq_factor))
      scaling.Problem("\"high_freq_factor\" must be greater than \"low_freq_factor\"");
  } else {
    return fields.Problem(StrCat("rope_type \"", type, "\" is not supported (default, linear and llama3 are)"));
  }
  if (type != "default") {
    if (scaling["factor"].is_null()) scaling.Problem(StrCat("rope_type ", type, " needs \"factor\""));
    rope.factor = scaling.Positive("factor", 1.0);
  }
}

// One window for all layers, or none.
void ReadSlidingWindow(FieldReader& fields, ModelConfig* config) {
  const bool qwen = config->model_type == "qwen2" || config->model_type == "qwen3";
  int64_t window = 0;
  if (config->model_type == "mistral") {
    window = fields.Has("sliding_window") ? fields.Int("sliding_window", 0, 1, kMaxPositions) : 4096;
  } else if (qwen && fields.Bool("use_sliding_window", false)) {
    window = fields.Int("sliding_window", 4096, 1, kMaxPositions);
  }
  if (window == 0) return;
  int64_t windowed = config->layers;
  const Json& types = fields["layer_types"];
  if (types.is_array()) {
    windowed = 0;
    for (const Json& type : types) windowed += type == "sliding_attention";
  } else if (qwen) {
    windowed = std::max<int64_t>(0, config->layers - fields.Int("max_window_layers", 28, 0, INT32_MAX));
  }
  if (windowed == 0) return;
  if (windowed != config->layers) {
    fields.Problem(
        StrCat("sliding attention on ", windowed, " of ", config->layers, " layers is not supported (all or none is)"));
    return;
  }
  config->sliding_window = window;
}

void CheckLayerTypes(FieldReader& fields, const ModelConfig& config) {
  const Json& types = fields["layer_types"];
  if (types.is_null()) return;
  if (!types.is_array() || static_cast<int64_t>(types.size()) != config.layers)
    return fields.Problem("\"layer_types\" must list one type per layer");
  for (const Json& type : types)
    if (type != "full_attention" && type != "sliding_attention")
      return fields.Problem(StrCat("layer type ", JsonExcerpt(type), " is not supported"));
}

void CheckNotQuantised(FieldReader& fields) {
  if (!fields["quantization_config"].is_null()) {
    const Json& method = JsonField(fields["quantization_config"], "quant_method");
    fields.Problem(StrCat("weights are quantised (quantization_config, method ",
                          method.is_string() ? method.get<std::string>() : "unknown",
                          "); F32, F16 and BF16 weights are supported"));
  } else if (!fields["quantization"].is_null()) {
    const Json& bits = JsonField(fields["quantization"], "bits");
    fields.Problem(StrCat("weights are quantised by MLX to ", bits.is_number_integer() ? bits.dump() : "few",
                          " bits; F32, F16 and BF16 weights are supported"));
  }
}

void ReadSizes(FieldReader& fields, ModelConfig* config) {
  const bool llama = config->model_type == "llama";
  config->vocab_size = fields.Required("vocab_size", kMaxVocab);
  config->hidden_size = fields.Required("hidden_size", kMaxWidth);
  config->intermediate_size = fields.Required("intermediate_size", kMaxIntermediate);
  config->layers = fields.Required("num_hidden_layers", kMaxLayers);
  config->heads = fields.Required("num_attention_heads", kMaxWidth);
  if (!llama && !fields.Has("num_key_value_heads")) fields.Problem("\"num_key_value_heads\" is missing");
  config->kv_heads = fields.Int("num_key_value_heads", config->heads, 1, kMaxWidth);
  if (config->heads % config->kv_heads != 0)
    fields.Problem(
        StrCat("num_attention_heads ", config->heads, " is not a multiple of num_key_value_heads ", config->kv_heads));
  const bool explicit_dim = !fields["head_dim"].is_null();
  const int64_t derived = config->model_type == "qwen3" && !fields.Has("head_dim")
                              ? 128
                              : config->hidden_size / std::max<int64_t>(config->heads, 1);
  config->head_dim = fields.Int("head_dim", derived, 1, kMaxWidth);
  if (!explicit_dim && derived != 128 && config->hidden_size % config->heads != 0)
    fields.Problem("hidden_size is not a multiple of num_attention_heads and \"head_dim\" is missing");
  if (config->head_dim < 2 || config->head_dim % 2 != 0)
    fields.Problem(StrCat("head_dim ", config->head_dim, " must be even for rotary positions"));
  if (config->heads * std::max<int64_t>(config->head_dim, 1) > kMaxWidth)
    fields.Problem("num_attention_heads * head_dim is too large");
  config->max_positions = fields.Int(
      "max_position_embeddings", llama ? 2048 : (config->model_type == "mistral" ? 131072 : 32768), 1, kMaxPositions);
}

}  // namespace

ModelConfig ReadModelConfig(const Json& json, std::vector<std::string>* problems) {
  ModelConfig config;
  FieldReader fields(json, problems);
  config.model_type = fields.String("model_type", "");
  const std::string& type = config.model_type;
  if (type.empty()) {
    fields.Problem("\"model_type\" is missing");
    return config;
  }
  if (type != "llama" && type != "mistral" && type != "qwen2" && type != "qwen3") {
    fields.Problem(
        StrCat("model_type \"", type, "\" is not supported (llama, mistral, qwen2 and qwen3 are; SmolLM2 is llama)"));
    return config;
  }
  const Json& architectures = fields["architectures"];
  if (architectures.is_array() && architectures.size() == 1 && architectures[0].is_string()) {
    const auto name = architectures[0].get<std::string>();
    if (name.find("ForCausalLM") == std::string::npos)
      fields.Problem(StrCat("architecture \"", name, "\" is not a causal language model"));
  }
  CheckNotQuantised(fields);
  const std::string activation = fields.String("hidden_act", "silu");
  if (activation != "silu" && activation != "swish")
    fields.Problem(StrCat("hidden_act \"", activation, "\" is not supported (silu is)"));
  const Json& partial = fields["partial_rotary_factor"];
  if (!partial.is_null() && partial != 1.0) fields.Problem("partial_rotary_factor other than 1 is not supported");

  ReadSizes(fields, &config);
  ReadRope(fields, &config, problems);
  CheckLayerTypes(fields, config);
  ReadSlidingWindow(fields, &config);
  config.rms_norm_eps = static_cast<float>(fields.Positive("rms_norm_eps", 1e-6));
  config.tie_word_embeddings = fields.Bool("tie_word_embeddings", false);
  const bool bias = fields.Bool("attention_bias", false);
  config.attention_bias = type == "qwen2" || ((type == "llama" || type == "qwen3") && bias);
  config.attention_output_bias = (type == "llama" || type == "qwen3") && bias;
  config.mlp_bias = type == "llama" && fields.Bool("mlp_bias", false);
  config.qk_norm = type == "qwen3";
  config.selective_attention = fields.Bool("quern_selective_attention", false);
  config.selection_gain = fields.Bool("quern_selection_gain", false);
  if (config.selection_gain && !config.selective_attention)
    fields.Problem("quern_selection_gain without quern_selective_attention is not supported");
  if (config.selective_attention && config.sliding_window > 0)
    fields.Problem("quern_selective_attention with a sliding window is not supported");
  config.eos_token_ids = TokenIds(fields, "eos_token_id");
  const std::vector<int32_t> bos = TokenIds(fields, "bos_token_id");
  const std::vector<int32_t> pad = TokenIds(fields, "pad_token_id");
  config.bos_token_id = bos.empty() ? -1 : bos[0];
  config.pad_token_id = pad.empty() ? -1 : pad[0];
  config.initializer_range = fields.Positive("initializer_range", 0.02);
  return config;
}

Result<ModelConfig> ParseModelConfig(std::string_view json, const std::string& origin) {
  QUERN_ASSIGN_OR_RETURN(const Json document, ParseJson(json, origin));
  if (!document.is_object()) return InvalidArgument(origin + ": must hold a JSON object");
  std::vector<std::string> problems;
  ModelConfig config = ReadModelConfig(document, &problems);
  if (problems.empty()) return config;
  const bool unsupported = problems[0].find("support") != std::string::npos;
  const std::string message = StrCat(origin, ": ", problems[0]);
  return unsupported ? Unimplemented(message) : InvalidArgument(message);
}

Result<ModelConfig> LoadModelConfig(const std::string& dir) {
  const std::string path = JoinPath(dir, "config.json");
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseModelConfig(text, path);
}

}  // namespace quern
