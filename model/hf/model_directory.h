#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "compute/tensor.h"
#include "model/config.h"
#include "model/hf/safetensors.h"
#include "model/parameters.h"

namespace quern {

// config.json of families llama (also SmolLM2), mistral, qwen2, qwen3. What Quern does not compute exactly (unknown
// model_type or rope_type, quantised weights, other activations, mixed attention windows) is refused, never guessed.
Result<ModelConfig> LoadModelConfig(const std::string& dir);
Result<ModelConfig> ParseModelConfig(std::string_view json, const std::string& origin);
// The text SaveModelDirectory writes: rope_theta + rope_scaling as well as rope_parameters, torch_dtype and dtype.
std::string ModelConfigJson(const ModelConfig& config, DType dtype);

// Sampling defaults of generation_config.json; unset where the file does not say.
struct GenerationConfig {
  std::vector<int32_t> eos_token_ids;  // config.json's where generation_config.json has none
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;
  std::optional<bool> do_sample;
  std::optional<double> repetition_penalty;
  std::optional<int64_t> max_new_tokens;
};
Result<GenerationConfig> LoadGenerationConfig(const std::string& dir);  // an absent file is not an error
std::string GenerationConfigJson(const GenerationConfig& config);

// Beside the weights where a version of an FP8 recipe has Smooth-SwiGLU scales: other programs do not need it.
inline constexpr char kFp8StateFile[] = "fp8_state.safetensors";

// The weights of a directory: model.safetensors, or the shards of model.safetensors.index.json, mapped read-only. Views
// stay valid as long as the Checkpoint lives and must not be written to. Const methods are thread-safe.
class Checkpoint {
 public:
  static Result<std::shared_ptr<const Checkpoint>> Open(const std::string& dir);
  ~Checkpoint();

  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // sorted by name
  const TensorInfo* Info(std::string_view name) const;                 // null: not there
  // fp32, fp16 or bf16 [shape[0], product of the rest]; a vector is one row. Elements are naturally aligned.
  Result<TensorView> Find(std::string_view name) const;
  // Of Find; the Checkpoint must outlive it. What was read before is let out of memory at each call.
  TensorSource Source() const;
  // Every weight of ParameterLayout(config) is there with its shape and a float type, and nothing else is (but
  // rotary_emb.inv_freq, and lm_head.weight of tied models, which are ignored). One line per problem, each naming the
  // tensor.
  std::vector<std::string> Problems(const ModelConfig& config) const;
  Status CheckMatches(const ModelConfig& config) const;  // the first problem
  const std::vector<std::string>& files() const { return file_names_; }

 private:
  struct File;
  Checkpoint() = default;
  Status AddFile(const std::string& dir, const std::string& name);
  Status Finish();
  void LetGo() const;  // of the files' pages, which come back when they are read

  std::vector<std::unique_ptr<File>> files_;
  std::vector<std::string> file_names_;
  std::vector<TensorInfo> tensors_;
  std::vector<const uint8_t*> data_;  // per tensor
  std::vector<Tensor> realigned_;     // copies of tensors whose file offset is not a multiple of the element size
  std::string dir_;
};

struct SaveOptions {
  DType dtype = DType::kBf16;
  // Tokenizer files, chat template and generation_config.json are copied from here where they exist.
  std::string source_dir;
  std::optional<GenerationConfig> generation;  // written instead of source_dir's
  // Weights of more bytes are written as model-00001-of-0000N.safetensors and model.safetensors.index.json, whole
  // tensors in the order of ParameterLayout, each file up to this size where a tensor fits it.
  int64_t max_shard_bytes = 5'000'000'000;
};
// Writes config.json, model.safetensors (or its shards) and the files of `options` into `dir` (created), taking every
// weight of ParameterLayout(config) from `tensors`, and its smooth scales where it has them (kFp8StateFile); their
// views must stay valid until the return. Deterministic: equal inputs give equal bytes.
Status SaveModelDirectory(const std::string& dir, const ModelConfig& config, const TensorSource& tensors,
                          const SaveOptions& options = {});

// Writes the model of `from` with selective attention switched on and gains of zero (ModelConfig::selection_gain) to
// `to`: the same function of the tokens, to the bit, until it is trained.
Status AddSelectiveAttention(const std::string& from, const std::string& to);

// What `quern inspect` prints. Fails only where the directory cannot be read at all.
struct ModelReport {
  std::string family;  // model_type as written
  std::optional<ModelConfig> config;
  std::vector<TensorInfo> tensors;
  std::vector<std::string> files;
  int64_t parameters = 0;
  int64_t bytes = 0;
  std::map<std::string, int64_t> parameters_by_dtype;
  std::vector<std::string> unsupported;  // empty: Quern can run this model
};
Result<ModelReport> InspectModelDirectory(const std::string& dir);
Status CheckSupported(const std::string& dir);  // the first reason of the report

}  // namespace quern
