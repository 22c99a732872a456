#include "service/served_policy.h"

#include "base/log.h"
#include "base/strings.h"
#include "model/hf/content_hash.h"
#include "model/hf/model_directory.h"
#include "service/evaluate.h"

namespace quern {

Result<Recipe> PrecisionFor(const std::string& asked, const std::string& model_directory) {
  if (!asked.empty()) return RecipeOf(asked);
  QUERN_ASSIGN_OR_RETURN(const ModelReport report, InspectModelDirectory(model_directory));
  for (const auto& [dtype, count] : report.parameters_by_dtype)
    if (dtype != "BF16" && dtype != "bf16" && count > report.parameters / 2) return Recipe(DType::kF32);
  return Recipe(DType::kBf16);
}

Result<ServedPolicy> LoadServedPolicy(Ops& ops, const v1::PolicySpec& spec, const std::string& precision) {
  if (spec.weights().empty()) return InvalidArgument(StrCat("'", spec.name(), "' has no weights to generate with"));
  const std::string& directory = spec.weights(0).path();
  QUERN_RETURN_IF_ERROR(CheckSupported(directory));
  QUERN_ASSIGN_OR_RETURN(const Recipe recipe, PrecisionFor(precision, directory));
  ServedPolicy served;
  QUERN_ASSIGN_OR_RETURN(served.policy, LoadPolicy(ops, spec, recipe));
  std::vector<std::string> hashes;
  for (const v1::WeightVersion& weights : spec.weights()) {
    QUERN_ASSIGN_OR_RETURN(hashes.emplace_back(), DirectoryContentHash(weights.path()));
  }
  served.version = StrJoin(hashes, "+");
  // What is there and cannot be read is of no hindrance to token ids.
  const auto complain = [](const Status& status) {
    if (status.code() != StatusCode::kNotFound) LogWarning(status.message());
  };
  if (auto tokenizer = Tokenizer::Load(directory); tokenizer.ok()) {
    served.tokenizer = *std::move(tokenizer);
  } else {
    complain(tokenizer.status());
  }
  if (auto chat_template = ChatTemplate::Load(directory); chat_template.ok()) {
    served.chat_template = *std::move(chat_template);
  } else {
    complain(chat_template.status());
  }
  QUERN_ASSIGN_OR_RETURN(const GenerationConfig config, LoadGenerationConfig(directory));
  served.end_ids = config.eos_token_ids;
  return served;
}

}  // namespace quern
