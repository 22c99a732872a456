#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/compression.h"

namespace quern {

// Options of an environment or a player: names and texts, checked by whoever owns them.
using OptionMap = std::map<std::string, std::string>;

// The optimiser and its data, the same for every method.
struct TrainSection {
  int64_t max_steps = 500;
  double learning_rate = 3e-4;
  int64_t warmup_steps = 20;
  std::string lr_schedule = "cosine";  // cosine | linear | constant
  int64_t batch_size = 64;             // trajectories a step
  int64_t micro_batch_tokens = 4096;   // tokens a forward and backward pass; bounds memory, not the result
  double weight_decay = 0.01;
  double max_grad_norm = 1.0;
  double memory_loss = 0;            // weight of the cache entries needed, for models with selective attention
  std::string selector = "uniform";  // uniform | prioritised (by return) | fifo (each record once)
  double priority_exponent = 0.7;    // prioritised: probability ~ rank ^ -this
  int64_t window = 0;                // only the newest so many records of each class; 0: all
  double samples_per_insert = 0;     // a step waits until so many trajectories were stored for those drawn; 0: never
  int64_t min_records = 0;           // and the first one until there are so many
  double limiter_timeout_s = 300;    // it waits no longer
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.99;
  double adam_epsilon = 1e-8;
};

struct FilteredSftSection : TrainSection {
  double top_fraction = 0.1;        // of the trajectories, by return
  std::string start_from = "base";  // base | sft: what its weights start as
};

struct QSftSection : TrainSection {
  double beta = 16;                     // strength of the extracted policy (job key: qsft.beta)
  double gamma_turn = 0.99;             // discount where an utterance ends
  double gamma_token = 1.0;             // and inside it
  double polyak = 0.01;                 // the target model's share of the newest weights, a step
  std::string remainder = "dummy";      // dummy | uniform
  std::string rule = "ratio";           // ratio | paper
  double lambda_start = 0;              // share of the observed outcome in the target at a stage's first step ...
  double lambda_end = 0;                // ... and at its last
  double lambda_anneal = 1;             // the share of the stage over which it goes there
  std::string reward_scale = "linear";  // linear | exponential: how returns become targets in [0, 1]
  double reward_temperature = 1;        // exponential: reward that makes a factor e
  double support_epsilon = 0.01;
  double support_top_p = 0.95;
  std::string start_from = "behaviour";  // behaviour | base: what the value model's weights start as
};

// How one stage of a reasoning chain is sampled; what is left out is taken from the regenesis section.
struct ChainStageSection {
  double temperature = -1;
  double top_p = -1;
  int64_t max_tokens = 0;
  std::string stop;  // text that ends the stage; empty: what ends an utterance of the environment
};

// Where questions come from, if not from the job's environment as it is.
struct QuestionsSection {
  std::string name;   // of an environment; empty: the job's, with `options` over its own
  OptionMap options;  // every other key
};

// Self-made reasoning (ReGenesis): rounds of chains and of fine-tuning on those that were kept.
struct RegenesisSection : TrainSection {
  int64_t rounds = 1;
  QuestionsSection environment;
  int64_t questions = 0;               // a round; 0: all of them
  std::string guidelines = "default";  // default | none | a file, one a line
  std::string templates = "default";   // default | a file of [stage] sections
  std::vector<std::string> stages = {"adapt", "plan", "solve"};
  bool self_check = false;          // a stage `check` after them
  int64_t paths_per_question = 25;  // chains; the i-th uses guideline i, in turn
  int64_t max_kept = 5;             // paths a question
  std::string labels = "true";      // true: known answers | majority: the chains' own
  double min_majority_share = 0.5;  // of a question's chains
  bool hint = true;                 // a retry that shows the answer for questions that no chain solved
  int64_t max_path_tokens = 800;    // longer paths are not kept; 0: any length
  bool require_steps = false;       // keep numbered steps only
  std::string train_on = "round";   // round: the paths of this round | all: of all rounds so far
  double temperature = 0.85;
  double top_p = 0.9;
  int64_t max_tokens = 0;  // a stage; 0: what the environment allows an utterance
  ChainStageSection adapt;
  ChainStageSection plan;
  ChainStageSection solve;
  ChainStageSection check;
};

// A point of a mixture's schedule: `at` is progress of the stage in [0, 1], or a number of real records.
struct MixturePoint {
  double at = 0;
  double share = 0;
};

// c^2 of each class of generated data (learner/mixture.h); negative: measured by a probe.
struct MixtureShifts {
  double verified = -1;
  double hinted = -1;
  double unverified = -1;
};

// How much of every training batch's loss may come from generated data.
struct MixtureSection {
  std::string policy = "fixed";            // fixed | scheduled | controller | real_only
  double share = 0.5;                      // fixed
  std::vector<MixturePoint> schedule;      // scheduled: straight lines between these
  std::string schedule_over = "progress";  // progress | real_records
  double rho = 0.1;                        // controller: the floor under the loss, as a part of the excess of real data
  double omega_max = 1;
  double final_phase = 0.1;  // the last part of a stage that has real data only
  double sigma2d = -1;       // negative: measured by probes
  MixtureShifts c2;
  int64_t probe_steps = 0;           // of the largest probe
  std::vector<int64_t> probe_sizes;  // real records; empty: an eighth, a quarter and a half of them
  int64_t checks = 4;                // of the held-out loss in a stage
  double follow_tolerance = 0.02;    // nats
  double hinted_max = 0.2;           // of the batch
  int64_t real_records = 0;          // train on so many of the real records only; 0: all
};

// Shows model collapse: a first model, trained on a few real records, writes; then, for every number of real records,
// each rule of mixing trains a model from the start, and all are scored on held-out real data.
struct CollapseSection {
  std::vector<int64_t> real_records;  // empty: no such study
  std::vector<MixtureSection> rules;
  int64_t first_records = 100;  // real records of the first model
  int64_t generated = 1000;     // records that it writes
  double passes = 10;           // over the real records, a training: steps = passes * records / sft.batch_size
};

struct SamplingSection {
  double temperature = 1.0;
  int64_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
};

// What a training stage of an online round changes; a negative number keeps the method's own.
struct OnlineTrainSection {
  int64_t max_steps = -1;
  double learning_rate = -1;
  int64_t warmup_steps = 0;
};

struct OnlineSection {
  int64_t rounds = 0;
  int64_t episodes = 1000;    // a round
  int64_t max_staleness = 0;  // rounds the acting policy may be behind: 0 plays and trains in turn, 1 overlaps them
  OnlineTrainSection sft;
  OnlineTrainSection filtered_sft;
  OnlineTrainSection qsft;
};

// Questions that every policy is measured on: the job's environment with other options, or another one.
struct EvaluationSet {
  std::string name;
  QuestionsSection from;  // keys `environment` (its name) and every other key
  int64_t episodes = 0;   // 0: evaluate.episodes
};

struct EvaluateSection {
  int64_t episodes = 500;  // a policy
  std::vector<std::string> players = {"best"};
  std::string best_player = "best";  // the one whose mean the final table calls "best known"
  double temperature = -1;           // negative: as in `sampling`
  uint64_t seed = 1000003;           // tasks of evaluation, the same for every policy
  std::vector<EvaluationSet> sets;   // empty: the job's environment as it is
};

struct Requirement {
  std::string better;
  std::string than;
  double by_standard_errors = 2;
  std::string set;  // of evaluate.sets; empty: the first
};

struct CollectSection {
  std::string player;
  int64_t episodes = 0;
  OptionMap options;  // every other key: the player's own
};

// A self-made model: random weights, tokenizer made of the environment's vocabulary (or taken from a directory).
struct SelfMadeModel {
  std::string model_type = "llama";
  int64_t hidden_size = 0;  // 0: no self-made model is asked for
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 2;
  int64_t num_attention_heads = 4;
  int64_t num_key_value_heads = 0;  // 0: as many as heads
  int64_t head_dim = 0;             // 0: hidden_size / heads
  int64_t max_position_embeddings = 512;
  double rope_theta = 10000.0;
  double rms_norm_eps = 1e-5;
  double initializer_range = 0.02;
  bool tie_word_embeddings = true;
  bool selective_attention = false;
};

struct RolloutSection {
  int64_t concurrent_episodes = 64;  // an actor
  int64_t task_episodes = 64;        // a lease
  double lease_s = 120;
  // Keys and values of an actor. 0: room for concurrent_episodes episodes of all the model's positions, 2048 at most.
  int64_t kv_cache_mib = 0;
  int64_t max_failures =
      3;  // a task that failed on this many actors fails the job; an episode that kills so many is left out
  double max_quarantined = 0.01;  // share of a stage's episodes that may be left out so
};

// Data-parallel training: processes of this machine that share every batch (docs/methods.md).
struct LearnerSection {
  int64_t ranks = 1;
  int64_t shards = 0;  // parts of a batch whose gradients are summed in a fixed order; 0: as many as ranks
};

// Of the learner, within a train stage.
struct CheckpointSection {
  int64_t every_steps = 0;    // 0: by time alone
  double every_seconds = 60;  // 0: by steps alone
  int64_t keep = 2;
};

// What the optimizer keeps (docs/methods.md): of the learner, whatever `precision` is.
struct OptimizerSection {
  std::string moments = "fp32";         // fp32 | fp8
  int64_t block = 0;                    // elements that share a scale of FP8 moments; 0: a weight matrix
  std::string master_weights = "fp32";  // fp32 | bf16
};

// Retention of a running store: the oldest generated records go until both limits hold.
struct ReplaySection {
  int64_t max_bytes = 0;  // 0: any number
  double max_age_s = 0;   // 0: any age
  bool prune_real = false;
  double prune_every_s = 60;
};

struct NetworkSection {
  std::string transport = "ipc";  // ipc | tcp (CURVE)
  std::string host = "127.0.0.1";
  int64_t coordinator_port = 7801;
  int64_t replay_port = 7802;
  int64_t weights_port = 0;  // that actors on other hosts fetch weights from; 0: a free one
  // Metrics and the page: docs/metrics.md.
  std::string http_host = "127.0.0.1";  // an IP address; another than loopback needs a token
  int64_t http_port = 0;                // of the coordinator; 0: a free one, as the others have
  std::string http_token_file;          // its first line is asked of every request
};

struct CompressionSection : Compression {
  double key_ratio = 0;  // instead of key_channels: this share of the model's; 0: not. CheckJob makes it a number
};

// The whole job, every default filled in. Keys are those of the fields; docs/cli.md shows them all.
struct Job {
  std::string name;
  uint64_t seed = 0;
  std::string output_dir;          // the run directory; empty: runs/NAME-N
  std::string base_dir;            // absolute; relative files of the job are looked up here (the job file's folder)
  std::string precision = "bf16";  // bf16 | fp32 | fp8 | fp8_delayed | fp8_delayed_gaudi
  std::string smooth_swiglu = "channel";  // of FP8 precisions: channel | row | off
  OptimizerSection optimizer;
  LearnerSection learner;
  std::string device = "auto";  // auto | cpu | cuda | cuda:N
  int64_t threads = 0;          // of the learner; 0: all cores
  int64_t actor_threads = 0;    // of one actor; 0: cores / actors, at least 1
  int64_t actors = 2;
  std::string model_name_or_path;               // a Hugging Face directory, or `model` below
  std::string chat_template = "auto";           // auto: the model directory's, where it has one | none
  SelfMadeModel model_config;                   // key model.config
  bool model_selective_attention = false;       // key model.selective_attention: of a model that was trained without
  std::string model_tokenizer = "environment";  // key model.tokenizer: environment, or a directory with tokenizer.json
  std::string environment;                      // key environment.name
  OptionMap environment_options;                // every other key of `environment`
  std::vector<CollectSection> collect;          // key data.collect
  std::vector<std::string> import_files;        // key data.import: JSON Lines
  std::vector<CollectSection> heldout;          // key data.heldout: real records that are scored, never trained on
  std::vector<std::string> heldout_files;       // key data.heldout_import: the same from JSON Lines
  std::string method = "q_sft";                 // q_sft | filtered_sft | sft | regenesis
  std::vector<std::string> compare;
  TrainSection sft;
  FilteredSftSection filtered_sft;
  QSftSection qsft;  // key qsft (q_sft is understood as well)
  RegenesisSection regenesis;
  MixtureSection mixture;
  CollapseSection collapse;
  SamplingSection sampling;
  CompressionSection compression;     // of every policy that plays
  int64_t max_completion_length = 0;  // tokens an utterance; 0: what the environment allows
  OnlineSection online;
  EvaluateSection evaluate;
  std::vector<Requirement> require;
  RolloutSection rollout;
  CheckpointSection checkpoint;
  NetworkSection network;
  ReplaySection replay;
  double progress_timeout_s = 300;  // no progress of any stage for this long fails the job
  int64_t max_restarts = 5;         // of roles that died, all together
};

// What a rule of `collapse` is called in names of stages and rows: "controller", "fixed_0.5".
std::string RuleName(const MixtureSection& rule);
// The row of the final table of a rule and a number of real records: "fixed_0.5@1000".
std::string CollapseRow(const MixtureSection& rule, int64_t real_records);

// Reads YAML (JSON is YAML) and applies "key.path=value" overrides, in order. Every error is one line: the file and
// line, or the override, and the nearest key when the key is unknown. Paths in overrides are relative to the working
// directory.
Result<Job> LoadJob(const std::string& path, const std::vector<std::string>& overrides);
// The same from memory; `name` stands for the file in errors, base_dir must be absolute.
Result<Job> ParseJob(const std::string& text, const std::string& name, const std::string& base_dir,
                     const std::vector<std::string>& overrides);
// The resolved job as JSON, two spaces of indentation, keys in declaration order. LoadJob of it gives the same job.
std::string JobToJson(const Job& job);

}  // namespace quern
