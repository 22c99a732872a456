#pragma once

#include <memory>
#include <string>
#include <vector>

#include "actors/served_model.h"
#include "base/status.h"
#include "model/chat_template/chat_template.h"
#include "model/tokenizer/tokenizer.h"
#include "proto/coordinator.pb.h"

namespace quern {

// A policy and everything around it that turns texts into its tokens and back.
struct ServedPolicy {
  std::shared_ptr<const Policy> policy;
  std::string version;                                // hash of its weights; of pairs both, with a '+' between them
  std::shared_ptr<const Tokenizer> tokenizer;         // null where the directory has none
  std::shared_ptr<const ChatTemplate> chat_template;  // null where the directory has none
  std::vector<int32_t> end_ids;

  int64_t vocab_size() const { return policy->models[0]->transformer.config().vocab_size; }
};

// `precision`: "bf16", "fp32", "fp8" (as a job's), or empty for that of the stored weights (fp16 is computed in fp32).
// `ops` must outlive it.
Result<ServedPolicy> LoadServedPolicy(Ops& ops, const v1::PolicySpec& spec, const std::string& precision);
Result<Recipe> PrecisionFor(const std::string& asked, const std::string& model_directory);

}  // namespace quern
