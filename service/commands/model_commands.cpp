#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/strings.h"
#include "compute/dtype.h"
#include "model/hf/model_directory.h"
#include "model/parameters.h"
#include "model/tokenizer/tokenizer.h"
#include "service/command.h"
#include "service/commands/generate_commands.h"
#include "service/jsonl.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

struct TokenizeOptions {
  std::string model;
  std::string input;
  bool no_special = false;
};

struct RetrofitOptions {
  std::string model, to;
};

struct InitOptions {
  std::string config;
  std::string tokenizer;
  std::string to;
  uint64_t seed = 0;
};

void PrintLine(const Json& json) {
  std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

Result<int> TokenizeFile(const TokenizeOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(options.model));
  QUERN_RETURN_IF_ERROR(ForEachJsonLine(options.input, [&](const nlohmann::json& row) -> Status {
    const auto text = row.find("text");
    if (text == row.end() || !text->is_string()) return InvalidArgument("no \"text\"");
    const std::vector<int32_t> ids = tokenizer->Encode(text->get<std::string>(), !options.no_special);
    Json tokens = Json::array();
    for (const int32_t id : ids) tokens.push_back(std::string(tokenizer->TokenText(id)));
    PrintLine({{"token_ids", ids}, {"tokens", tokens}});
    return {};
  }));
  return kExitOk;
}

Result<int> DetokenizeFile(const TokenizeOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(options.model));
  QUERN_RETURN_IF_ERROR(ForEachJsonLine(options.input, [&](const nlohmann::json& row) -> Status {
    QUERN_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, TokenIdsOf(row));
    PrintLine({{"text", tokenizer->Decode(ids, options.no_special)}});
    return {};
  }));
  return kExitOk;
}

Result<int> Inspect(const std::string& model, const std::string& output) {
  QUERN_ASSIGN_OR_RETURN(const ModelReport report, InspectModelDirectory(model));
  if (output == "json") {
    Json json = {{"family", report.family},
                 {"parameters", report.parameters},
                 {"bytes", report.bytes},
                 {"files", report.files},
                 {"parameters_by_dtype", report.parameters_by_dtype},
                 {"unsupported", report.unsupported}};
    json["tensors"] = Json::array();
    for (const TensorInfo& tensor : report.tensors)
      json["tensors"].push_back({{"name", tensor.name}, {"dtype", tensor.dtype}, {"shape", tensor.shape}});
    PrintLine(json);
    return report.unsupported.empty() ? kExitOk : kExitError;
  }
  std::printf("family      %s\n", report.family.c_str());
  std::printf("parameters  %lld (%s in %zu files)\n", static_cast<long long>(report.parameters),
              HumanBytes(static_cast<double>(report.bytes)).c_str(), report.files.size());
  for (const auto& [dtype, count] : report.parameters_by_dtype)
    std::printf("            %-6s %lld\n", dtype.c_str(), static_cast<long long>(count));
  if (report.config) {
    const ModelConfig& c = *report.config;
    std::printf(
        "shape       vocabulary %lld, hidden %lld, layers %lld, heads %lld (%lld key/value) of %lld, mlp %lld, "
        "positions %lld\n",
        static_cast<long long>(c.vocab_size), static_cast<long long>(c.hidden_size), static_cast<long long>(c.layers),
        static_cast<long long>(c.heads), static_cast<long long>(c.kv_heads), static_cast<long long>(c.head_dim),
        static_cast<long long>(c.intermediate_size), static_cast<long long>(c.max_positions));
  }
  for (const TensorInfo& tensor : report.tensors) {
    std::vector<std::string> shape;
    for (const int64_t size : tensor.shape) shape.push_back(std::to_string(size));
    std::printf("  %-60s %-5s [%s]\n", tensor.name.c_str(), tensor.dtype.c_str(), StrJoin(shape, ", ").c_str());
  }
  for (const std::string& reason : report.unsupported) std::printf("unsupported: %s\n", reason.c_str());
  if (report.unsupported.empty()) std::printf("Quern can run and train this model\n");
  return report.unsupported.empty() ? kExitOk : kExitError;
}

Result<int> Init(const InitOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.config));
  QUERN_ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(text, options.config));
  QUERN_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(options.tokenizer));
  if (tokenizer->vocab_size() > config.vocab_size)
    return InvalidArgument(StrCat(options.config, ": vocab_size ", config.vocab_size,
                                  " is smaller than the tokenizer's ", tokenizer->vocab_size()));
  if (PathExists(JoinPath(options.to, "config.json")))
    return AlreadyExists(options.to + ": holds a model already; choose another --to");
  QUERN_RETURN_IF_ERROR(MakeDirectories(options.to));
  Parameters parameters(config);
  parameters.Initialize(config, options.seed);
  // The tokenizer's companion files lie beside it.
  std::string source = options.tokenizer;
  if (const size_t slash = source.rfind('/'); source.ends_with(".json"))
    source = slash == std::string::npos ? "." : source.substr(0, slash);
  QUERN_RETURN_IF_ERROR(SaveModelDirectory(options.to, config, parameters.Source(),
                                           {.dtype = DType::kF32, .source_dir = source, .generation = std::nullopt}));
  std::printf("%s\n", options.to.c_str());
  return kExitOk;
}

}  // namespace

Result<std::vector<int32_t>> TokenIdsOf(const nlohmann::json& row) {
  const auto ids = row.find("token_ids");
  if (ids == row.end() || !ids->is_array()) return InvalidArgument("no \"token_ids\"");
  std::vector<int32_t> out;
  for (const nlohmann::json& id : *ids) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX)
      return InvalidArgument("\"token_ids\" must be whole numbers, 0 or more");
    out.push_back(id.get<int32_t>());
  }
  return out;
}

void AddModelCommands(CommandSet& commands) {
  AddGenerateCommands(commands);
  AddScoreCommands(commands);
  CLI::App& app = commands.app();

  auto tokenize = std::make_shared<TokenizeOptions>();
  CLI::App* command = app.add_subcommand("tokenize", "texts to token ids, as the model's tokenizer.json says");
  command->add_option("--model", tokenize->model, "model directory, or one with a tokenizer alone")->required();
  command->add_option("--input", tokenize->input, "JSON Lines of {\"text\"}; - for standard input")->required();
  command->add_flag("--no-special", tokenize->no_special, "add no special tokens");
  commands.SetBody(command, [tokenize]() -> Result<int> { return TokenizeFile(*tokenize); });

  auto detokenize = std::make_shared<TokenizeOptions>();
  command = app.add_subcommand("detokenize", "token ids to texts");
  command->add_option("--model", detokenize->model, "model directory, or one with a tokenizer alone")->required();
  command->add_option("--input", detokenize->input, "JSON Lines of {\"token_ids\"}; - for standard input")->required();
  command->add_flag("--no-special", detokenize->no_special, "leave special tokens out");
  commands.SetBody(command, [detokenize]() -> Result<int> { return DetokenizeFile(*detokenize); });

  auto model = std::make_shared<std::string>();
  auto output = std::make_shared<std::string>("text");
  command = app.add_subcommand("inspect", "what a model directory holds, and what of it is not supported");
  command->add_option("--model", *model, "model directory")->required();
  command->add_option("-o,--output", *output, "text or json")->check(CLI::IsMember({"text", "json"}));
  commands.SetBody(command, [model, output]() -> Result<int> { return Inspect(*model, *output); });

  auto init = std::make_shared<InitOptions>();
  command = app.add_subcommand("init", "a randomly initialised model");
  command->add_option("--config", init->config, "config.json of the architecture")->required();
  command->add_option("--tokenizer", init->tokenizer, "tokenizer.json, or a directory that holds it")->required();
  command->add_option("--seed", init->seed, "of the weights");
  command->add_option("--to", init->to, "directory to write")->required();
  commands.SetBody(command, [init]() -> Result<int> { return Init(*init); });

  auto retrofit = std::make_shared<RetrofitOptions>();
  command = app.add_subcommand("retrofit", "selective attention for a model that was trained without: no change yet");
  command->add_option("--model", retrofit->model, "model directory")->required();
  command->add_option("--to", retrofit->to, "directory to write")->required();
  commands.SetBody(command, [retrofit]() -> Result<int> {
    if (PathExists(JoinPath(retrofit->to, "config.json")))
      return AlreadyExists(retrofit->to + ": holds a model already; choose another --to");
    QUERN_RETURN_IF_ERROR(CheckSupported(retrofit->model));
    QUERN_RETURN_IF_ERROR(AddSelectiveAttention(retrofit->model, retrofit->to));
    std::printf("%s\n", retrofit->to.c_str());
    return kExitOk;
  });
}

}  // namespace quern
