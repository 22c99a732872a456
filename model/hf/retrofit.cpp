#include "base/strings.h"
#include "model/hf/model_directory.h"

namespace quern {

Status AddSelectiveAttention(const std::string& from, const std::string& to) {
  QUERN_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(from));
  if (config.selective_attention) return AlreadyExists(from + ": this model has selective attention already");
  if (config.sliding_window > 0)
    return Unimplemented(from + ": selective attention with a sliding window is not supported");
  QUERN_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(from));
  QUERN_RETURN_IF_ERROR(checkpoint->CheckMatches(config));
  config.selective_attention = config.selection_gain = true;
  const Tensor none(DType::kF32, 1, 1);
  bool bf16 = true;
  for (const TensorInfo& tensor : checkpoint->tensors()) bf16 = bf16 && tensor.dtype == "BF16";
  return SaveModelDirectory(
      to, config,
      [&](const std::string& name) -> Result<TensorView> {
        if (name.ends_with(".selection_gain")) return none.view();
        return checkpoint->Find(name);
      },
      {.dtype = bf16 ? DType::kBf16 : DType::kF32, .source_dir = from, .generation = std::nullopt});
}

}  // namespace quern
