#pragma once

#include "service/job.h"

// The fields of every section of a job, once: service/job.cpp reads and writes through these. A visitor has
//   void Field(const char* key, T& value)          a scalar, a list of texts, or a section with a Fields() of its own
//   void List(const char* key, std::vector<T>&)    a list of sections
//   void Rest(OptionMap&)                          every key that was not named before it
namespace quern {

template <class V>
void Fields(V& v, TrainSection& o) {
  v.Field("max_steps", o.max_steps);
  v.Field("learning_rate", o.learning_rate);
  v.Field("warmup_steps", o.warmup_steps);
  v.Field("lr_schedule", o.lr_schedule);
  v.Field("batch_size", o.batch_size);
  v.Field("micro_batch_tokens", o.micro_batch_tokens);
  v.Field("weight_decay", o.weight_decay);
  v.Field("max_grad_norm", o.max_grad_norm);
  v.Field("memory_loss", o.memory_loss);
  v.Field("selector", o.selector);
  v.Field("priority_exponent", o.priority_exponent);
  v.Field("window", o.window);
  v.Field("samples_per_insert", o.samples_per_insert);
  v.Field("min_records", o.min_records);
  v.Field("limiter_timeout_s", o.limiter_timeout_s);
  v.Field("adam_beta1", o.adam_beta1);
  v.Field("adam_beta2", o.adam_beta2);
  v.Field("adam_epsilon", o.adam_epsilon);
}

template <class V>
void Fields(V& v, FilteredSftSection& o) {
  v.Field("top_fraction", o.top_fraction);
  v.Field("start_from", o.start_from);
  Fields(v, static_cast<TrainSection&>(o));
}

template <class V>
void Fields(V& v, QSftSection& o) {
  v.Field("beta", o.beta);
  v.Field("gamma_turn", o.gamma_turn);
  v.Field("gamma_token", o.gamma_token);
  v.Field("polyak", o.polyak);
  v.Field("remainder", o.remainder);
  v.Field("rule", o.rule);
  v.Field("lambda_start", o.lambda_start);
  v.Field("lambda_end", o.lambda_end);
  v.Field("lambda_anneal", o.lambda_anneal);
  v.Field("reward_scale", o.reward_scale);
  v.Field("reward_temperature", o.reward_temperature);
  v.Field("support_epsilon", o.support_epsilon);
  v.Field("support_top_p", o.support_top_p);
  v.Field("start_from", o.start_from);
  Fields(v, static_cast<TrainSection&>(o));
}

template <class V>
void Fields(V& v, ChainStageSection& o) {
  v.Field("temperature", o.temperature);
  v.Field("top_p", o.top_p);
  v.Field("max_tokens", o.max_tokens);
  v.Field("stop", o.stop);
}

template <class V>
void Fields(V& v, QuestionsSection& o) {
  v.Field("name", o.name);
  v.Rest(o.options);
}

template <class V>
void Fields(V& v, RegenesisSection& o) {
  v.Field("rounds", o.rounds);
  v.Field("environment", o.environment);
  v.Field("questions", o.questions);
  v.Field("guidelines", o.guidelines);
  v.Field("templates", o.templates);
  v.Field("stages", o.stages);
  v.Field("self_check", o.self_check);
  v.Field("paths_per_question", o.paths_per_question);
  v.Field("max_kept", o.max_kept);
  v.Field("labels", o.labels);
  v.Field("min_majority_share", o.min_majority_share);
  v.Field("hint", o.hint);
  v.Field("max_path_tokens", o.max_path_tokens);
  v.Field("require_steps", o.require_steps);
  v.Field("train_on", o.train_on);
  v.Field("temperature", o.temperature);
  v.Field("top_p", o.top_p);
  v.Field("max_tokens", o.max_tokens);
  v.Field("adapt", o.adapt);
  v.Field("plan", o.plan);
  v.Field("solve", o.solve);
  v.Field("check", o.check);
  Fields(v, static_cast<TrainSection&>(o));
}

template <class V>
void Fields(V& v, MixturePoint& o) {
  v.Field("at", o.at);
  v.Field("share", o.share);
}

template <class V>
void Fields(V& v, MixtureShifts& o) {
  v.Field("verified", o.verified);
  v.Field("hinted", o.hinted);
  v.Field("unverified", o.unverified);
}

template <class V>
void Fields(V& v, MixtureSection& o) {
  v.Field("policy", o.policy);
  v.Field("share", o.share);
  v.List("schedule", o.schedule);
  v.Field("schedule_over", o.schedule_over);
  v.Field("rho", o.rho);
  v.Field("omega_max", o.omega_max);
  v.Field("final_phase", o.final_phase);
  v.Field("sigma2d", o.sigma2d);
  v.Field("c2", o.c2);
  v.Field("probe_steps", o.probe_steps);
  v.Field("probe_sizes", o.probe_sizes);
  v.Field("checks", o.checks);
  v.Field("follow_tolerance", o.follow_tolerance);
  v.Field("hinted_max", o.hinted_max);
  v.Field("real_records", o.real_records);
}

template <class V>
void Fields(V& v, CollapseSection& o) {
  v.Field("real_records", o.real_records);
  v.List("rules", o.rules);
  v.Field("first_records", o.first_records);
  v.Field("generated", o.generated);
  v.Field("passes", o.passes);
}

template <class V>
void Fields(V& v, CompressionSection& o) {
  v.Field("budgets", o.budgets);
  v.Field("key_channels", o.key_channels);
  v.Field("key_ratio", o.key_ratio);
  v.Field("query_window", o.query_window);
  v.Field("recent", o.recent);
}

template <class V>
void Fields(V& v, SamplingSection& o) {
  v.Field("temperature", o.temperature);
  v.Field("top_k", o.top_k);
  v.Field("top_p", o.top_p);
  v.Field("min_p", o.min_p);
  v.Field("repetition_penalty", o.repetition_penalty);
}

template <class V>
void Fields(V& v, OnlineTrainSection& o) {
  v.Field("max_steps", o.max_steps);
  v.Field("learning_rate", o.learning_rate);
  v.Field("warmup_steps", o.warmup_steps);
}

template <class V>
void Fields(V& v, OnlineSection& o) {
  v.Field("rounds", o.rounds);
  v.Field("episodes", o.episodes);
  v.Field("max_staleness", o.max_staleness);
  v.Field("sft", o.sft);
  v.Field("filtered_sft", o.filtered_sft);
  v.Field("qsft", o.qsft);
}

template <class V>
void Fields(V& v, EvaluationSet& o) {
  v.Field("name", o.name);
  v.Field("environment", o.from.name);
  v.Field("episodes", o.episodes);
  v.Rest(o.from.options);
}

template <class V>
void Fields(V& v, EvaluateSection& o) {
  v.Field("episodes", o.episodes);
  v.Field("players", o.players);
  v.Field("best_player", o.best_player);
  v.Field("temperature", o.temperature);
  v.Field("seed", o.seed);
  v.List("sets", o.sets);
}

template <class V>
void Fields(V& v, Requirement& o) {
  v.Field("better", o.better);
  v.Field("than", o.than);
  v.Field("by_standard_errors", o.by_standard_errors);
  v.Field("set", o.set);
}

template <class V>
void Fields(V& v, CollectSection& o) {
  v.Field("player", o.player);
  v.Field("episodes", o.episodes);
  v.Rest(o.options);
}

template <class V>
void Fields(V& v, SelfMadeModel& o) {
  v.Field("model_type", o.model_type);
  v.Field("hidden_size", o.hidden_size);
  v.Field("intermediate_size", o.intermediate_size);
  v.Field("num_hidden_layers", o.num_hidden_layers);
  v.Field("num_attention_heads", o.num_attention_heads);
  v.Field("num_key_value_heads", o.num_key_value_heads);
  v.Field("head_dim", o.head_dim);
  v.Field("max_position_embeddings", o.max_position_embeddings);
  v.Field("rope_theta", o.rope_theta);
  v.Field("rms_norm_eps", o.rms_norm_eps);
  v.Field("initializer_range", o.initializer_range);
  v.Field("tie_word_embeddings", o.tie_word_embeddings);
  v.Field("selective_attention", o.selective_attention);
}

template <class V>
void Fields(V& v, RolloutSection& o) {
  v.Field("concurrent_episodes", o.concurrent_episodes);
  v.Field("task_episodes", o.task_episodes);
  v.Field("lease_s", o.lease_s);
  v.Field("kv_cache_mib", o.kv_cache_mib);
  v.Field("max_failures", o.max_failures);
  v.Field("max_quarantined", o.max_quarantined);
}

template <class V>
void Fields(V& v, LearnerSection& o) {
  v.Field("ranks", o.ranks);
  v.Field("shards", o.shards);
}

template <class V>
void Fields(V& v, CheckpointSection& o) {
  v.Field("every_steps", o.every_steps);
  v.Field("every_seconds", o.every_seconds);
  v.Field("keep", o.keep);
}

template <class V>
void Fields(V& v, ReplaySection& o) {
  v.Field("max_bytes", o.max_bytes);
  v.Field("max_age_s", o.max_age_s);
  v.Field("prune_real", o.prune_real);
  v.Field("prune_every_s", o.prune_every_s);
}

template <class V>
void Fields(V& v, NetworkSection& o) {
  v.Field("transport", o.transport);
  v.Field("host", o.host);
  v.Field("coordinator_port", o.coordinator_port);
  v.Field("replay_port", o.replay_port);
  v.Field("weights_port", o.weights_port);
  v.Field("http_host", o.http_host);
  v.Field("http_port", o.http_port);
  v.Field("http_token_file", o.http_token_file);
}

// Sections of the file that are plain fields of Job.
struct ModelSection {
  SelfMadeModel& config;
  std::string& tokenizer;
  bool& selective_attention;
};
template <class V>
void Fields(V& v, ModelSection& o) {
  v.Field("config", o.config);
  v.Field("tokenizer", o.tokenizer);
  v.Field("selective_attention", o.selective_attention);
}

template <class V>
void Fields(V& v, OptimizerSection& o) {
  v.Field("moments", o.moments);
  v.Field("block", o.block);
  v.Field("master_weights", o.master_weights);
}

struct EnvironmentSection {
  std::string& name;
  OptionMap& options;
};
template <class V>
void Fields(V& v, EnvironmentSection& o) {
  v.Field("name", o.name);
  v.Rest(o.options);
}

struct DataSection {
  std::vector<CollectSection>& collect;
  std::vector<std::string>& import_files;
  std::vector<CollectSection>& heldout;
  std::vector<std::string>& heldout_files;
};
template <class V>
void Fields(V& v, DataSection& o) {
  v.List("collect", o.collect);
  v.Field("import", o.import_files);
  v.List("heldout", o.heldout);
  v.Field("heldout_import", o.heldout_files);
}

template <class V>
void Fields(V& v, Job& o) {
  ModelSection model{o.model_config, o.model_tokenizer, o.model_selective_attention};
  EnvironmentSection environment{o.environment, o.environment_options};
  DataSection data{o.collect, o.import_files, o.heldout, o.heldout_files};
  v.Field("name", o.name);
  v.Field("seed", o.seed);
  v.Field("output_dir", o.output_dir);
  v.Field("base_dir", o.base_dir);
  v.Field("precision", o.precision);
  v.Field("smooth_swiglu", o.smooth_swiglu);
  v.Field("optimizer", o.optimizer);
  v.Field("learner", o.learner);
  v.Field("device", o.device);
  v.Field("threads", o.threads);
  v.Field("actor_threads", o.actor_threads);
  v.Field("actors", o.actors);
  v.Field("model_name_or_path", o.model_name_or_path);
  v.Field("chat_template", o.chat_template);
  v.Field("model", model);
  v.Field("environment", environment);
  v.Field("data", data);
  v.Field("method", o.method);
  v.Field("compare", o.compare);
  v.Field("sft", o.sft);
  v.Field("filtered_sft", o.filtered_sft);
  v.Field("qsft", o.qsft);
  v.Field("regenesis", o.regenesis);
  v.Field("mixture", o.mixture);
  v.Field("collapse", o.collapse);
  v.Field("sampling", o.sampling);
  v.Field("compression", o.compression);
  v.Field("max_completion_length", o.max_completion_length);
  v.Field("online", o.online);
  v.Field("evaluate", o.evaluate);
  v.List("require", o.require);
  v.Field("rollout", o.rollout);
  v.Field("checkpoint", o.checkpoint);
  v.Field("network", o.network);
  v.Field("replay", o.replay);
  v.Field("progress_timeout_s", o.progress_timeout_s);
  v.Field("max_restarts", o.max_restarts);
}

}  // namespace quern
