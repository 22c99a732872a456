#include "service/compression.h"

#include <cmath>

#include "base/strings.h"
#include "model/hf/json_reader.h"

namespace quern {

Result<std::vector<int64_t>> LoadBudgets(const std::string& path) {
  QUERN_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  const Json& list = JsonField(json, "budgets");
  std::vector<int64_t> budgets;
  for (const Json& entry : list) {
    const int64_t budget = entry.is_number_integer() ? entry.get<int64_t>() : -1;
    if (budget < 2)
      return InvalidArgument(StrCat(path, ": budgets has ", JsonExcerpt(entry), "; whole numbers from 2 on are meant"));
    budgets.push_back(budget);
  }
  if (!list.is_array() || budgets.empty())
    return InvalidArgument(path + ": has no list \"budgets\"; quern budget writes such a file");
  return budgets;
}

int64_t KeyChannels(double ratio, int64_t head_dim) {
  return static_cast<int64_t>(std::ceil(ratio * static_cast<double>(head_dim) - 1e-9));
}

v1::Compression ToProto(const Compression& compression) {
  v1::Compression proto;
  for (const int64_t budget : compression.budgets) proto.add_budgets(static_cast<uint32_t>(budget));
  proto.set_key_channels(static_cast<uint32_t>(compression.key_channels));
  proto.set_query_window(static_cast<uint32_t>(compression.query_window));
  proto.set_recent(static_cast<uint32_t>(compression.recent));
  return proto;
}

Status CheckCompression(const Compression& compression, const ModelConfig& config) {
  if (compression.key_channels > config.head_dim)
    return InvalidArgument(
        StrCat("key_channels ", compression.key_channels, " is more than the model's head_dim ", config.head_dim));
  if (compression.key_channels > 0 && config.sliding_window > 0)
    return Unimplemented("key_channels with a sliding window is not supported");
  if (compression.budgets.empty()) return {};
  if (!config.selective_attention)
    return FailedPrecondition(
        "budgets need a model with selective attention (quern_selective_attention in config.json): nothing tells "
        "what of another model's cache can go");
  if (static_cast<int64_t>(compression.budgets.size()) != config.layers)
    return InvalidArgument(
        StrCat("there are budgets for ", compression.budgets.size(), " layers, the model has ", config.layers));
  return {};
}

}  // namespace quern
