#include "service/memory_plan.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "actors/rollout.h"
#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"
#include "compute/cpu/cpu_ops.h"
#include "compute/device.h"
#include "compute/planning_ops.h"
#include "learner/batch_builder.h"
#include "learner/train_stage.h"
#include "methods/q_sft.h"
#include "methods/sft.h"
#include "model/parameters.h"
#include "service/plan.h"
#include "service/prepare.h"

namespace quern {

namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
// What the processes of a job of next to nothing take: the program, its libraries, their pools. Measured
// (docs/benchmarks.md).
constexpr int64_t kProcess = 23 * kMiB;
constexpr int64_t kActorProcess = 25 * kMiB;
constexpr int64_t kLearnerProcess = 30 * kMiB;  // with batches, their statistics and the buffers of its threads
constexpr int64_t kStoreProcess = 34 * kMiB;
constexpr int64_t kSampleTasks = 64;  // spread over a player's episodes ...
constexpr int64_t kTaskEpisodes = 4;  // ... each so many in a row
constexpr int kDrawnBatches = 200;    // of which the largest is run
constexpr int64_t kLayers = 2;        // that are run: the others cost what the last of them does

// A folder for the tokenizer of a self-made model.
class ScratchFolder {
 public:
  static Result<ScratchFolder> Make() {
    ScratchFolder folder;
    folder.path_ = "/tmp/quern-plan-XXXXXX";
    if (mkdtemp(folder.path_.data()) == nullptr) return FromErrno(errno, folder.path_);
    return folder;
  }
  ScratchFolder(ScratchFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  ~ScratchFolder() {
    if (!path_.empty()) (void)RemoveTree(path_).ok();
  }
  const std::string& path() const { return path_; }

 private:
  ScratchFolder() = default;
  std::string path_;
};

struct Sample {
  std::vector<v1::Trajectory> trajectories;
  bool played = false;  // by the job's players; else made up, as long as can be
};

v1::Trajectory LongestTrajectory(const Job& job, const EnvironmentFactory& factory, const PlannedModel& model,
                                 int64_t positions) {
  const auto environment = factory.NewEnvironment();
  const int64_t prompt = static_cast<int64_t>(model.tokenizer->Encode(environment->Reset(job.seed).text, false).size());
  const int64_t utterance =
      job.max_completion_length > 0 ? job.max_completion_length : int64_t{environment->max_action_tokens()};
  const int64_t tokens = std::clamp(prompt + utterance * environment->max_turns(), int64_t{2}, positions);
  v1::Trajectory t;
  t.mutable_token_ids()->assign(static_cast<size_t>(4 * tokens), '\0');
  t.mutable_loss_mask()->assign(static_cast<size_t>(tokens), '\1');
  v1::Turn& turn = *t.add_turns();
  turn.set_begin(static_cast<uint32_t>(std::min(prompt, tokens - 1)));
  turn.set_end(static_cast<uint32_t>(tokens));
  t.set_done(true);
  return t;
}

Result<Sample> SampleRecords(const Job& job, const PlannedModel& model, int64_t positions) {
  QUERN_ASSIGN_OR_RETURN(const auto environment, EnvironmentOf(job));
  Sample sample;
  RolloutOptions rollout;
  rollout.max_completion_length = job.max_completion_length;
  rollout.max_positions = positions;
  QUERN_ASSIGN_OR_RETURN(rollout.chat_template, ChatTemplateOf(job, model.directory));
  const std::atomic<bool> stop{false};
  for (const CollectSection& collect : job.collect) {
    v1::RolloutTask task;
    task.mutable_policy()->set_player(collect.player);
    task.mutable_policy()->mutable_player_options()->insert(collect.options.begin(), collect.options.end());
    task.set_seed(job.seed);
    const auto keep = [&](v1::Trajectory trajectory) -> Status {
      sample.trajectories.push_back(std::move(trajectory));
      return {};
    };
    // Files are often sorted: the first questions are not like the others.
    const int64_t tasks = std::clamp<int64_t>(collect.episodes / kTaskEpisodes, 1, kSampleTasks);
    for (int64_t i = 0; i < tasks; ++i) {
      task.set_first_episode(static_cast<uint64_t>(collect.episodes * i / tasks));
      task.set_episodes(static_cast<uint32_t>(std::clamp<int64_t>(collect.episodes, 1, kTaskEpisodes)));
      QUERN_RETURN_IF_ERROR(PlayTask(task, *environment, *model.tokenizer, rollout, nullptr, keep, stop).status());
    }
  }
  sample.played = !sample.trajectories.empty();
  if (!sample.played) sample.trajectories.push_back(LongestTrajectory(job, *environment, model, positions));
  return sample;
}

// The longest of many batches of `count` that are drawn from the sample: a training sees thousands.
Result<TrainingBatch> MakeBatch(const Sample& sample, int64_t count, int64_t positions) {
  Random random(0, static_cast<uint64_t>(count));
  std::vector<const v1::Trajectory*> longest;
  size_t most = 0;
  for (int draw = 0; draw < kDrawnBatches; ++draw) {
    std::vector<const v1::Trajectory*> drawn;
    size_t tokens = 0;
    for (int64_t i = 0; i < count; ++i) {
      drawn.push_back(&sample.trajectories[random.Below(sample.trajectories.size())]);
      tokens += std::min(drawn.back()->loss_mask().size(), static_cast<size_t>(positions));
    }
    if (tokens <= most) continue;
    most = tokens;
    longest = std::move(drawn);
  }
  std::vector<v1::Trajectory> chosen;
  for (const v1::Trajectory* trajectory : longest) chosen.push_back(*trajectory);
  BatchOptions options;
  options.max_positions = positions;
  return BuildBatch(chosen, options);
}

struct Stages {
  std::vector<TrainStageOptions> trained;
  bool q_sft = false;
};

Result<Stages> TrainStagesOf(const Job& job) {
  Stages out;
  for (const PlannedStage& planned : MakePlan(job).stages) {
    if (planned.kind != PlannedStage::Kind::kTrain) continue;
    v1::TrainStage stage;
    stage.set_name(planned.name);
    stage.set_method(planned.method);
    stage.set_options_json(planned.options_json);
    QUERN_ASSIGN_OR_RETURN(TrainStageOptions options, ParseTrainStage(stage));
    out.q_sft = out.q_sft || options.method == "q_sft";
    out.trained.push_back(std::move(options));
  }
  return out;
}

OptimizerMemory OptimizerOf(const Job& job) {
  return {.fp8_moments = job.optimizer.moments == "fp8",
          .block = job.optimizer.block,
          .bf16_masters = job.optimizer.master_weights == "bf16"};
}

struct LearnerBytes {
  TrainerMemory trainer;
  int64_t behaviour = 0;
};

// One step of every train stage on a model of `config`'s shape.
Result<LearnerBytes> RunSteps(const Job& job, bool gpu, const ModelConfig& config, const Stages& stages,
                              const Sample& sample) {
  ThreadPool pool(1);
  const std::unique_ptr<Ops> backend = NewCpuOps(&pool);
  PlanningOps ops(*backend, gpu);
  const Recipe recipe = RecipeOf(job.precision, job.smooth_swiglu);
  LearnerBytes out;
  // One rank's part of a batch.
  const int64_t ranks = job.learner.ranks, shards = job.learner.shards > 0 ? job.learner.shards / ranks : 1;
  Trainer trainer(ops, config, recipe, config.max_positions,
                  {.optimizer = {}, .memory = OptimizerOf(job), .shards = shards});
  for (const TrainStageOptions& stage : stages.trained) {
    const bool q_sft = stage.method == "q_sft";
    trainer.set_max_micro_batch_tokens(stage.micro_batch_tokens);
    QUERN_RETURN_IF_ERROR(
        trainer.Begin(stage.optimizer, q_sft ? std::optional<float>(stage.q_sft.polyak) : std::nullopt));
    QUERN_ASSIGN_OR_RETURN(const TrainingBatch batch,
                           MakeBatch(sample, (stage.batch_size + ranks - 1) / ranks, config.max_positions));
    std::unique_ptr<Objective> objective = std::make_unique<SftObjective>();
    std::unique_ptr<Weights> behaviour;
    Trainer::Bootstrap bootstrap{nullptr, stage.q_sft.support_epsilon, stage.q_sft.support_top_p, 0};
    if (q_sft) {
      QSftOptions options = stage.q_sft;
      options.reserved_token = 0;
      objective = std::make_unique<QSftObjective>(options, config.vocab_size);
      behaviour = std::make_unique<Weights>(ops, config, recipe, false);
      QUERN_RETURN_IF_ERROR(behaviour->Load(trainer.Source()));
      bootstrap.behaviour = behaviour.get();
      out.behaviour = behaviour->bytes();
    }
    QUERN_RETURN_IF_ERROR(trainer.Step(batch, *objective, q_sft ? &bootstrap : nullptr).status());
    const TrainerMemory now = trainer.Memory();
    if (now.total() > out.trainer.total() || now.target > out.trainer.target) {
      const int64_t target = std::max(out.trainer.target, now.target);
      out.trainer = now;
      out.trainer.target = target;
    }
  }
  if (stages.trained.empty()) out.trainer = trainer.Memory();
  return out;
}

struct ActorBytes {
  int64_t weights = 0;  // of one model
  int64_t step = 0;     // temporaries of one forward pass
  int64_t read = 0;     // the largest of what is mapped at a time while weights are read
  int64_t logits = 0;   // of them, what is sampled from
};

int64_t HeapInUse() {
  const struct mallinfo2 now = mallinfo2();
  return static_cast<int64_t>(now.uordblks + now.hblkhd);
}

// Of an environment with its files.
Result<int64_t> EnvironmentBytes(const Job& job, const QuestionsSection& from) {
  const int64_t before = HeapInUse();
  QUERN_ASSIGN_OR_RETURN(const auto factory, EnvironmentOf(job, from));
  const auto environment = factory->NewEnvironment();
  return std::max<int64_t>(0, HeapInUse() - before);
}

// Those that an actor comes to have beside the job's.
Result<int64_t> OtherEnvironmentBytes(const Job& job) {
  int64_t sum = 0;
  std::vector<const QuestionsSection*> others;
  for (const EvaluationSet& set : job.evaluate.sets) others.push_back(&set.from);
  if (job.method == "regenesis") others.push_back(&job.regenesis.environment);
  for (const QuestionsSection* from : others) {
    QUERN_ASSIGN_OR_RETURN(const int64_t bytes, EnvironmentBytes(job, *from));
    sum += bytes;
  }
  return sum;
}

// The actor's largest forward pass, all of whose rows are sampled.
Result<ActorBytes> RunActorStep(const Job& job, bool gpu, const ModelConfig& config, int64_t models) {
  ThreadPool pool(1);
  const std::unique_ptr<Ops> backend = NewCpuOps(&pool);
  PlanningOps ops(*backend, gpu);
  const Recipe recipe = RecipeOf(job.precision, job.smooth_swiglu);
  const Transformer transformer(ops, config, recipe.act, config.max_positions);
  Weights weights(ops, config, recipe, false);
  const Parameters parameters(config);
  QUERN_RETURN_IF_ERROR(weights.Load(parameters.Source()));
  const int64_t rows = EngineOptions().max_step_tokens;
  const int64_t sampled = std::min(rows, job.rollout.concurrent_episodes);
  TokenBatch batch;
  std::vector<int32_t> ids(static_cast<size_t>(config.max_positions));
  for (int64_t left = rows; left > 0; left -= std::min(left, config.max_positions))
    batch.Add(ids.data(), std::min(left, config.max_positions), 0, nullptr);
  Arena arena;
  const KvView kv{transformer.kv_layout()};
  const TensorView hidden = arena.New(transformer.dtype(), rows, config.hidden_size);
  transformer.Forward(weights, batch, kv, arena, hidden);
  // Logits of every model and how they are put together.
  const int64_t logits = (models > 1 ? models + 1 : 1) * sampled * config.vocab_size * 4;
  const int64_t widest = std::max(
      {config.vocab_size, 2 * config.intermediate_size, (config.heads + 2 * config.kv_heads) * config.head_dim});
  return ActorBytes{weights.bytes(), arena.peak_bytes() + logits, 4 * config.hidden_size * widest, logits};
}

ModelConfig WithLayers(ModelConfig config, int64_t layers) {
  config.layers = layers;
  return config;
}

// f(layers) from what it is for the first kLayers - 1 and kLayers: a straight line.
int64_t Extend(int64_t less, int64_t more, int64_t layers) { return more + (layers - kLayers) * (more - less); }

int64_t MeanTokens(const Sample& sample) {
  int64_t sum = 0;
  for (const v1::Trajectory& t : sample.trajectories) sum += static_cast<int64_t>(t.loss_mask().size());
  return std::max<int64_t>(1, sum / static_cast<int64_t>(sample.trajectories.size()));
}

int64_t RecordBytes(const Sample& sample) {
  int64_t sum = 0;
  for (const v1::Trajectory& t : sample.trajectories) sum += static_cast<int64_t>(t.ByteSizeLong());
  return sum / static_cast<int64_t>(sample.trajectories.size());
}

int64_t PageBytes(const Job& job, const ModelConfig& config) {
  const Recipe recipe = RecipeOf(job.precision, job.smooth_swiglu);
  return KvLayout{recipe.act, config.layers, config.kv_heads, config.head_dim, config.selective_attention}.page_bytes();
}

int64_t ModelsOfPolicies(const Job& job) {
  const bool compared = std::find(job.compare.begin(), job.compare.end(), "q_sft") != job.compare.end();
  return job.method == "q_sft" || compared ? 2 : 1;
}

// What the stages that play come to.
struct Played {
  int64_t most = 0;      // episodes and chains of the busiest policy that models play
  int64_t stored = 0;    // those of all stages
  int64_t versions = 0;  // of weights that an actor has at a time
};
Played CountPlayed(const Job& job) {
  const Plan plan = MakePlan(job);
  Played out;
  std::set<std::string> weights;
  for (const PlannedStage& stage : plan.stages) {
    if (stage.kind != PlannedStage::Kind::kRollout) continue;
    int64_t episodes = static_cast<int64_t>(stage.episodes);
    if (!stage.arm.empty())
      episodes *= job.regenesis.paths_per_question * static_cast<int64_t>(job.regenesis.stages.size());
    out.stored += episodes;
    if (!stage.player.empty()) continue;
    out.most = std::max(out.most, episodes);
    weights.insert(stage.weights.begin(), stage.weights.end());
    if (!stage.newest) continue;
    for (const std::vector<std::string>& version : plan.policy_line) weights.insert(version.begin(), version.end());
  }
  out.versions = std::min(kRecentModels, static_cast<int64_t>(weights.size()));
  return out;
}

}  // namespace

int64_t RolePlan::peak() const {
  int64_t sum = 0;
  for (const auto& [name, bytes] : items) sum += bytes;
  return sum;
}

int64_t ActorKvBytes(const Job& job, const ModelConfig& config) {
  if (job.rollout.kv_cache_mib > 0) return job.rollout.kv_cache_mib * kMiB;
  const int64_t pages = (config.max_positions + KvLayout::kPageTokens - 1) / KvLayout::kPageTokens;
  const double all = static_cast<double>(pages * job.rollout.concurrent_episodes) *
                     static_cast<double>(ModelsOfPolicies(job) * PageBytes(job, config));
  return static_cast<int64_t>(std::min(all, static_cast<double>(2048 * kMiB)));
}

namespace {

// Whether the job would compute on a GPU: one that is named need not be here.
bool PlansGpu(const Job& job) {
  if (job.device != "auto") return job.device != "cpu";
  Job settled = job;
  if (!SettleDevice(settled).ok() || settled.device != "auto") return false;
  const Result<Device> device = ChooseDevice("auto");
  return device.ok() && device->gpu >= 0;
}

// What of a role's process lies on its GPU moves there; what its host keeps instead stays.
RolePlan TakeGpuItems(RolePlan& role) {
  RolePlan gpu{.role = role.role,
               .processes = role.processes,
               .items = {{"backend", cuda::kScratchBlock + cuda::kProductWorkspace}},
               .note = "without what the driver takes for each process; processes share GPUs in turn"};
  std::vector<std::pair<std::string, int64_t>> host;
  for (auto& item : role.items) {
    const bool stays = item.first == "process" || item.first == "environment";
    (stays ? host : gpu.items).push_back(std::move(item));
  }
  role.items = std::move(host);
  return gpu;
}

}  // namespace

Result<MemoryPlan> PlanMemory(const Job& job) {
  QUERN_ASSIGN_OR_RETURN(const ScratchFolder scratch, ScratchFolder::Make());
  QUERN_ASSIGN_OR_RETURN(const PlannedModel model, PlanModel(job, scratch.path()));
  const ModelConfig& config = model.config;
  QUERN_ASSIGN_OR_RETURN(const Sample sample, SampleRecords(job, model, config.max_positions));
  QUERN_ASSIGN_OR_RETURN(const Stages stages, TrainStagesOf(job));
  const int64_t models = ModelsOfPolicies(job);
  QUERN_ASSIGN_OR_RETURN(const int64_t environment, EnvironmentBytes(job, QuestionsSection()));
  QUERN_ASSIGN_OR_RETURN(const int64_t other_environments, OtherEnvironmentBytes(job));
  MemoryPlan plan;
  plan.parameters = ParameterLayout(config).size();
  const bool gpu = PlansGpu(job);

  const auto less_config = WithLayers(config, std::min(config.layers, kLayers - 1));
  const auto more_config = WithLayers(config, std::min(config.layers, kLayers));
  QUERN_ASSIGN_OR_RETURN(const LearnerBytes less, RunSteps(job, gpu, less_config, stages, sample));
  QUERN_ASSIGN_OR_RETURN(const LearnerBytes more, RunSteps(job, gpu, more_config, stages, sample));
  const auto extend = [&](int64_t a, int64_t b) { return config.layers <= kLayers ? b : Extend(a, b, config.layers); };
  RolePlan learner{.role = "learner", .processes = job.learner.ranks, .items = {}, .note = {}};
  learner.items = {{"process", kLearnerProcess},
                   {"environment", environment},
                   {"weights", extend(less.trainer.parameters, more.trainer.parameters)},
                   {"gradients", extend(less.trainer.gradients, more.trainer.gradients)},
                   {"moments", extend(less.trainer.moments, more.trainer.moments) / job.learner.ranks},
                   {"packed weights", extend(less.trainer.packed, more.trainer.packed)},
                   {"activations", extend(less.trainer.activations, more.trainer.activations)}};
  if (stages.q_sft)
    learner.items.emplace_back("target and behaviour",
                               extend(less.trainer.target + less.behaviour, more.trainer.target + more.behaviour));
  if (!sample.played) learner.note = "records as long as can be: no player of data.collect writes them";

  QUERN_ASSIGN_OR_RETURN(const ActorBytes actor_less, RunActorStep(job, gpu, less_config, models));
  QUERN_ASSIGN_OR_RETURN(const ActorBytes actor_more, RunActorStep(job, gpu, more_config, models));
  const Played played = CountPlayed(job);
  RolePlan actor{.role = "actor",
                 .processes = job.actors,
                 .items = {{"process", kActorProcess}, {"environment", environment + other_environments}},
                 .note = {}};
  if (played.most > 0) {
    const int64_t pages = (MeanTokens(sample) + KvLayout::kPageTokens - 1) / KvLayout::kPageTokens;
    const int64_t used = played.most / std::max<int64_t>(1, job.actors) * pages * models * PageBytes(job, config);
    const int64_t budget = ActorKvBytes(job, config);
    actor.items.emplace_back("packed weights", played.versions * extend(actor_less.weights, actor_more.weights));
    actor.items.emplace_back("keys and values", std::min(budget, used));
    actor.items.emplace_back("one step", gpu ? actor_more.step : std::max(actor_more.step, actor_more.read));
    if (used < budget)
      actor.note = StrCat("the budget of keys and values is ", HumanBytes(static_cast<double>(budget)));
  }
  const int64_t version = 4 * plan.parameters;
  const TrainerMemory& t = more.trainer;
  const int64_t masters = extend(less.trainer.parameters, t.parameters);
  const int64_t checkpoint = masters + extend(less.trainer.moments, t.moments) + (stages.q_sft ? version : 0);
  if (gpu) {
    plan.device = {TakeGpuItems(learner)};
    learner.items.emplace_back("copies for checkpoints", std::max(masters, checkpoint));
    if (played.most > 0) {
      plan.device.push_back(TakeGpuItems(actor));
      actor.items.emplace_back("copies of logits", std::max(actor_more.logits, actor_more.read));
    }
  }
  plan.memory = {learner, actor};
  plan.memory.push_back({.role = "replay-server", .processes = 1, .items = {{"process", kStoreProcess}}, .note = {}});
  plan.memory.push_back({.role = "coordinator", .processes = 1, .items = {{"process", kProcess}}, .note = {}});

  plan.disk.push_back({.role = "learner",
                       .processes = 1,
                       .items = {{"weights published", static_cast<int64_t>(stages.trained.size()) * version},
                                 {"checkpoints", (job.checkpoint.keep + 1) * checkpoint}},
                       .note = "checkpoints: while a stage is under way, one of them being written"});
  plan.disk.push_back({.role = "replay-server",
                       .processes = 1,
                       .items = {{"records", played.stored * RecordBytes(sample)}},
                       .note = job.import_files.empty() ? "" : "data.import comes on top"});
  return plan;
}

std::string FormatMemoryPlan(const MemoryPlan& plan) {
  std::string out = StrFormat("%lld parameters\n", static_cast<long long>(plan.parameters));
  const auto add = [&out](const char* what, const std::vector<RolePlan>& roles) {
    for (const RolePlan& role : roles) {
      const std::string name = role.processes > 1 ? StrCat(role.role, " (each of ", role.processes, ")") : role.role;
      out += StrFormat("%-7s %-24s %12s\n", what, name.c_str(), HumanBytes(static_cast<double>(role.peak())).c_str());
      for (const auto& [item, bytes] : role.items)
        if (bytes > 0)
          out += StrFormat("          %-22s %12s\n", item.c_str(), HumanBytes(static_cast<double>(bytes)).c_str());
      if (!role.note.empty()) out += "          " + role.note + "\n";
    }
  };
  add("memory", plan.memory);
  add("GPU", plan.device);
  add("disk", plan.disk);
  return out;
}

std::string MemoryPlanToJson(const MemoryPlan& plan) {
  using Json = nlohmann::ordered_json;
  const auto list = [](const std::vector<RolePlan>& roles) {
    Json out = Json::array();
    for (const RolePlan& role : roles) {
      Json items = Json::object();
      for (const auto& [item, bytes] : role.items) items[item] = bytes;
      out.push_back({{"role", role.role},
                     {"processes", role.processes},
                     {"bytes", role.peak()},
                     {"items", items},
                     {"note", role.note}});
    }
    return out;
  };
  const Json json = {{"parameters", plan.parameters},
                     {"memory", list(plan.memory)},
                     {"gpu_memory", list(plan.device)},
                     {"disk", list(plan.disk)}};
  return json.dump(2) + "\n";
}

}  // namespace quern
