#include "model/chat_template/jinja.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "model/chat_template/evaluator.h"
#include "model/chat_template/parser.h"
#include "model/hf/json_reader.h"
#include "model/tokenizer/unicode.h"

namespace quern::jinja {

struct Template::Impl {
  std::string origin;
  Body body;
};

namespace {

Status ToStatus(const Failure& failure, const std::string& origin, int line) {
  return OneLine(
      Status(failure.code, StrCat(origin, ":", failure.line != 0 ? failure.line : line, ": ", failure.message)));
}

constexpr int kMaxJsonDepth = 150;

Value FromJson(Evaluator& evaluator, const nlohmann::ordered_json& json, int depth) {
  if (depth > kMaxJsonDepth) FailLimit(StrCat("JSON nested deeper than ", kMaxJsonDepth));
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::boolean: return json.get<bool>();
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return json.get<double>();
      return json.get<int64_t>();
    case nlohmann::ordered_json::value_t::number_integer: return json.get<int64_t>();
    case nlohmann::ordered_json::value_t::number_float: return json.get<double>();
    case nlohmann::ordered_json::value_t::string: {
      std::string storage;
      return evaluator.Text(ValidUtf8(json.get_ref<const std::string&>(), &storage));
    }
    case nlohmann::ordered_json::value_t::array: {
      std::vector<Value> items;
      for (const auto& item : json) items.push_back(FromJson(evaluator, item, depth + 1));
      return evaluator.MakeList(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      std::vector<std::pair<Value, Value>> items;
      for (const auto& [key, item] : json.items())
        items.emplace_back(FromJson(evaluator, key, depth), FromJson(evaluator, item, depth + 1));
      return evaluator.MakeDict(std::move(items));
    }
    default: return None{};
  }
}

}  // namespace

Template::Template(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Template::~Template() = default;

Result<std::shared_ptr<const Template>> Template::Parse(std::string_view text, const std::string& origin,
                                                        const Limits& limits) {
  if (text.size() > limits.template_bytes)
    return ResourceExhausted(OneLine(
        StrCat(origin, ": a template of ", text.size(), " bytes; at most ", limits.template_bytes, " are read")));
  if (!IsValidUtf8(text)) return InvalidArgument(OneLine(origin + ": the template is not valid UTF-8"));
  auto impl = std::make_unique<Impl>();
  impl->origin = origin;
  try {
    impl->body = ParseTemplate(text);
  } catch (const Failure& failure) {
    return ToStatus(failure, origin, 1);
  }
  return std::shared_ptr<const Template>(new Template(std::move(impl)));
}

Result<Rendering> Template::Render(const nlohmann::ordered_json& context, const RenderOptions& options) const {
  Evaluator evaluator(options);
  try {
    for (const auto& [name, value] : context.items()) evaluator.SetVariable(name, FromJson(evaluator, value, 0));
    return evaluator.Run(impl_->body);
  } catch (const Failure& failure) {
    return ToStatus(failure, impl_->origin, evaluator.line());
  }
}

}  // namespace quern::jinja
