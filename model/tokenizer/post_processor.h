#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "model/hf/json_reader.h"

namespace quern {

// Ids put around an encoded text (TemplateProcessing, BertProcessing, RobertaProcessing, sequences of them); ByteLevel
// adds none.
class PostProcessor {
 public:
  static Result<PostProcessor> FromJson(const Json& json, const std::string& where);
  void Apply(std::vector<int32_t>* ids) const;

 private:
  struct Item {
    bool text = false;  // the text so far; else `ids`
    std::vector<int32_t> ids;
  };
  using Template = std::vector<Item>;
  static Status Append(const Json& json, const std::string& where, std::vector<Template>* templates);

  std::vector<Template> templates_;  // one after the other
};

}  // namespace quern
