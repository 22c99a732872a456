#include "service/prepare.h"

#include <algorithm>

#include "actors/environments/options.h"
#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "compute/cuda/cuda_device.h"
#include "compute/device.h"
#include "learner/nccl_communicator.h"
#include "methods/regenesis/templates.h"
#include "model/chat_template/dialogue.h"
#include "model/hf/content_hash.h"
#include "model/hf/model_directory.h"
#include "model/parameters.h"
#include "model/recipe.h"
#include "model/tokenizer/char_tokenizer.h"
#include "replay/import.h"
#include "service/chains.h"
#include "service/compression.h"

namespace quern {

namespace {

constexpr char kDummy[] = "<dummy>";

// Round enough for the matrix kernels' row groups and close to 8/3 of the width, as the family has it.
int64_t DefaultIntermediate(int64_t hidden) { return (hidden * 8 / 3 + 15) / 16 * 16; }

ModelConfig SelfMadeConfig(const SelfMadeModel& m) {
  ModelConfig config;
  config.model_type = m.model_type;
  config.hidden_size = m.hidden_size;
  config.intermediate_size = m.intermediate_size > 0 ? m.intermediate_size : DefaultIntermediate(m.hidden_size);
  config.layers = m.num_hidden_layers;
  config.heads = m.num_attention_heads;
  config.kv_heads = m.num_key_value_heads > 0 ? m.num_key_value_heads : m.num_attention_heads;
  config.head_dim = m.head_dim > 0 ? m.head_dim : m.hidden_size / m.num_attention_heads;
  config.max_positions = m.max_position_embeddings;
  config.rope_theta = m.rope_theta;
  config.rms_norm_eps = static_cast<float>(m.rms_norm_eps);
  config.initializer_range = m.initializer_range;
  config.tie_word_embeddings = m.tie_word_embeddings;
  config.attention_bias = m.model_type == "qwen2";
  config.qk_norm = m.model_type == "qwen3";
  config.selective_attention = m.selective_attention;
  return config;
}

// What the job's texts are made of: its environments and what chains say.
Result<std::vector<std::string>> VocabularyOf(const Job& job) {
  QUERN_ASSIGN_OR_RETURN(const auto environment, EnvironmentOf(job));
  std::vector<std::string> vocabulary = environment->vocabulary();
  const auto add = [&](const std::vector<std::string>& pieces) {
    for (const std::string& piece : pieces)
      if (std::find(vocabulary.begin(), vocabulary.end(), piece) == vocabulary.end()) vocabulary.push_back(piece);
  };
  std::vector<QuestionsSection> others;
  for (const EvaluationSet& set : job.evaluate.sets) others.push_back(set.from);
  if (job.method == "regenesis") others.push_back(job.regenesis.environment);
  for (const QuestionsSection& from : others) {
    QUERN_ASSIGN_OR_RETURN(const auto other, EnvironmentOf(job, from));
    add(other->vocabulary());
  }
  for (const std::string& arm : ArmsOf(job)) {
    QUERN_ASSIGN_OR_RETURN(const v1::ChainProgram program, MakeChainProgram(job, arm));
    std::vector<std::string> texts(program.guidelines().begin(), program.guidelines().end());
    if (program.hinted_chains() > 0) texts.push_back(ExpandTemplate(program.hint(), {}));
    for (const v1::ChainStageSpec& stage : program.stages())
      texts.push_back(ExpandTemplate(stage.prompt(), {{"nl", "\n"}}) + stage.stop());
    add(DistinctCharacters(texts));
  }
  return vocabulary;
}

// Of a self-made model: its tokenizer, written to `directory` where it is made of the environment's vocabulary, and the
// configuration that goes with it.
struct SelfMadeParts {
  ModelConfig config;
  std::shared_ptr<const Tokenizer> tokenizer;
};
Result<SelfMadeParts> MakeTokenizer(const Job& job, const std::string& directory) {
  SelfMadeParts out{.config = SelfMadeConfig(job.model_config), .tokenizer = nullptr};
  ModelConfig& config = out.config;
  std::string tokenizer_source = job.model_tokenizer;
  if (job.model_tokenizer == "environment") {
    QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> vocabulary, VocabularyOf(job));
    const std::vector<std::string> specials = {"<pad>", "</s>", "<unk>", kDummy};
    QUERN_RETURN_IF_ERROR(
        WriteTokenizer(directory, vocabulary, specials, {.bos = {}, .eos = "</s>", .unk = "<unk>", .pad = "<pad>"}));
    tokenizer_source = directory;
  }
  QUERN_ASSIGN_OR_RETURN(out.tokenizer, Tokenizer::Load(tokenizer_source));
  const auto& tokenizer = out.tokenizer;
  config.vocab_size = tokenizer->vocab_size();
  if (!tokenizer->TokenId(kDummy)) ++config.vocab_size;  // the last id is the dummy's
  if (tokenizer->bos_id()) config.bos_token_id = *tokenizer->bos_id();
  if (tokenizer->pad_id()) config.pad_token_id = *tokenizer->pad_id();
  if (tokenizer->eos_id()) config.eos_token_ids = {*tokenizer->eos_id()};
  return out;
}

Result<BaseModel> MakeModel(const Run& run) {
  const std::string directory = run.Path("model");
  QUERN_RETURN_IF_ERROR(MakeDirectories(directory));
  QUERN_ASSIGN_OR_RETURN(const SelfMadeParts made, MakeTokenizer(run.job, directory));
  Parameters parameters(made.config);
  parameters.Initialize(made.config, run.job.seed);
  SaveOptions save{.dtype = DType::kF32, .source_dir = {}, .generation = std::nullopt};
  if (run.job.model_tokenizer != "environment") save.source_dir = run.job.model_tokenizer;
  QUERN_RETURN_IF_ERROR(SaveModelDirectory(directory, made.config, parameters.Source(), save));
  return BaseModel{
      .directory = directory, .content_hash = {}, .reserved_token = FindReservedToken(made.config, *made.tokenizer)};
}

}  // namespace

Result<std::shared_ptr<const EnvironmentFactory>> EnvironmentOf(const Job& job, const QuestionsSection& from) {
  const v1::EnvironmentSpec spec = EnvironmentWith(job, from);
  return MakeEnvironmentFactory(spec.name(), {spec.options().begin(), spec.options().end()}, job.base_dir);
}

Result<std::shared_ptr<const EnvironmentFactory>> EnvironmentOf(const Job& job, const std::string& set) {
  Result<std::shared_ptr<const EnvironmentFactory>> made = EnvironmentOf(job, QuestionsSection());
  if (set.empty()) return made.ok() ? made : made.status().Annotate("environment");
  std::vector<std::string> names;
  for (const EvaluationSet& known : job.evaluate.sets) {
    names.push_back(known.name);
    if (known.name != set) continue;
    made = EnvironmentOf(job, known.from);
    return made.ok() ? made : made.status().Annotate("evaluate.sets: " + set);
  }
  return NotFound(
      StrCat("set '", set, "': the job's evaluate.sets are ", names.empty() ? "empty" : StrJoin(names, ", ")));
}

namespace {

// Bad data is the caller's mistake, to be said before anything starts.
Status CheckRows(const std::string& file) {
  QUERN_ASSIGN_OR_RETURN(const ImportReport report, CheckImportFile(file, ImportOptions()));
  if (report.bad == 0) return {};
  const BadLine& first = report.bad_lines.front();
  return InvalidArgument(StrCat(file, ":", first.number, ": ", first.reason,
                                report.bad > 1 ? StrCat(" (and ", report.bad - 1, " more bad lines)") : ""));
}

Status CheckChains(Job& job) {
  for (const EvaluationSet& set : job.evaluate.sets) QUERN_RETURN_IF_ERROR(EnvironmentOf(job, set.name).status());
  if (job.method != "regenesis") return {};
  const auto environment = EnvironmentOf(job, job.regenesis.environment);
  if (!environment.ok()) return environment.status().Annotate("regenesis.environment");
  const QuestionSource* questions = (*environment)->questions();
  if (questions == nullptr)
    return FailedPrecondition(
        "regenesis.environment: this environment has no questions with known answers, which method regenesis needs");
  if (job.regenesis.questions == 0) job.regenesis.questions = static_cast<int64_t>(questions->size());
  for (const std::string& arm : ArmsOf(job)) QUERN_RETURN_IF_ERROR(MakeChainProgram(job, arm).status());
  return {};
}

// Ranks have a GPU each, and NCCL to speak over.
Status CheckRanksOnGpus(int64_t ranks) {
  if (ranks == 1) return {};
  const auto gpus = static_cast<int64_t>(FindCudaDevices().devices.size());
  if (ranks > gpus)
    return InvalidArgument(StrCat("learner.ranks ", ranks, ": each needs a GPU of its own, and there are ", gpus));
  return FindNccl().Annotate("learner.ranks");
}

}  // namespace

Status CheckJob(Job& job) {
  QUERN_ASSIGN_OR_RETURN(const auto environment, EnvironmentOf(job));
  QUERN_RETURN_IF_ERROR(CheckChains(job));
  const std::vector<std::string> players = environment->player_names();
  if (job.evaluate.players == EvaluateSection().players &&
      std::find(players.begin(), players.end(), job.evaluate.players[0]) == players.end())
    job.evaluate.players.clear();  // the default, and this environment has no such player
  for (size_t i = 0; i < job.collect.size(); ++i) {
    const auto player = environment->NewPlayer(job.collect[i].player, job.collect[i].options);
    if (!player.ok()) return player.status().Annotate(StrCat("data.collect.", i));
  }
  for (size_t i = 0; i < job.heldout.size(); ++i) {
    const auto player = environment->NewPlayer(job.heldout[i].player, job.heldout[i].options);
    if (!player.ok()) return player.status().Annotate(StrCat("data.heldout.", i));
  }
  if (job.evaluate.episodes > 0) {
    for (const std::string& name : job.evaluate.players) {
      const auto player = environment->NewPlayer(name, {});
      if (!player.ok()) return player.status().Annotate("evaluate.players");
    }
  }
  for (const auto* files : {&job.import_files, &job.heldout_files})
    for (const std::string& file : *files) QUERN_RETURN_IF_ERROR(CheckRows(file));
  ModelConfig config = SelfMadeConfig(job.model_config);
  if (!job.model_name_or_path.empty()) {
    if (!PathExists(job.model_name_or_path))
      return NotFound("model_name_or_path: " + job.model_name_or_path + ": no such directory");
    QUERN_RETURN_IF_ERROR(CheckSupported(job.model_name_or_path));
    QUERN_ASSIGN_OR_RETURN(config, LoadModelConfig(job.model_name_or_path));
    config.selective_attention = config.selective_attention || job.model_selective_attention;
    QUERN_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(job.model_name_or_path));
    QUERN_ASSIGN_OR_RETURN(const auto chat_template, ChatTemplateOf(job, job.model_name_or_path));
    QUERN_RETURN_IF_ERROR(Dialogue::Make(*tokenizer, chat_template, {}).status());
  } else if (job.model_tokenizer != "environment") {
    QUERN_RETURN_IF_ERROR(Tokenizer::Load(job.model_tokenizer).status());
  }
  if (job.compression.key_ratio > 0) {
    job.compression.key_channels = KeyChannels(job.compression.key_ratio, config.head_dim);
    job.compression.key_ratio = 0;
  }
  return CheckCompression(job.compression, config).Annotate("compression");
}

Status SettleDevice(Job& job) {
  QUERN_ASSIGN_OR_RETURN(const Device device, ChooseDevice(job.device));
  if (device.gpu < 0) return {};
  if (const Status ranks = CheckRanksOnGpus(job.learner.ranks); !ranks.ok()) {
    if (job.device != "auto") return ranks.Annotate(StrCat("device ", job.device));
    LogWarning(StrCat(ranks.message(), "; the job computes on the CPU"));
    job.device = "cpu";
    return {};
  }
  LogInfo(StrCat("the job computes on ", device.name));
  return {};
}

Result<std::shared_ptr<const ChatTemplate>> ChatTemplateOf(const Job& job, const std::string& model_directory) {
  if (job.chat_template == "none") return std::shared_ptr<const ChatTemplate>();
  Result<std::shared_ptr<const ChatTemplate>> loaded = ChatTemplate::Load(model_directory);
  if (loaded.status().code() == StatusCode::kNotFound) return std::shared_ptr<const ChatTemplate>();
  return loaded.ok() ? loaded : loaded.status().Annotate("chat_template=none goes without it");
}

Result<PlannedModel> PlanModel(const Job& job, const std::string& scratch) {
  if (job.model_name_or_path.empty()) {
    QUERN_ASSIGN_OR_RETURN(SelfMadeParts made, MakeTokenizer(job, scratch));
    return PlannedModel{.config = made.config, .tokenizer = made.tokenizer, .directory = scratch};
  }
  PlannedModel model{.config = {}, .tokenizer = nullptr, .directory = job.model_name_or_path};
  QUERN_ASSIGN_OR_RETURN(model.config, LoadModelConfig(model.directory));
  QUERN_ASSIGN_OR_RETURN(model.tokenizer, Tokenizer::Load(model.directory));
  return model;
}

Result<BaseModel> PrepareModel(const Run& run) {
  BaseModel model;
  if (run.job.model_name_or_path.empty()) {
    QUERN_ASSIGN_OR_RETURN(model, MakeModel(run));
  } else {
    model.directory = run.job.model_name_or_path;
    QUERN_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(model.directory));
    if (run.job.model_selective_attention && !config.selective_attention) {
      model.directory = run.Path("model");
      QUERN_RETURN_IF_ERROR(AddSelectiveAttention(run.job.model_name_or_path, model.directory));
    }
    QUERN_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(model.directory));
    model.reserved_token = FindReservedToken(config, *tokenizer);
  }
  QUERN_ASSIGN_OR_RETURN(model.content_hash, DirectoryContentHash(model.directory));
  if (model.reserved_token < 0 && run.job.method == "q_sft" && run.job.qsft.remainder == "dummy")
    return FailedPrecondition(model.directory +
                              ": every id of the vocabulary is in use, none is left for Q-SFT's dummy action;"
                              " set qsft.remainder=uniform");
  return model;
}

int32_t FindReservedToken(const ModelConfig& config, const Tokenizer& tokenizer) {
  if (const auto dummy = tokenizer.TokenId(kDummy); dummy && *dummy < config.vocab_size) return *dummy;
  if (config.vocab_size > tokenizer.vocab_size()) return static_cast<int32_t>(config.vocab_size - 1);
  const auto in_use = [&](int32_t id) {
    const std::vector<int32_t>& ends = config.eos_token_ids;
    return id == config.bos_token_id || tokenizer.bos_id() == id || tokenizer.eos_id() == id ||
           std::find(ends.begin(), ends.end(), id) != ends.end();
  };
  for (const auto& candidate : {tokenizer.pad_id(), tokenizer.unk_id()})
    if (candidate && *candidate < config.vocab_size && !in_use(*candidate)) return *candidate;
  for (int64_t id = config.vocab_size - 1; id >= 0; --id)
    if (tokenizer.IsSpecial(static_cast<int32_t>(id)) && !in_use(static_cast<int32_t>(id)))
      return static_cast<int32_t>(id);
  return -1;
}

}  // namespace quern
