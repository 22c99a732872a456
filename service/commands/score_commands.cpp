#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "actors/served_model.h"
#include "base/deadline.h"
#include "base/file.h"
#include "base/strings.h"
#include "base/thread_pool.h"
#include "compute/device.h"
#include "learner/loss_head.h"
#include "model/budget_search.h"
#include "model/compressed_cache.h"
#include "model/hf/model_directory.h"
#include "model/token_batch.h"
#include "model/tokenizer/tokenizer.h"
#include "service/command.h"
#include "service/commands/compression_options.h"
#include "service/commands/generate_commands.h"
#include "service/compression.h"
#include "service/help.h"
#include "service/jsonl.h"
#include "service/served_policy.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kBatchTokens = 8192;
constexpr size_t kDecodeTogether = 32;

struct ScoreOptions : ModelOptions {
  CompressionOptions compression;
  int64_t prompt_tokens = 0;  // 0: everything at once
};

struct BudgetOptions : ModelOptions {
  std::string to;
  int64_t least = 8;
  double target_loss = 0, max_increase = 0.01;
  bool has_target = false;
  std::string output = "text";
};

// A model that gives log-probabilities to given texts.
struct Scorer {
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Ops> ops;
  std::shared_ptr<const ServedModel> model;
  Result<std::shared_ptr<const Tokenizer>> tokenizer = Internal("not loaded");
  std::optional<Arena> arena;

  Result<std::vector<int32_t>> TokensOfRow(const nlohmann::json& row) const {
    std::vector<int32_t> ids;
    if (const auto text = row.find("text"); text != row.end() && text->is_string()) {
      if (!tokenizer.ok()) return tokenizer.status();
      ids = (*tokenizer)->Encode(text->get<std::string>(), true);
    } else {
      Result<std::vector<int32_t>> given = TokenIdsOf(row);
      if (!given.ok()) return InvalidArgument("neither \"text\" nor \"token_ids\"");
      ids = *std::move(given);
    }
    QUERN_RETURN_IF_ERROR(CheckIds(ids, model->transformer.config().vocab_size));
    if (static_cast<int64_t>(ids.size()) > model->transformer.max_positions())
      return InvalidArgument(
          StrCat(ids.size(), " tokens do not fit the model's ", model->transformer.max_positions(), " positions"));
    return ids;
  }

  // Of every token but its text's first, one text after the other.
  std::vector<float> LogProbs(std::span<const std::vector<int32_t>> texts, const Compression& compression) {
    const Arena::Scope scope(*arena);
    TokenBatch batch;
    std::vector<LossRow> rows;
    for (const std::vector<int32_t>& ids : texts) {
      for (size_t i = 0; i + 1 < ids.size(); ++i)
        rows.push_back({.row = batch.rows() + static_cast<int64_t>(i), .target = ids[i + 1]});
      batch.Add(ids.data(), static_cast<int64_t>(ids.size()), 0, nullptr);
    }
    if (rows.empty()) return {};
    const Transformer& transformer = model->transformer;
    std::vector<void*> page_table;
    KvView kv = MakeTrainingKv(transformer.kv_layout(), batch, *arena, page_table);
    kv.budgets = compression.budgets;
    const TensorView hidden = arena->New(transformer.dtype(), batch.rows(), transformer.config().hidden_size);
    transformer.Forward(model->weights, batch, kv, *arena, hidden);
    return LossHead(*ops, transformer).Score(model->weights, hidden, rows, *arena).log_probs;
  }

  // The same as while they are generated: the first `prompt` tokens of every text at once, then one a step.
  struct Decoded {
    std::vector<std::vector<float>> log_probs;
    std::vector<int64_t> cache_bytes;  // at the end
    int64_t steps_tokens = 0;
    double seconds = 0;  // of the steps after the prompts
  };
  Decoded Decode(std::span<const std::vector<int32_t>> texts, const Compression& compression, int64_t prompt) {
    const Transformer& transformer = model->transformer;
    const LossHead head(*ops, transformer);
    Decoded out;
    out.log_probs.resize(texts.size());
    std::vector<std::unique_ptr<CompressedCache>> caches;
    const auto length = [&](size_t t) { return static_cast<int64_t>(texts[t].size()); };
    for (size_t t = 0; t < texts.size(); ++t)
      caches.push_back(
          std::make_unique<CompressedCache>(*ops, transformer.kv_layout(), compression, std::min(prompt, length(t))));
    while (true) {
      const Arena::Scope scope(*arena);
      const Clock::time_point begin = Clock::now();
      TokenBatch batch;
      std::vector<CompressedCache*> stepped;
      std::vector<LossRow> rows;
      std::vector<size_t> owner;
      int64_t most = 0;
      for (size_t t = 0; t < texts.size(); ++t) {
        const int64_t read = caches[t]->tokens(), count = std::min(read < prompt ? prompt - read : 1, length(t) - read);
        if (count == 0) continue;
        caches[t]->Reserve(count);
        stepped.push_back(caches[t].get());
        for (int64_t i = 0; i < count && read + i + 1 < length(t); ++i) {
          rows.push_back({.row = batch.rows() + i, .target = texts[t][static_cast<size_t>(read + i + 1)]});
          owner.push_back(t);
        }
        batch.Add(texts[t].data() + read, count, read, nullptr);
        most = std::max(most, count);
      }
      if (stepped.empty()) break;
      const KvView kv = CompressedView(transformer.kv_layout(), compression, stepped, batch);
      const TensorView hidden = arena->New(transformer.dtype(), batch.rows(), transformer.config().hidden_size);
      transformer.Forward(model->weights, batch, kv, *arena, hidden);
      if (!rows.empty()) {
        const std::vector<float> log_probs = head.Score(model->weights, hidden, rows, *arena).log_probs;
        for (size_t i = 0; i < rows.size(); ++i) out.log_probs[owner[i]].push_back(log_probs[i]);
      }
      for (size_t i = 0; i < stepped.size(); ++i) stepped[i]->Advance(batch.sequences[i].count);
      if (most > 1) continue;
      out.seconds += SecondsSince(begin);
      out.steps_tokens += batch.rows();
    }
    for (const auto& cache : caches) out.cache_bytes.push_back(cache->bytes());
    return out;
  }
};

Status LoadScorer(const ModelOptions& options, const std::string& device, Scorer& scorer) {
  QUERN_RETURN_IF_ERROR(CheckSupported(options.model));
  QUERN_ASSIGN_OR_RETURN(const Recipe precision, PrecisionFor(options.precision, options.model));
  scorer.pool = std::make_unique<ThreadPool>(options.threads);
  QUERN_ASSIGN_OR_RETURN(scorer.ops, NewOps(device, scorer.pool.get()));
  scorer.arena.emplace(scorer.ops->memory());
  QUERN_ASSIGN_OR_RETURN(scorer.model, LoadServedModel(*scorer.ops, options.model, precision));
  scorer.tokenizer = Tokenizer::Load(options.model);
  return {};
}

Result<int> Score(const ScoreOptions& options) {
  Scorer scorer;
  QUERN_RETURN_IF_ERROR(LoadScorer(options, options.device, scorer));
  QUERN_ASSIGN_OR_RETURN(const Compression compression,
                         LoadCompression(options.compression, scorer.model->transformer.config().head_dim));
  QUERN_RETURN_IF_ERROR(CheckCompression(compression, scorer.model->transformer.config()));
  const auto print = [](const std::vector<int32_t>& ids, const std::vector<float>& log_probs, Json extra) {
    Json list = Json::array();
    double nll = 0;
    if (!ids.empty()) list.push_back(nullptr);
    for (const float value : log_probs) {
      list.push_back(NineDigits(value));
      nll -= value;
    }
    Json json = {{"token_ids", ids}, {"logprobs", list}, {"nll", NineDigits(nll)}};
    json.update(extra);
    std::printf("%s\n", json.dump().c_str());
  };
  std::vector<std::vector<int32_t>> texts;
  int64_t steps_tokens = 0;
  double seconds = 0;
  const auto decode = [&] {
    const Scorer::Decoded decoded = scorer.Decode(texts, compression, options.prompt_tokens);
    for (size_t t = 0; t < texts.size(); ++t)
      print(texts[t], decoded.log_probs[t], {{"kv_bytes", decoded.cache_bytes[t]}});
    steps_tokens += decoded.steps_tokens;
    seconds += decoded.seconds;
    texts.clear();
  };
  QUERN_RETURN_IF_ERROR(ForEachJsonLine(options.input, [&](const nlohmann::json& row) -> Status {
    QUERN_ASSIGN_OR_RETURN(std::vector<int32_t> ids, scorer.TokensOfRow(row));
    if (options.prompt_tokens == 0) {
      print(ids, scorer.LogProbs({&ids, 1}, compression), Json::object());
      return {};
    }
    texts.push_back(std::move(ids));
    if (texts.size() == kDecodeTogether) decode();
    return {};
  }));
  if (!texts.empty()) decode();
  if (steps_tokens > 0)
    std::fprintf(stderr, "%lld tokens one a step, up to %zu texts together: %.0f tokens/s\n",
                 static_cast<long long>(steps_tokens), kDecodeTogether, static_cast<double>(steps_tokens) / seconds);
  return kExitOk;
}

// Mean negative log-probability of all tokens but each text's first.
double MeanLoss(Scorer& scorer, const std::vector<std::vector<int32_t>>& texts, const Compression& compression) {
  double nll = 0;
  int64_t predicted = 0;
  for (size_t begin = 0; begin < texts.size();) {
    size_t end = begin, tokens = 0;
    do {
      tokens += texts[end++].size();
    } while (end < texts.size() && tokens + texts[end].size() <= kBatchTokens);
    for (const float value : scorer.LogProbs({texts.data() + begin, end - begin}, compression)) {
      nll -= static_cast<double>(value);
      ++predicted;
    }
    begin = end;
  }
  return nll / static_cast<double>(predicted);
}

int64_t Sum(const std::vector<int64_t>& budgets) {
  int64_t sum = 0;
  for (const int64_t budget : budgets) sum += budget;
  return sum;
}

Result<int> Budget(const BudgetOptions& options) {
  Scorer scorer;
  QUERN_RETURN_IF_ERROR(LoadScorer(options, options.device, scorer));
  const ModelConfig& config = scorer.model->transformer.config();
  QUERN_RETURN_IF_ERROR(
      CheckCompression({.budgets = std::vector<int64_t>(static_cast<size_t>(config.layers), 2)}, config));
  std::vector<std::vector<int32_t>> texts;
  QUERN_RETURN_IF_ERROR(ForEachJsonLine(options.input, [&](const nlohmann::json& row) -> Status {
    QUERN_ASSIGN_OR_RETURN(std::vector<int32_t> ids, scorer.TokensOfRow(row));
    if (ids.size() > 1) texts.push_back(std::move(ids));
    return {};
  }));
  if (texts.empty()) return InvalidArgument(options.input + ": has no text of two tokens or more");
  size_t positions = 0, predicted = 0;
  for (const std::vector<int32_t>& ids : texts) {
    positions = std::max(positions, ids.size());
    predicted += ids.size() - 1;
  }

  const int64_t layers = config.layers, whole = layers * static_cast<int64_t>(positions);
  const double own_loss = MeanLoss(scorer, texts, {});
  BudgetSearchOptions search;
  search.positions = static_cast<int64_t>(positions);
  search.least = options.least;
  search.target_loss = options.has_target ? options.target_loss : own_loss + options.max_increase;
  std::fprintf(stderr, "held-out loss %.4f over %zu tokens, target %.4f\n", own_loss, predicted, search.target_loss);
  const auto share = [&](const std::vector<int64_t>& budgets) {
    return static_cast<double>(Sum(budgets)) / static_cast<double>(whole);
  };
  const bool terminal = isatty(STDERR_FILENO) != 0;
  QUERN_ASSIGN_OR_RETURN(const std::vector<BudgetStep> steps,
                         SearchBudgets(
                             layers, search,
                             [&](const std::vector<int64_t>& budgets) {
                               return Result<double>(MeanLoss(scorer, texts, {.budgets = budgets}));
                             },
                             [&](const BudgetStep& step) {
                               std::fprintf(stderr, "%slayer %lld keeps %lld: loss %.4f, %.1f %% of the entries%s",
                                            terminal ? "\r" : "", static_cast<long long>(step.layer),
                                            static_cast<long long>(step.budgets[static_cast<size_t>(step.layer)]),
                                            step.loss, 100 * share(step.budgets), terminal ? "\x1b[K" : "\n");
                             }));
  if (terminal && !steps.empty()) std::fprintf(stderr, "\n");
  BudgetStep last{.layer = 0, .loss = own_loss, .budgets = {}};
  if (steps.empty()) {
    if (own_loss > search.target_loss)
      return InvalidArgument(StrCat("the model's loss ", own_loss, " is above the target ", search.target_loss,
                                    " with all entries; give a higher --target-loss"));
    last.budgets.assign(static_cast<size_t>(layers), search.positions);
  } else {
    last = steps.back();
  }
  Json json = {{"positions", search.positions},
               {"loss", NineDigits(own_loss)},
               {"target_loss", NineDigits(search.target_loss)},
               {"budgets", last.budgets},
               {"budget_loss", NineDigits(last.loss)},
               {"kept", NineDigits(share(last.budgets))}};
  if (!options.to.empty()) QUERN_RETURN_IF_ERROR(WriteFileAtomic(options.to, json.dump(2) + "\n"));
  if (options.output == "json") {
    std::printf("%s\n", json.dump().c_str());
    return kExitOk;
  }
  std::printf("layer  entries of %lld\n", static_cast<long long>(search.positions));
  for (size_t l = 0; l < last.budgets.size(); ++l)
    std::printf("%5zu  %7lld\n", l, static_cast<long long>(last.budgets[l]));
  std::printf("kept   %.1f %% (%.1fx less), loss %.4f -> %.4f\n", 100 * share(last.budgets), 1 / share(last.budgets),
              own_loss, last.loss);
  return kExitOk;
}

}  // namespace

void AddScoreCommands(CommandSet& commands) {
  auto score = std::make_shared<ScoreOptions>();
  CLI::App* scoring = commands.app().add_subcommand("score", "log-probabilities of given texts");
  AddModelOptions(scoring, *score);
  scoring->add_option("--input", score->input, "JSON Lines of {\"text\"} or {\"token_ids\"}; - for standard input")
      ->required();
  CLI::Option* prompt =
      scoring
          ->add_option("--prompt-tokens", score->prompt_tokens,
                       "read so many tokens of each text at once and the others one a step, as when generating")
          ->check(AboveZero());
  AddCompressionOptions(scoring, score->compression);
  commands.SetBody(scoring, [score, prompt]() -> Result<int> {
    if ((score->compression.key_channels > 0 || score->compression.key_ratio > 0) && prompt->count() == 0)
      return UsageError("score: --key-channels needs --prompt-tokens: channels are chosen at the end of a prompt");
    return Score(*score);
  });

  auto options = std::make_shared<BudgetOptions>();
  CLI::App* command = commands.app().add_subcommand(
      "budget", "how few cache entries each layer of a model with selective attention needs");
  AddModelOptions(command, *options);
  command->add_option("--input", options->input, "held-out texts: JSON Lines of {\"text\"} or {\"token_ids\"}")
      ->required();
  CLI::Option* target = command->add_option("--target-loss", options->target_loss, "nats a token; the loss to stay at");
  command->add_option("--max-increase", options->max_increase, "target: the model's own loss and so much more")
      ->excludes(target)
      ->check(AtLeastZero());
  command->add_option("--least", options->least, "entries that a layer keeps in any case")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 30));
  command->add_option("--to", options->to, "file for generate --budgets and score --budgets");
  command->add_option("-o,--output", options->output, "text or json")->check(CLI::IsMember({"text", "json"}));
  commands.SetBody(command, [options, target]() -> Result<int> {
    options->has_target = target->count() > 0;
    return Budget(*options);
  });
}

}  // namespace quern
