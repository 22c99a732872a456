#include "service/commands/generate_commands.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "actors/engine.h"
#include "base/deadline.h"
#include "base/strings.h"
#include "base/thread_pool.h"
#include "compute/device.h"
#include "model/tokenizer/tokenizer.h"
#include "service/command.h"
#include "service/commands/compression_options.h"
#include "service/help.h"
#include "service/jsonl.h"
#include "service/policies.h"
#include "service/served_policy.h"
#include "service/text_stream.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kConcurrent = 256;

struct GenerateCommandOptions : ModelOptions {
  std::string prompt;
  std::vector<int32_t> token_ids;
  int64_t max_tokens = 128;
  double temperature = 1, top_p = 1, min_p = 0, repetition_penalty = 1;
  int64_t top_k = 0;
  uint64_t seed = 0;
  int64_t n = 1;
  int32_t top_log_probs = 0;
  int64_t kv_cache_mib = 2048;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool no_bos = false;
  CompressionOptions compression;
  std::string output = "text";
  bool has_prompt = false;
};

struct Prompt {
  std::vector<int32_t> ids;
};

// A conversation up to the assistant's turn; the row's other members are variables of the template.
Result<std::vector<int32_t>> EncodeConversation(const ServedPolicy& served, const Json& row) {
  if (served.chat_template == nullptr) return InvalidArgument("\"messages\", but the model has no chat template");
  Json extra = row;
  extra.erase("messages");
  extra.erase("tools");
  const auto tools = row.find("tools");
  QUERN_ASSIGN_OR_RETURN(const std::string text,
                         served.chat_template->Render(row["messages"], tools == row.end() ? Json(nullptr) : *tools,
                                                      extra, {.add_generation_prompt = true}));
  return served.tokenizer->Encode(text, false);
}

Result<std::vector<Prompt>> ReadPrompts(const GenerateCommandOptions& options, const ServedPolicy& served) {
  std::vector<Prompt> prompts;
  const bool texts = served.tokenizer != nullptr;
  const Status no_tokenizer = InvalidArgument(options.model + ": has no tokenizer; give token ids");
  const auto encode = [&](const std::string& text) { return served.tokenizer->Encode(text, !options.no_bos); };
  if (options.has_prompt) {
    if (!texts) return no_tokenizer;
    prompts.push_back({encode(options.prompt)});
  }
  if (!options.token_ids.empty()) prompts.push_back({options.token_ids});
  if (!options.input.empty()) {
    const Status read = ForEachOrderedJsonLine(options.input, [&](const Json& row) -> Status {
      const auto text = row.contains("prompt") ? row.find("prompt") : row.find("text");
      if (text != row.end() && text->is_string()) {
        if (!texts) return no_tokenizer;
        prompts.push_back({encode(text->get<std::string>())});
      } else if (row.contains("messages")) {
        if (!texts) return no_tokenizer;
        QUERN_ASSIGN_OR_RETURN(auto ids, EncodeConversation(served, row));
        prompts.push_back({std::move(ids)});
      } else {
        Result<std::vector<int32_t>> ids = TokenIdsOf(row);
        if (!ids.ok()) return InvalidArgument("none of \"prompt\", \"messages\" and \"token_ids\"");
        QUERN_RETURN_IF_ERROR(CheckIds(*ids, served.vocab_size()));
        prompts.push_back({*std::move(ids)});
      }
      return {};
    });
    QUERN_RETURN_IF_ERROR(read);
  }
  for (const Prompt& prompt : prompts) {
    if (prompt.ids.empty()) return InvalidArgument("the prompt has no token; give at least one");
    QUERN_RETURN_IF_ERROR(CheckIds(prompt.ids, served.vocab_size()));
  }
  return prompts;
}

// How far it is, on stderr: a bar that is drawn over itself on a terminal, otherwise a line every ten seconds.
class Progress {
 public:
  explicit Progress(size_t total) : total_(total), terminal_(isatty(STDERR_FILENO) != 0) {}
  ~Progress() {
    if (terminal_) std::fprintf(stderr, "\r\033[K");
  }
  void Show(size_t done, int64_t tokens) {
    if (SecondsSince(last_) < (terminal_ ? 0.2 : 10.0)) return;
    last_ = Clock::now();
    const double seconds = SecondsSince(begin_);
    std::string line = StrFormat("%zu / %zu completions, %.0f tokens/s, %.0f s", done, total_,
                                 static_cast<double>(tokens) / seconds, seconds);
    if (done > 0)
      line +=
          StrFormat(", about %.0f s left", seconds * static_cast<double>(total_ - done) / static_cast<double>(done));
    const size_t filled = kBar * done / total_;
    const std::string bar = "[" + std::string(filled, '#') + std::string(kBar - filled, '.') + "] ";
    std::fprintf(stderr, terminal_ ? "\r%s\033[K" : "%s\n", ((terminal_ ? bar : "") + line).c_str());
  }

 private:
  static constexpr size_t kBar = 24;
  size_t total_;
  bool terminal_;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point last_ = Clock::now();
};

class Generator {
 public:
  Generator(const GenerateCommandOptions& options, Engine& engine, const ServedPolicy& served)
      : options_(options), engine_(engine), served_(served) {}

  Status Run(const std::vector<Prompt>& prompts, const SamplingOptions& sampling) {
    const size_t total = prompts.size() * static_cast<size_t>(options_.n);
    Progress progress(total);
    size_t started = 0, finished = 0;
    while (printed_ < total) {
      while (started < total && active_.size() < kConcurrent) Start(started++, prompts, sampling);
      QUERN_ASSIGN_OR_RETURN(std::vector<Completion> completions, engine_.Step());
      for (Completion& completion : completions) {
        Active& active = active_.at(completion.sequence);
        active.text.Finish();
        done_[active.index] = Line(active, prompts[active.index / static_cast<size_t>(options_.n)], completion);
        active_.erase(completion.sequence);
        engine_.Close(completion.sequence);
        ++finished;
      }
      for (auto it = done_.find(printed_); it != done_.end(); it = done_.find(++printed_)) {
        std::printf("%s\n", it->second.c_str());
        done_.erase(it);
      }
      std::fflush(stdout);
      progress.Show(finished, engine_.generated_tokens());
    }
    return {};
  }

 private:
  struct Active {
    size_t index;
    TextStream text;
  };

  uint64_t SeedOf(size_t index) const { return options_.seed + index % static_cast<size_t>(options_.n); }

  void Start(size_t index, const std::vector<Prompt>& prompts, const SamplingOptions& sampling) {
    const Prompt& prompt = prompts[index / static_cast<size_t>(options_.n)];
    const int64_t sequence = engine_.Open();
    Active& active =
        active_.emplace(sequence, Active{index, {served_.tokenizer, prompt.ids, options_.stop}}).first->second;
    GenerateOptions generate;
    generate.max_new_tokens = options_.max_tokens;
    generate.sampling = sampling;
    generate.seed = SeedOf(index);
    generate.top_log_probs = options_.top_log_probs;
    if (!options_.ignore_eos) generate.stop_ids = served_.end_ids;
    generate.stop = [&active](std::span<const int32_t> tokens) { return active.text.Add(tokens.back()); };
    engine_.Extend(sequence, prompt.ids);
    engine_.Generate(sequence, std::move(generate));
  }

  std::string Line(const Active& active, const Prompt& prompt, const Completion& completion) const {
    if (options_.output == "text")
      return (served_.tokenizer == nullptr ? "" : served_.tokenizer->Decode(prompt.ids, true)) + active.text.text();
    Json log_probs = Json::array();
    for (const float value : completion.log_probs) log_probs.push_back(NineDigits(value));
    Json json = {{"index", active.index},
                 {"prompt_token_ids", prompt.ids},
                 {"token_ids", completion.tokens},
                 {"text", active.text.text()},
                 {"logprobs", log_probs},
                 {"finish_reason", completion.finish_reason == FinishReason::kStop ? "stop" : "length"},
                 {"seed", SeedOf(active.index)}};
    if (options_.top_log_probs > 0) {
      Json steps = Json::array();
      for (const std::vector<TokenLogProb>& top : completion.top) {
        Json step = Json::array();
        for (const TokenLogProb& entry : top) step.push_back({entry.id, NineDigits(entry.log_prob)});
        steps.push_back(std::move(step));
      }
      json["top_logprobs"] = std::move(steps);
    }
    return json.dump(-1, ' ', false, Json::error_handler_t::replace);
  }

  const GenerateCommandOptions& options_;
  Engine& engine_;
  const ServedPolicy& served_;
  std::map<int64_t, Active> active_;    // by sequence
  std::map<size_t, std::string> done_;  // lines that wait for those before them, by index
  size_t printed_ = 0;
};

Result<int> Generate(const GenerateCommandOptions& options) {
  QUERN_ASSIGN_OR_RETURN(v1::PolicySpec spec, LoadPolicyDirectory(options.model));
  QUERN_RETURN_IF_ERROR(SetCompression(options.compression, spec));
  ThreadPool pool(options.threads);
  QUERN_ASSIGN_OR_RETURN(const std::unique_ptr<Ops> ops, NewOps(options.device, &pool));
  QUERN_ASSIGN_OR_RETURN(const ServedPolicy served, LoadServedPolicy(*ops, spec, options.precision));
  QUERN_ASSIGN_OR_RETURN(const std::vector<Prompt> prompts, ReadPrompts(options, served));
  Engine engine(*ops, {.kv_bytes = options.kv_cache_mib << 20});
  engine.SetPolicy(served.policy);
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
  QUERN_RETURN_IF_ERROR(Generator(options, engine, served).Run(prompts, sampling));
  return kExitOk;
}

}  // namespace

Status CheckIds(const std::vector<int32_t>& ids, int64_t vocabulary) {
  for (const int32_t id : ids)
    if (id < 0 || id >= vocabulary)
      return InvalidArgument(StrCat("token id ", id, " is not below the vocabulary's ", vocabulary));
  return {};
}

void AddDeviceOption(CLI::App* command, std::string& device) {
  command->add_option("--device", device, "auto (a GPU where there is one), cpu, cuda or cuda:N")
      ->check([](const std::string& word) { return IsDeviceWord(word) ? "" : "auto, cpu, cuda or cuda:N is meant"; });
}

void AddModelOptions(CLI::App* command, ModelOptions& options) {
  command->add_option("--model", options.model, "model directory (Hugging Face), or an exported policy")->required();
  command->add_option("--precision", options.precision, "bf16, fp32 or fp8; default: as the weights are stored")
      ->check(CLI::IsMember({"bf16", "fp32", "fp8"}));
  AddDeviceOption(command, options.device);
  command->add_option("--threads", options.threads, "default: all cores")->check(CLI::Range(0, 1024));
}

void AddGenerateCommands(CommandSet& commands) {
  auto generate = std::make_shared<GenerateCommandOptions>();
  CLI::App* command = commands.app().add_subcommand("generate", "sample continuations");
  AddModelOptions(command, *generate);
  CLI::Option* prompt = command->add_option("--prompt", generate->prompt, "text to continue");
  CLI::Option* input =
      command->add_option("--input,--prompts", generate->input,
                          "JSON Lines of {\"prompt\"}, {\"messages\"} or {\"token_ids\"}; - for standard input");
  CLI::Option* ids = command->add_option("--token-ids", generate->token_ids, "1,2,3")->delimiter(',');
  prompt->excludes(input)->excludes(ids);
  input->excludes(ids);
  command->add_option("--max-tokens", generate->max_tokens, "new tokens, at most")->check(CLI::Range(1, 1 << 30));
  command->add_option("--temperature", generate->temperature, "0: the most likely token")->check(AtLeastZero());
  command->add_option("--top-k", generate->top_k, "0: off")->check(AtLeastZero());
  command->add_option("--top-p", generate->top_p, "1: off")->check(CLI::Range(0.0, 1.0));
  command->add_option("--min-p", generate->min_p, "0: off")->check(CLI::Range(0.0, 1.0));
  command->add_option("--repetition-penalty", generate->repetition_penalty, "1: off")->check(AboveZero());
  command->add_option("--seed", generate->seed, "completion i of a prompt uses seed + i");
  command->add_option("--n", generate->n, "completions of each prompt")->check(CLI::Range(1, 1 << 20));
  command->add_option("--stop", generate->stop, "end at this text, which is not printed; may be repeated")->take_all();
  command->add_option("--top-logprobs", generate->top_log_probs, "so many of the likeliest ids of each step (json)")
      ->check(CLI::Range(0, 1000));
  command->add_option("--kv-cache-mib", generate->kv_cache_mib, "memory for keys and values")
      ->check(CLI::Range(1, 1 << 24));
  AddCompressionOptions(command, generate->compression);
  command->add_flag("--ignore-eos", generate->ignore_eos, "go on after an end-of-text token");
  command->add_flag("--no-bos", generate->no_bos, "add no special tokens to the prompt");
  command->add_option("-o,--output", generate->output, "text or json")->check(CLI::IsMember({"text", "json"}));
  commands.SetBody(command, [generate, prompt]() -> Result<int> {
    generate->has_prompt = prompt->count() > 0;
    if (!generate->has_prompt && generate->input.empty() && generate->token_ids.empty())
      return UsageError("generate: one of --prompt, --input and --token-ids is needed");
    return Generate(*generate);
  });
}

}  // namespace quern
