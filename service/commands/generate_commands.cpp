#include "service/commands/generate_commands.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "actors/engine.h"
#include "base/strings.h"
#include "base/thread_pool.h"
#include "compute/cpu/cpu_ops.h"
#include "learner/loss_head.h"
#include "model/hf/model_directory.h"
#include "model/token_batch.h"
#include "model/tokenizer/tokenizer.h"
#include "service/command.h"
#include "service/evaluate.h"
#include "service/jsonl.h"
#include "service/policies.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kConcurrent = 64;

struct ModelOptions {
  std::string model;
  std::string input;
  std::string precision;  // empty: as the weights are stored
  std::string device = "auto";
  int threads = 0;
};

struct GenerateCommandOptions : ModelOptions {
  std::string prompt;
  std::vector<int32_t> token_ids;
  int64_t max_tokens = 128;
  double temperature = 1, top_p = 1, min_p = 0, repetition_penalty = 1;
  int64_t top_k = 0;
  uint64_t seed = 0;
  int64_t n = 1;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool no_bos = false;
  std::string output = "text";
  bool has_prompt = false;
};

// The precision asked for, else that of the stored weights: bf16 stays bf16, everything else is computed in fp32.
Result<DType> PrecisionFor(const std::string& asked, const std::string& directory) {
  if (asked == "fp32") return DType::kF32;
  if (asked == "bf16") return DType::kBf16;
  QUERN_ASSIGN_OR_RETURN(const ModelReport report, InspectModelDirectory(directory));
  for (const auto& [dtype, count] : report.parameters_by_dtype)
    if (dtype != "BF16" && dtype != "bf16" && count > report.parameters / 2) return DType::kF32;
  return DType::kBf16;
}

struct Prompt {
  std::vector<int32_t> ids;
};

Status CheckIds(const std::vector<int32_t>& ids, int64_t vocabulary) {
  for (const int32_t id : ids)
    if (id < 0 || id >= vocabulary)
      return InvalidArgument(StrCat("token id ", id, " is not below the vocabulary's ", vocabulary));
  return {};
}

Result<std::vector<Prompt>> ReadPrompts(const GenerateCommandOptions& options, const Tokenizer* tokenizer,
                                        int64_t vocabulary) {
  std::vector<Prompt> prompts;
  const auto encode = [&](const std::string& text) -> Result<std::vector<int32_t>> {
    if (tokenizer == nullptr) return InvalidArgument(options.model + ": has no tokenizer; give --token-ids");
    return tokenizer->Encode(text, !options.no_bos);
  };
  if (options.has_prompt) {
    QUERN_ASSIGN_OR_RETURN(auto ids, encode(options.prompt));
    prompts.push_back({std::move(ids)});
  }
  if (!options.token_ids.empty()) prompts.push_back({options.token_ids});
  if (!options.input.empty()) {
    const Status read = ForEachJsonLine(options.input, [&](const nlohmann::json& row) -> Status {
      const auto text = row.contains("prompt") ? row.find("prompt") : row.find("text");
      if (text != row.end() && text->is_string()) {
        QUERN_ASSIGN_OR_RETURN(auto ids, encode(text->get<std::string>()));
        prompts.push_back({std::move(ids)});
        return {};
      }
      Result<std::vector<int32_t>> ids = TokenIdsOf(row);
      if (!ids.ok()) return InvalidArgument("neither \"prompt\" nor \"token_ids\"");
      QUERN_RETURN_IF_ERROR(CheckIds(*ids, vocabulary));
      prompts.push_back({*std::move(ids)});
      return {};
    });
    QUERN_RETURN_IF_ERROR(read);
  }
  for (const Prompt& prompt : prompts) {
    if (prompt.ids.empty()) return InvalidArgument("the prompt has no token; give at least one");
    QUERN_RETURN_IF_ERROR(CheckIds(prompt.ids, vocabulary));
  }
  return prompts;
}

class Generator {
 public:
  Generator(const GenerateCommandOptions& options, Engine& engine, std::shared_ptr<const Tokenizer> tokenizer,
            std::vector<int32_t> end_ids)
      : options_(options), engine_(engine), tokenizer_(std::move(tokenizer)), end_ids_(std::move(end_ids)) {}

  Status Run(const std::vector<Prompt>& prompts, const SamplingOptions& sampling) {
    const size_t total = prompts.size() * static_cast<size_t>(options_.n);
    size_t started = 0;
    while (printed_ < total) {
      while (started < total && active_.size() < kConcurrent) Start(started++, prompts, sampling);
      QUERN_ASSIGN_OR_RETURN(std::vector<Completion> finished, engine_.Step());
      for (Completion& completion : finished) {
        const size_t index = active_.at(completion.sequence);
        active_.erase(completion.sequence);
        engine_.Close(completion.sequence);
        done_[index] = std::move(completion);
      }
      for (auto it = done_.find(printed_); it != done_.end(); it = done_.find(printed_)) {
        Print(printed_, prompts[printed_ / static_cast<size_t>(options_.n)], it->second);
        done_.erase(it);
        ++printed_;
      }
    }
    return {};
  }

 private:
  uint64_t SeedOf(size_t index) const { return options_.seed + index % static_cast<size_t>(options_.n); }

  // The continuation's text; what a SentencePiece tokenizer strips at the start of a text is kept.
  std::string TextOf(const std::vector<int32_t>& prompt, std::span<const int32_t> tokens) const {
    if (tokenizer_ == nullptr) return {};
    std::vector<int32_t> all = prompt;
    all.insert(all.end(), tokens.begin(), tokens.end());
    const std::string before = tokenizer_->Decode(prompt, true);
    const std::string whole = tokenizer_->Decode(all, true);
    return whole.starts_with(before) ? whole.substr(before.size()) : tokenizer_->Decode(tokens, true);
  }

  void Start(size_t index, const std::vector<Prompt>& prompts, const SamplingOptions& sampling) {
    const Prompt& prompt = prompts[index / static_cast<size_t>(options_.n)];
    GenerateOptions generate;
    generate.max_new_tokens = options_.max_tokens;
    generate.sampling = sampling;
    generate.seed = SeedOf(index);
    if (!options_.ignore_eos) generate.stop_ids = end_ids_;
    if (!options_.stop.empty()) {
      generate.stop = [this, &prompt](std::span<const int32_t> tokens) {
        const std::string text = TextOf(prompt.ids, tokens);
        return std::any_of(options_.stop.begin(), options_.stop.end(),
                           [&](const std::string& stop) { return text.find(stop) != std::string::npos; });
      };
    }
    const int64_t sequence = engine_.Open();
    engine_.Extend(sequence, prompt.ids);
    engine_.Generate(sequence, std::move(generate));
    active_[sequence] = index;
  }

  void Print(size_t index, const Prompt& prompt, const Completion& completion) const {
    std::string text = TextOf(prompt.ids, completion.tokens);
    size_t cut = std::string::npos;
    for (const std::string& stop : options_.stop) cut = std::min(cut, text.find(stop));
    if (cut != std::string::npos) text.resize(cut);
    if (options_.output == "text") {
      const std::string before = tokenizer_ == nullptr ? std::string() : tokenizer_->Decode(prompt.ids, true);
      std::printf("%s%s\n", before.c_str(), text.c_str());
    } else {
      Json log_probs = Json::array();
      for (const float value : completion.log_probs) log_probs.push_back(NineDigits(value));
      const Json json = {{"index", index},
                         {"prompt_token_ids", prompt.ids},
                         {"token_ids", completion.tokens},
                         {"text", text},
                         {"logprobs", log_probs},
                         {"finish_reason", completion.finish_reason == FinishReason::kStop ? "stop" : "length"},
                         {"seed", SeedOf(index)}};
      std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    }
    std::fflush(stdout);
  }

  const GenerateCommandOptions& options_;
  Engine& engine_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<int32_t> end_ids_;
  std::map<int64_t, size_t> active_;  // sequence -> index
  std::map<size_t, Completion> done_;
  size_t printed_ = 0;
};

Result<int> Generate(const GenerateCommandOptions& options) {
  QUERN_ASSIGN_OR_RETURN(v1::PolicySpec spec, LoadPolicyDirectory(options.model));
  const std::string& directory = spec.weights(0).path();
  QUERN_RETURN_IF_ERROR(CheckSupported(directory));
  QUERN_ASSIGN_OR_RETURN(const DType precision, PrecisionFor(options.precision, directory));
  ThreadPool pool(options.threads);
  const std::unique_ptr<Ops> ops = NewCpuOps(&pool);
  QUERN_ASSIGN_OR_RETURN(auto policy, LoadPolicy(*ops, spec, precision));
  std::shared_ptr<const Tokenizer> tokenizer;
  if (Result<std::shared_ptr<const Tokenizer>> loaded = Tokenizer::Load(directory); loaded.ok()) {
    tokenizer = *loaded;
  } else if (options.token_ids.empty()) {
    return loaded.status();
  }
  const int64_t vocabulary = policy->models[0]->transformer.config().vocab_size;
  QUERN_ASSIGN_OR_RETURN(const std::vector<Prompt> prompts, ReadPrompts(options, tokenizer.get(), vocabulary));
  std::vector<int32_t> end_ids;
  if (const auto config = LoadGenerationConfig(directory); config.ok()) end_ids = config->eos_token_ids;
  Engine engine(*ops, {});
  engine.SetPolicy(std::move(policy));
  for (const Prompt& prompt : prompts) {
    if (static_cast<int64_t>(prompt.ids.size()) >= engine.max_positions())
      return InvalidArgument(StrCat("a prompt of ", prompt.ids.size(), " tokens leaves no room in the model's ",
                                    engine.max_positions(), " positions"));
  }
  SamplingOptions sampling;
  sampling.temperature = static_cast<float>(options.temperature);
  sampling.top_k = static_cast<int32_t>(options.top_k);
  sampling.top_p = static_cast<float>(options.top_p);
  sampling.min_p = static_cast<float>(options.min_p);
  sampling.repetition_penalty = static_cast<float>(options.repetition_penalty);
  QUERN_RETURN_IF_ERROR(Generator(options, engine, tokenizer, std::move(end_ids)).Run(prompts, sampling));
  return kExitOk;
}

Result<int> Score(const ModelOptions& options) {
  QUERN_RETURN_IF_ERROR(CheckSupported(options.model));
  QUERN_ASSIGN_OR_RETURN(const DType precision, PrecisionFor(options.precision, options.model));
  ThreadPool pool(options.threads);
  const std::unique_ptr<Ops> ops = NewCpuOps(&pool);
  QUERN_ASSIGN_OR_RETURN(const auto model, LoadServedModel(*ops, options.model, precision));
  const Result<std::shared_ptr<const Tokenizer>> tokenizer = Tokenizer::Load(options.model);
  const LossHead head(*ops, model->transformer);
  const ModelConfig& config = model->transformer.config();
  Arena arena;
  const Status read = ForEachJsonLine(options.input, [&](const nlohmann::json& row) -> Status {
    std::vector<int32_t> ids;
    if (const auto text = row.find("text"); text != row.end() && text->is_string()) {
      if (!tokenizer.ok()) return tokenizer.status();
      ids = (*tokenizer)->Encode(text->get<std::string>(), true);
    } else {
      Result<std::vector<int32_t>> given = TokenIdsOf(row);
      if (!given.ok()) return InvalidArgument("neither \"text\" nor \"token_ids\"");
      ids = *std::move(given);
    }
    QUERN_RETURN_IF_ERROR(CheckIds(ids, config.vocab_size));
    const auto count = static_cast<int64_t>(ids.size());
    if (count > model->transformer.max_positions())
      return InvalidArgument(
          StrCat(count, " tokens do not fit the model's ", model->transformer.max_positions(), " positions"));
    Json log_probs = Json::array();
    double nll = 0;
    if (count > 0) log_probs.push_back(nullptr);
    if (count > 1) {
      const Arena::Scope scope(arena);
      TokenBatch batch;
      batch.Add(ids.data(), count, 0, nullptr);
      std::vector<void*> page_table;
      const KvView kv = MakeTrainingKv(model->transformer.kv_layout(), batch, arena, page_table);
      const TensorView hidden = arena.New(precision, count, config.hidden_size);
      model->transformer.Forward(model->weights, batch, kv, arena, hidden);
      std::vector<LossRow> rows(static_cast<size_t>(count - 1));
      for (size_t i = 0; i < rows.size(); ++i) rows[i] = {.row = static_cast<int64_t>(i), .target = ids[i + 1]};
      for (const float value : head.Score(model->weights, hidden, rows, arena).log_probs) {
        log_probs.push_back(NineDigits(value));
        nll -= value;
      }
    }
    const Json json = {{"token_ids", ids}, {"logprobs", log_probs}, {"nll", NineDigits(nll)}};
    std::printf("%s\n", json.dump().c_str());
    return {};
  });
  QUERN_RETURN_IF_ERROR(read);
  return kExitOk;
}

void AddModelOptions(CLI::App* command, ModelOptions& options) {
  command->add_option("--model", options.model, "model directory (Hugging Face), or an exported policy")->required();
  command->add_option("--precision", options.precision, "bf16 or fp32; default: as the weights are stored")
      ->check(CLI::IsMember({"bf16", "fp32"}));
  command->add_option("--device", options.device, "auto or cpu")->check(CLI::IsMember({"auto", "cpu"}));
  command->add_option("--threads", options.threads, "default: all cores")->check(CLI::Range(0, 1024));
}

}  // namespace

void AddGenerateCommands(CommandSet& commands) {
  auto generate = std::make_shared<GenerateCommandOptions>();
  CLI::App* command = commands.app().add_subcommand("generate", "sample continuations");
  AddModelOptions(command, *generate);
  CLI::Option* prompt = command->add_option("--prompt", generate->prompt, "text to continue");
  CLI::Option* input = command->add_option("--input", generate->input, "JSON Lines of {\"prompt\"} or {\"token_ids\"}");
  CLI::Option* ids = command->add_option("--token-ids", generate->token_ids, "1,2,3")->delimiter(',');
  prompt->excludes(input)->excludes(ids);
  input->excludes(ids);
  command->add_option("--max-tokens", generate->max_tokens, "new tokens, at most")->check(CLI::Range(1, 1 << 30));
  command->add_option("--temperature", generate->temperature, "0: the most likely token")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--top-k", generate->top_k, "0: off")->check(CLI::NonNegativeNumber);
  command->add_option("--top-p", generate->top_p, "1: off")->check(CLI::Range(0.0, 1.0));
  command->add_option("--min-p", generate->min_p, "0: off")->check(CLI::Range(0.0, 1.0));
  command->add_option("--repetition-penalty", generate->repetition_penalty, "1: off")->check(CLI::PositiveNumber);
  command->add_option("--seed", generate->seed, "completion i of a prompt uses seed + i");
  command->add_option("--n", generate->n, "completions of each prompt")->check(CLI::Range(1, 1 << 20));
  command->add_option("--stop", generate->stop, "end at this text, which is not printed; may be repeated")->take_all();
  command->add_flag("--ignore-eos", generate->ignore_eos, "go on after an end-of-text token");
  command->add_flag("--no-bos", generate->no_bos, "add no special tokens to the prompt");
  command->add_option("-o,--output", generate->output, "text or json")->check(CLI::IsMember({"text", "json"}));
  commands.SetBody(command, [generate, prompt]() -> Result<int> {
    generate->has_prompt = prompt->count() > 0;
    if (!generate->has_prompt && generate->input.empty() && generate->token_ids.empty())
      return UsageError("generate: one of --prompt, --input and --token-ids is needed");
    return Generate(*generate);
  });

  auto score = std::make_shared<ModelOptions>();
  command = commands.app().add_subcommand("score", "log-probabilities of given texts");
  AddModelOptions(command, *score);
  command->add_option("--input", score->input, "JSON Lines of {\"text\"} or {\"token_ids\"}; - for standard input")
      ->required();
  commands.SetBody(command, [score]() -> Result<int> { return Score(*score); });
}

}  // namespace quern
