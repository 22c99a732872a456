#include "model/chat_template/chat_template.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/strings.h"
#include "model/hf/json_reader.h"

namespace quern {

using OrderedJson = nlohmann::ordered_json;

struct ChatTemplate::Impl {
  struct Named {
    std::string name;
    std::shared_ptr<const jinja::Template> parsed;
  };
  std::string origin;
  std::vector<Named> templates;
  OrderedJson special_tokens = OrderedJson::object();

  Status Add(const std::string& name, std::string_view text, const std::string& template_origin) {
    QUERN_ASSIGN_OR_RETURN(auto parsed, jinja::Template::Parse(text, template_origin));
    std::erase_if(templates, [&](const Named& item) { return item.name == name; });
    templates.push_back({name, std::move(parsed)});
    return {};
  }

  const jinja::Template* Find(std::string_view name) const {
    for (const Named& item : templates)
      if (item.name == name) return item.parsed.get();
    return nullptr;
  }
};

namespace {

// {"bos_token": "<s>"} or {"bos_token": {"content": "<s>", ...}}: every member of that kind is a variable.
void ReadSpecialTokens(const Json& json, OrderedJson* tokens) {
  if (!json.is_object()) return;
  for (const auto& [key, value] : json.items()) {
    const Json& text = value.is_object() ? JsonField(value, "content") : value;
    if (key.ends_with("_token") && text.is_string()) (*tokens)[key] = text.get<std::string>();
    if (key == "additional_special_tokens" && value.is_array()) {
      OrderedJson list = OrderedJson::array();
      for (const Json& item : value) {
        const Json& content = item.is_object() ? JsonField(item, "content") : item;
        if (content.is_string()) list.push_back(content.get<std::string>());
      }
      (*tokens)[key] = std::move(list);
    }
  }
}

// "chat_template" of a JSON file: a text, or a list of {"name", "template"}, or an object of names.
template <typename AddTemplate>
Status ReadTemplates(const Json& json, const std::string& path, AddTemplate add) {
  const Json& value = JsonField(json, "chat_template");
  if (value.is_null()) return {};
  if (value.is_string()) return add("default", value.get<std::string>(), path + " (chat_template)");
  const auto wrong = [&] {
    return InvalidArgument(StrCat(
        path, ": \"chat_template\" must be a text or a list of {\"name\", \"template\"}, not ", JsonExcerpt(value)));
  };
  if (!value.is_array() && !value.is_object()) return wrong();
  for (const auto& [key, item] : value.items()) {
    const Json& name = value.is_array() ? JsonField(item, "name") : Json(key);
    const Json& text = value.is_array() ? JsonField(item, "template") : item;
    if (!name.is_string() || !text.is_string()) return wrong();
    QUERN_RETURN_IF_ERROR(add(name.get<std::string>(), text.get<std::string>(),
                              StrCat(path, " (chat_template ", name.get<std::string>(), ")")));
  }
  return {};
}

OrderedJson ToJson(std::span<const ChatMessage> messages) {
  OrderedJson list = OrderedJson::array();
  for (const ChatMessage& message : messages) list.push_back({{"role", message.role}, {"content", message.content}});
  return list;
}

}  // namespace

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;

Result<std::shared_ptr<const ChatTemplate>> ChatTemplate::Load(const std::string& model_directory) {
  auto impl = std::make_unique<Impl>();
  impl->origin = model_directory;
  const auto add = [&](const std::string& name, const std::string& text, const std::string& origin) {
    return impl->Add(name, text, origin);
  };
  Json config;
  const std::string config_path = JoinPath(model_directory, "tokenizer_config.json");
  const std::string map_path = JoinPath(model_directory, "special_tokens_map.json");
  if (PathExists(map_path)) {
    QUERN_ASSIGN_OR_RETURN(const Json map, ReadJsonFile(map_path));
    ReadSpecialTokens(map, &impl->special_tokens);
  }
  if (PathExists(config_path)) {
    QUERN_ASSIGN_OR_RETURN(config, ReadJsonFile(config_path));
    ReadSpecialTokens(config, &impl->special_tokens);
  }
  const std::string text_path = JoinPath(model_directory, "chat_template.jinja");
  if (PathExists(text_path)) {
    QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(text_path));
    QUERN_RETURN_IF_ERROR(add("default", text, text_path));
    const std::string folder = JoinPath(model_directory, "additional_chat_templates");
    if (PathExists(folder)) {
      QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> files, ListDirectory(folder));
      for (const std::string& file : files) {
        if (!file.ends_with(".jinja")) continue;
        QUERN_ASSIGN_OR_RETURN(const std::string named, ReadFile(JoinPath(folder, file)));
        QUERN_RETURN_IF_ERROR(add(file.substr(0, file.size() - 6), named, JoinPath(folder, file)));
      }
    }
  }
  if (impl->templates.empty()) QUERN_RETURN_IF_ERROR(OneLine(ReadTemplates(config, config_path, add)));
  const std::string json_path = JoinPath(model_directory, "chat_template.json");
  if (impl->templates.empty() && PathExists(json_path)) {
    QUERN_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(json_path));
    QUERN_RETURN_IF_ERROR(OneLine(ReadTemplates(json, json_path, add)));
  }
  if (impl->templates.empty())
    return NotFound(
        model_directory +
        ": no chat template; it is looked for in chat_template.jinja, tokenizer_config.json and chat_template.json");
  return std::shared_ptr<const ChatTemplate>(new ChatTemplate(std::move(impl)));
}

Result<std::shared_ptr<const ChatTemplate>> ChatTemplate::Parse(std::string_view text, const std::string& origin,
                                                                const OrderedJson& special_tokens) {
  auto impl = std::make_unique<Impl>();
  impl->origin = origin;
  if (special_tokens.is_object()) impl->special_tokens = special_tokens;
  QUERN_RETURN_IF_ERROR(impl->Add("default", text, origin));
  return std::shared_ptr<const ChatTemplate>(new ChatTemplate(std::move(impl)));
}

Result<std::string> ChatTemplate::Render(const OrderedJson& messages, const OrderedJson& tools,
                                         const OrderedJson& extra, const Options& options) const {
  const jinja::Template* parsed = tools.is_null() ? nullptr : impl_->Find("tool_use");
  if (parsed == nullptr) parsed = impl_->Find("default");
  if (parsed == nullptr) {
    std::vector<std::string> names;
    for (const auto& item : impl_->templates) names.push_back(item.name);
    return InvalidArgument(
        OneLine(StrCat(impl_->origin, ": no chat template with the name \"default\", only ", StrJoin(names, ", "))));
  }
  OrderedJson context = impl_->special_tokens;
  context["documents"] = nullptr;
  context["add_generation_prompt"] = options.add_generation_prompt;
  if (extra.is_object())
    for (const auto& [key, value] : extra.items()) context[key] = value;
  context["messages"] = messages;
  context["tools"] = tools;
  QUERN_ASSIGN_OR_RETURN(jinja::Rendering rendering,
                         parsed->Render(context, {.dialect = options.dialect, .limits = {}, .now = options.now}));
  return std::move(rendering.text);
}

Result<std::string> ChatTemplate::Render(std::span<const ChatMessage> messages, bool add_generation_prompt) const {
  return Render(ToJson(messages), nullptr, nullptr, {.add_generation_prompt = add_generation_prompt});
}

}  // namespace quern
