#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/strings.h"
#include "model/chat_template/chat_template.h"
#include "model/tokenizer/tokenizer.h"
#include "service/command.h"
#include "service/jsonl.h"

namespace quern {
namespace {

using Json = nlohmann::ordered_json;

struct ChatOptions {
  std::string model;
  std::string input;
  std::string dialect = "jinja2";
  bool tools = false;
  bool add_generation_prompt = false;
};

// A row's "messages" and "tools" are the template's arguments, its other members are variables.
Result<std::string> RenderRow(const ChatTemplate& chat_template, const Json& row, const ChatOptions& options) {
  const auto messages = row.find("messages");
  if (messages == row.end() || !messages->is_array()) return InvalidArgument("no list \"messages\"");
  const auto tools = row.find("tools");
  if (tools != row.end() && !tools->is_array() && !tools->is_null()) return InvalidArgument("\"tools\" must be a list");
  Json extra = row;
  extra.erase("messages");
  extra.erase("tools");
  return chat_template.Render(*messages, options.tools && tools != row.end() ? *tools : Json(nullptr), extra,
                              {.add_generation_prompt = options.add_generation_prompt,
                               .dialect = options.dialect == "json" ? jinja::Dialect::kJson : jinja::Dialect::kJinja2});
}

Result<int> Chat(const ChatOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const auto chat_template, ChatTemplate::Load(options.model));
  const auto tokenizer = Tokenizer::Load(options.model);
  if (!tokenizer.ok() && tokenizer.status().code() != StatusCode::kNotFound) return tokenizer.status();
  if (!tokenizer.ok()) LogWarning(tokenizer.status().message() + "; token_ids will be null");
  bool warned = false;
  QUERN_RETURN_IF_ERROR(ForEachOrderedJsonLine(options.input, [&](const Json& row) -> Status {
    if (!options.tools && row.contains("tools") && !row["tools"].is_null() && !std::exchange(warned, true))
      LogWarning(options.input + ": rows have \"tools\", which are left out without --tools");
    QUERN_ASSIGN_OR_RETURN(const std::string text, RenderRow(*chat_template, row, options));
    Json out = {{"text", text}, {"token_ids", nullptr}};
    if (tokenizer.ok()) out["token_ids"] = (*tokenizer)->Encode(text, false);
    std::printf("%s\n", out.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    return {};
  }));
  return kExitOk;
}

}  // namespace

void AddChatCommand(CommandSet& commands) {
  auto options = std::make_shared<ChatOptions>();
  CLI::App* command =
      commands.app().add_subcommand("chat", "conversations to texts and token ids, as the model's chat template says");
  command->add_option("--model", options->model, "model directory, or one with a tokenizer alone")->required();
  command->add_option("--input", options->input, "JSON Lines of {\"messages\"}; - for standard input")->required();
  command->add_flag("--tools", options->tools, "give the template the rows' \"tools\"");
  command->add_flag("--add-generation-prompt", options->add_generation_prompt,
                    "end with what begins the assistant's turn");
  command->add_option("--dialect", options->dialect, "how values print: jinja2 (True, ['a']) or json (true, [\"a\"])")
      ->check(CLI::IsMember({"jinja2", "json"}));
  commands.SetBody(command, [options]() -> Result<int> { return Chat(*options); });
}

}  // namespace quern
