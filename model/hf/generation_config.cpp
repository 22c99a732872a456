#include <cmath>

#include "base/file.h"
#include "base/strings.h"
#include "model/hf/json_reader.h"
#include "model/hf/model_directory.h"

namespace quern {
namespace {

Status ReadNumber(const Json& json, const char* key, const std::string& origin, std::optional<double>* out) {
  const Json& value = JsonField(json, key);
  if (value.is_null()) return {};
  if (!value.is_number() || !std::isfinite(value.get<double>()) || value.get<double>() < 0)
    return InvalidArgument(StrCat(origin, ": \"", key, "\" must be a number of at least 0, not ", JsonExcerpt(value)));
  *out = value.get<double>();
  return {};
}

Status ReadCount(const Json& json, const char* key, const std::string& origin, std::optional<int64_t>* out) {
  if (JsonField(json, key).is_null()) return {};
  QUERN_ASSIGN_OR_RETURN(*out, JsonInt(json, key, 0, 0, INT32_MAX, origin));
  return {};
}

Status ReadTokenIds(const Json& json, const std::string& origin, std::vector<int32_t>* ids) {
  const Json& value = JsonField(json, "eos_token_id");
  if (value.is_null()) return {};
  for (const Json& item : value.is_array() ? value : Json::array({value})) {
    if (!item.is_number_integer() || item.get<int64_t>() < 0 || item.get<int64_t>() > INT32_MAX)
      return InvalidArgument(
          StrCat(origin, ": \"eos_token_id\" must be a token id or a list of them, not ", JsonExcerpt(value)));
    ids->push_back(item.get<int32_t>());
  }
  return {};
}

}  // namespace

Result<GenerationConfig> LoadGenerationConfig(const std::string& dir) {
  GenerationConfig config;
  const std::string path = JoinPath(dir, "generation_config.json");
  if (PathExists(path)) {
    QUERN_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
    if (!json.is_object()) return InvalidArgument(path + ": must hold a JSON object");
    QUERN_RETURN_IF_ERROR(ReadTokenIds(json, path, &config.eos_token_ids));
    QUERN_RETURN_IF_ERROR(ReadNumber(json, "temperature", path, &config.temperature));
    QUERN_RETURN_IF_ERROR(ReadNumber(json, "top_p", path, &config.top_p));
    QUERN_RETURN_IF_ERROR(ReadNumber(json, "repetition_penalty", path, &config.repetition_penalty));
    QUERN_RETURN_IF_ERROR(ReadCount(json, "top_k", path, &config.top_k));
    QUERN_RETURN_IF_ERROR(ReadCount(json, "max_new_tokens", path, &config.max_new_tokens));
    if (!JsonField(json, "do_sample").is_null()) {
      QUERN_ASSIGN_OR_RETURN(config.do_sample, JsonBool(json, "do_sample", false, path));
    }
  }
  const std::string model_path = JoinPath(dir, "config.json");
  if (config.eos_token_ids.empty() && PathExists(model_path)) {
    QUERN_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(model_path));
    QUERN_RETURN_IF_ERROR(ReadTokenIds(json, model_path, &config.eos_token_ids));
  }
  return config;
}

std::string GenerationConfigJson(const GenerationConfig& config) {
  Json json = Json::object();
  if (config.eos_token_ids.size() == 1) json["eos_token_id"] = config.eos_token_ids[0];
  if (config.eos_token_ids.size() > 1) json["eos_token_id"] = config.eos_token_ids;
  if (config.temperature) json["temperature"] = *config.temperature;
  if (config.top_p) json["top_p"] = *config.top_p;
  if (config.top_k) json["top_k"] = *config.top_k;
  if (config.do_sample) json["do_sample"] = *config.do_sample;
  if (config.repetition_penalty) json["repetition_penalty"] = *config.repetition_penalty;
  if (config.max_new_tokens) json["max_new_tokens"] = *config.max_new_tokens;
  return json.dump(2) + "\n";
}

}  // namespace quern
