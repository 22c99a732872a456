#include "model/tokenizer/post_processor.h"

#include "base/strings.h"
#include "model/tokenizer/vocabulary.h"

namespace quern {
namespace {

Result<int32_t> TokenIdOf(const Json& json, const std::string& where) {
  if (!json.is_number_integer() || json.get<int64_t>() < 0 || json.get<int64_t>() > Vocabulary::kMaxId)
    return InvalidArgument(StrCat(where, ": ", JsonExcerpt(json), " is not a token id"));
  return json.get<int32_t>();
}

}  // namespace

Result<PostProcessor> PostProcessor::FromJson(const Json& json, const std::string& where) {
  PostProcessor processor;
  QUERN_RETURN_IF_ERROR(Append(json, where, &processor.templates_));
  return processor;
}

Status PostProcessor::Append(const Json& json, const std::string& where, std::vector<Template>* templates) {
  if (json.is_null()) return {};
  QUERN_ASSIGN_OR_RETURN(const std::string type, JsonString(json, "type", "", where));
  if (type == "ByteLevel") return {};
  if (type == "Sequence") {
    const Json& list = JsonField(json, "processors");
    if (!list.is_array()) return InvalidArgument(where + ": Sequence needs a list \"processors\"");
    for (const Json& item : list) {
      if (JsonField(item, "type") == "Sequence")
        return Unimplemented(where + ": a Sequence inside a Sequence is not supported");
      QUERN_RETURN_IF_ERROR(Append(item, where, templates));
    }
    return {};
  }
  Template result;
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    for (const char* key : {"cls", "sep"}) {
      const Json& pair = JsonField(json, key);
      if (!pair.is_array() || pair.size() != 2)
        return InvalidArgument(StrCat(where, ": \"", key, "\" must be [piece, id]"));
      QUERN_ASSIGN_OR_RETURN(const int32_t id, TokenIdOf(pair[1], where));
      if (!result.empty()) result.push_back({true, {}});
      result.push_back({false, {id}});
    }
  } else if (type == "TemplateProcessing") {
    const Json& single = JsonField(json, "single");
    if (!single.is_array()) return InvalidArgument(where + ": TemplateProcessing needs a list \"single\"");
    for (const Json& item : single) {
      if (item.contains("Sequence")) {
        result.push_back({true, {}});
        continue;
      }
      const Json& name = JsonField(JsonField(item, "SpecialToken"), "id");
      if (!name.is_string())
        return InvalidArgument(StrCat(where, ": template item ", JsonExcerpt(item), " is not understood"));
      const Json& ids =
          JsonField(JsonField(JsonField(json, "special_tokens"), name.get_ref<const std::string&>().c_str()), "ids");
      if (!ids.is_array())
        return InvalidArgument(
            StrCat(where, ": special token ", JsonExcerpt(name), " has no ids in \"special_tokens\""));
      result.push_back({false, {}});
      for (const Json& id : ids) {
        QUERN_ASSIGN_OR_RETURN(const int32_t value, TokenIdOf(id, where));
        result.back().ids.push_back(value);
      }
    }
  } else {
    return Unimplemented(StrCat(where, ": post_processor \"", type, "\" is not supported"));
  }
  templates->push_back(std::move(result));
  return {};
}

void PostProcessor::Apply(std::vector<int32_t>* ids) const {
  for (const Template& current : templates_) {
    std::vector<int32_t> out;
    for (const Item& item : current) {
      const std::vector<int32_t>& part = item.text ? *ids : item.ids;
      out.insert(out.end(), part.begin(), part.end());
    }
    *ids = std::move(out);
  }
}

}  // namespace quern
