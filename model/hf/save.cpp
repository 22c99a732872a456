#include "base/file.h"
#include "base/strings.h"
#include "model/hf/json_reader.h"
#include "model/hf/model_directory.h"
#include "model/hf/shapes.h"

namespace quern {
namespace {

constexpr const char* kCopiedFiles[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "tokenizer.model",
                                        "chat_template.jinja",
                                        "chat_template.json",
                                        "generation_config.json"};

const char* TorchName(DType dtype) {
  switch (dtype) {
    case DType::kBf16: return "bfloat16";
    case DType::kF16: return "float16";
    case DType::kF64: return "float64";
    default: return "float32";
  }
}

const char* Architecture(const std::string& model_type) {
  if (model_type == "mistral") return "MistralForCausalLM";
  if (model_type == "qwen2") return "Qwen2ForCausalLM";
  if (model_type == "qwen3") return "Qwen3ForCausalLM";
  return "LlamaForCausalLM";
}

// A float that prints as the decimal it was written as (1e-05, not 9.99999974e-06).
double ShortDecimal(float value) { return std::stod(StrFormat("%.7g", static_cast<double>(value))); }

Json RopeScalingJson(const RopeScaling& rope) {
  if (rope.type == RopeScaling::Type::kNone) return {{"rope_type", "default"}};
  if (rope.type == RopeScaling::Type::kLinear) return {{"rope_type", "linear"}, {"factor", rope.factor}};
  return {{"rope_type", "llama3"},
          {"factor", rope.factor},
          {"low_freq_factor", rope.low_freq_factor},
          {"high_freq_factor", rope.high_freq_factor},
          {"original_max_position_embeddings", rope.original_max_positions}};
}

// The single file or the shards; files of the other form that an earlier save left are taken away.
Status WriteWeights(const std::string& dir, std::vector<NamedTensor> tensors, const SaveOptions& options) {
  const std::string single = JoinPath(dir, "model.safetensors"), index = single + ".index.json";
  std::vector<std::vector<NamedTensor>> shards(1);
  int64_t total = 0, in_shard = 0;
  for (NamedTensor& tensor : tensors) {
    const int64_t bytes = tensor.view.rows * tensor.view.cols * DTypeSize(options.dtype);
    if (in_shard > 0 && in_shard + bytes > options.max_shard_bytes) {
      shards.emplace_back();
      in_shard = 0;
    }
    shards.back().push_back(std::move(tensor));
    in_shard += bytes;
    total += bytes;
  }
  if (shards.size() == 1) {
    QUERN_RETURN_IF_ERROR(WriteSafetensors(single, std::move(shards[0]), options.dtype));
    return RemoveTree(index);
  }
  Json map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = StrFormat("model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    for (const NamedTensor& tensor : shards[i]) map[tensor.name] = name;
    QUERN_RETURN_IF_ERROR(WriteSafetensors(JoinPath(dir, name), std::move(shards[i]), options.dtype));
  }
  const Json json = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(index, json.dump(2) + "\n"));
  return RemoveTree(single);
}

}  // namespace

std::string ModelConfigJson(const ModelConfig& config, DType dtype) {
  const std::string& type = config.model_type;
  Json json = {{"architectures", {Architecture(type)}},
               {"model_type", type},
               {"vocab_size", config.vocab_size},
               {"hidden_size", config.hidden_size},
               {"intermediate_size", config.intermediate_size},
               {"num_hidden_layers", config.layers},
               {"num_attention_heads", config.heads},
               {"num_key_value_heads", config.kv_heads},
               {"head_dim", config.head_dim},
               {"max_position_embeddings", config.max_positions},
               {"hidden_act", "silu"},
               {"rms_norm_eps", ShortDecimal(config.rms_norm_eps)},
               {"rope_theta", config.rope_theta},
               {"tie_word_embeddings", config.tie_word_embeddings},
               {"initializer_range", config.initializer_range},
               {"attention_dropout", 0.0},
               {"use_cache", true},
               {"torch_dtype", TorchName(dtype)},
               {"dtype", TorchName(dtype)},
               {"bos_token_id", nullptr},
               {"eos_token_id", nullptr}};
  json["rope_parameters"] = RopeScalingJson(config.rope_scaling);
  json["rope_scaling"] =
      config.rope_scaling.type == RopeScaling::Type::kNone ? Json() : RopeScalingJson(config.rope_scaling);
  json["rope_parameters"]["rope_theta"] = config.rope_theta;
  if (config.bos_token_id >= 0) json["bos_token_id"] = config.bos_token_id;
  if (config.pad_token_id >= 0) json["pad_token_id"] = config.pad_token_id;
  if (config.eos_token_ids.size() == 1) json["eos_token_id"] = config.eos_token_ids[0];
  if (config.eos_token_ids.size() > 1) json["eos_token_id"] = config.eos_token_ids;
  if (type == "llama" || type == "qwen3") json["attention_bias"] = config.attention_bias;
  if (type == "llama") json["mlp_bias"] = config.mlp_bias;
  if (type == "mistral") json["sliding_window"] = config.sliding_window > 0 ? Json(config.sliding_window) : Json();
  if (type == "qwen2" || type == "qwen3") {
    json["use_sliding_window"] = config.sliding_window > 0;
    json["sliding_window"] = config.sliding_window > 0 ? Json(config.sliding_window) : Json();
    json["max_window_layers"] = config.sliding_window > 0 ? 0 : config.layers;
  }
  if (config.selective_attention) json["quern_selective_attention"] = true;
  if (config.selection_gain) json["quern_selection_gain"] = true;
  return json.dump(2) + "\n";
}

Status SaveModelDirectory(const std::string& dir, const ModelConfig& config, const TensorSource& tensors,
                          const SaveOptions& options) {
  const ParameterLayout layout(config);
  std::vector<NamedTensor> named;
  for (const ParameterInfo& parameter : layout.parameters()) {
    QUERN_ASSIGN_OR_RETURN(const TensorView view, tensors(parameter.name));
    if (view.rows != parameter.rows || view.cols != parameter.cols)
      return InvalidArgument(StrCat(dir, ": tensor ", parameter.name, " is [", view.rows, ", ", view.cols,
                                    "], the configuration asks for [", parameter.rows, ", ", parameter.cols, "]"));
    named.push_back({parameter.name, view, HfShape(parameter)});
  }
  std::vector<NamedTensor> scales;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const Result<TensorView> scale = tensors(SmoothScaleName(layer));
    if (scale.ok()) scales.push_back({SmoothScaleName(layer), *scale});
    const Result<TensorView> amax = tensors(Fp8AmaxName(layer));
    if (amax.ok()) scales.push_back({Fp8AmaxName(layer), *amax});
  }
  QUERN_RETURN_IF_ERROR(MakeDirectories(dir));
  if (!options.source_dir.empty()) {
    for (const char* name : kCopiedFiles) {
      const std::string from = JoinPath(options.source_dir, name);
      if (!PathExists(from)) continue;
      QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(from));
      QUERN_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(dir, name), text));
    }
  }
  if (options.generation)
    QUERN_RETURN_IF_ERROR(
        WriteFileAtomic(JoinPath(dir, "generation_config.json"), GenerationConfigJson(*options.generation)));
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(dir, "config.json"), ModelConfigJson(config, options.dtype)));
  if (!scales.empty()) QUERN_RETURN_IF_ERROR(WriteSafetensors(JoinPath(dir, kFp8StateFile), std::move(scales)));
  return WriteWeights(dir, std::move(named), options);
}

}  // namespace quern
