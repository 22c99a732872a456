#include "service/job_check.h"

#include <algorithm>

#include "base/strings.h"
#include "compute/device.h"
#include "service/job_fields.h"
#include "service/limiter_check.h"

namespace quern {

namespace {

class Checker {
 public:
  explicit Checker(std::string& key) : key_(key) {}
  bool Fail(const std::string& key, const std::string& problem) {
    if (problem_.empty()) {
      key_ = key;
      problem_ = problem;
    }
    return false;
  }
  void OneOf(const std::string& key, const std::string& value, const std::vector<std::string>& names) {
    if (std::find(names.begin(), names.end(), value) != names.end()) return;
    Fail(key, "must be one of " + StrJoin(names, ", ") + ", not '" + value + "'");
  }
  void AtLeast(const std::string& key, double value, double least) {
    if (value < least) Fail(key, StrCat("must be ", least, " or more, not ", value));
  }
  void Between(const std::string& key, double value, double least, double most) {
    if (value < least || value > most) Fail(key, StrCat("must be between ", least, " and ", most, ", not ", value));
  }
  const std::string& problem() const { return problem_; }

 private:
  std::string& key_;
  std::string problem_;
};

void CheckTrain(Checker& check, const std::string& section, const TrainSection& o) {
  check.AtLeast(section + ".max_steps", static_cast<double>(o.max_steps), 1);
  if (o.learning_rate <= 0)
    check.Fail(section + ".learning_rate", StrCat("must be more than 0, not ", o.learning_rate));
  check.AtLeast(section + ".warmup_steps", static_cast<double>(o.warmup_steps), 0);
  check.OneOf(section + ".lr_schedule", o.lr_schedule, {"cosine", "linear", "constant"});
  check.Between(section + ".batch_size", static_cast<double>(o.batch_size), 1, 65536);
  check.AtLeast(section + ".micro_batch_tokens", static_cast<double>(o.micro_batch_tokens), 1);
  check.AtLeast(section + ".weight_decay", o.weight_decay, 0);
  check.AtLeast(section + ".max_grad_norm", o.max_grad_norm, 0);
  check.AtLeast(section + ".memory_loss", o.memory_loss, 0);
  check.OneOf(section + ".selector", o.selector, {"uniform", "prioritised", "fifo"});
  check.Between(section + ".priority_exponent", o.priority_exponent, 0, 16);
  check.AtLeast(section + ".window", static_cast<double>(o.window), 0);
  check.AtLeast(section + ".samples_per_insert", o.samples_per_insert, 0);
  check.AtLeast(section + ".min_records", static_cast<double>(o.min_records), 0);
  check.AtLeast(section + ".limiter_timeout_s", o.limiter_timeout_s, 0);
  check.Between(section + ".adam_beta1", o.adam_beta1, 0, 0.99999);
  check.Between(section + ".adam_beta2", o.adam_beta2, 0, 0.99999999);
}

void CheckModel(Checker& check, const Job& job) {
  if (!job.model_name_or_path.empty()) return;
  if (job.model_selective_attention)
    check.Fail("model.selective_attention",
               "is for a model_name_or_path; a self-made model has model.config.selective_attention");
  const SelfMadeModel& m = job.model_config;
  if (m.hidden_size == 0) {
    check.Fail("model_name_or_path",
               "is missing: give a Hugging Face directory, or model.config for a self-made model");
    return;
  }
  check.OneOf("model.config.model_type", m.model_type, {"llama", "mistral", "qwen2", "qwen3"});
  check.Between("model.config.hidden_size", static_cast<double>(m.hidden_size), 2, 65536);
  check.Between("model.config.num_hidden_layers", static_cast<double>(m.num_hidden_layers), 1, 1024);
  check.Between("model.config.num_attention_heads", static_cast<double>(m.num_attention_heads), 1, 1024);
  check.AtLeast("model.config.intermediate_size", static_cast<double>(m.intermediate_size), 0);
  check.Between("model.config.max_position_embeddings", static_cast<double>(m.max_position_embeddings), 8, 1 << 20);
  if (m.num_attention_heads > 0 && m.head_dim == 0 && m.hidden_size % m.num_attention_heads != 0)
    check.Fail("model.config.hidden_size",
               StrCat("must be a multiple of num_attention_heads, ", m.num_attention_heads));
  if (m.num_key_value_heads < 0 || (m.num_key_value_heads > 0 && m.num_attention_heads % m.num_key_value_heads != 0))
    check.Fail("model.config.num_key_value_heads", StrCat("must divide num_attention_heads, ", m.num_attention_heads));
}

void CheckMixture(Checker& check, const Job& job, const std::string& section, const MixtureSection& m) {
  const bool probes = m.probe_steps > 0 && !(job.heldout.empty() && job.heldout_files.empty());
  const bool shifts = m.c2.verified >= 0 || m.c2.hinted >= 0 || m.c2.unverified >= 0;
  const bool real_data = !job.collect.empty() || !job.import_files.empty();
  if (m.policy == "controller" && real_data && !probes && (m.sigma2d < 0 || !shifts))
    check.Fail(section + ".policy",
               "controller needs probes (probe_steps, and data.heldout to score them on), or sigma2d and c2");
  check.OneOf(section + ".policy", m.policy, {"fixed", "scheduled", "controller", "real_only"});
  check.Between(section + ".share", m.share, 0, 1);
  check.OneOf(section + ".schedule_over", m.schedule_over, {"progress", "real_records"});
  if (m.policy == "scheduled" && m.schedule.empty())
    check.Fail(section + ".schedule", "is empty: give points {at, share}");
  for (size_t i = 0; i < m.schedule.size(); ++i) {
    const std::string key = StrCat(section, ".schedule.", i);
    check.Between(key + ".share", m.schedule[i].share, 0, 1);
    check.Between(key + ".at", m.schedule[i].at, 0, m.schedule_over == "progress" ? 1 : 1e15);
    if (i > 0 && m.schedule[i].at <= m.schedule[i - 1].at) check.Fail(key + ".at", "must be more than the one before");
  }
  check.Between(section + ".rho", m.rho, 0, 100);
  check.Between(section + ".omega_max", m.omega_max, 0, 1);
  check.Between(section + ".final_phase", m.final_phase, 0, 1);
  check.AtLeast(section + ".probe_steps", static_cast<double>(m.probe_steps), 0);
  for (const int64_t size : m.probe_sizes) check.AtLeast(section + ".probe_sizes", static_cast<double>(size), 1);
  check.Between(section + ".checks", static_cast<double>(m.checks), 0, 1e6);
  check.AtLeast(section + ".follow_tolerance", m.follow_tolerance, 0);
  check.Between(section + ".hinted_max", m.hinted_max, 0, 1);
  check.AtLeast(section + ".real_records", static_cast<double>(m.real_records), 0);
}

void CheckCollapse(Checker& check, const Job& job) {
  const CollapseSection& c = job.collapse;
  if (c.real_records.empty()) return;
  if (job.method != "sft" || !job.compare.empty() || job.online.rounds > 0)
    check.Fail("collapse", "goes with method sft alone: no compare, no online rounds");
  if ((job.collect.empty() && job.import_files.empty()) || (job.heldout.empty() && job.heldout_files.empty()))
    check.Fail("collapse", "needs real records (data.collect, data.import) and others to score on (data.heldout)");
  if (c.rules.empty()) check.Fail("collapse.rules", "is empty: give mixtures, e.g. [{policy: fixed}]");
  std::vector<std::string> names;
  for (size_t i = 0; i < c.rules.size(); ++i) {
    const std::string key = StrCat("collapse.rules.", i);
    CheckMixture(check, job, key, c.rules[i]);
    if (std::find(names.begin(), names.end(), RuleName(c.rules[i])) != names.end())
      check.Fail(key, "is there twice: " + RuleName(c.rules[i]));
    names.push_back(RuleName(c.rules[i]));
  }
  for (const int64_t records : c.real_records) check.AtLeast("collapse.real_records", static_cast<double>(records), 1);
  check.AtLeast("collapse.first_records", static_cast<double>(c.first_records), 1);
  check.Between("collapse.generated", static_cast<double>(c.generated), 1, 1e9);
  check.Between("collapse.passes", c.passes, 1e-3, 1e6);
}

void CheckData(Checker& check, const Job& job) {
  for (size_t i = 0; i < job.heldout.size(); ++i) {
    const std::string key = StrCat("data.heldout.", i);
    if (job.heldout[i].player.empty()) check.Fail(key, "names no player");
    check.Between(key + ".episodes", static_cast<double>(job.heldout[i].episodes), 1, 1e9);
  }
  for (size_t i = 0; i < job.collect.size(); ++i) {
    const std::string key = StrCat("data.collect.", i);
    if (job.collect[i].player.empty()) check.Fail(key, "names no player");
    check.Between(key + ".episodes", static_cast<double>(job.collect[i].episodes), 1, 1e9);
  }
  if (job.collect.empty() && job.import_files.empty() && job.online.rounds == 0 && job.method != "regenesis")
    check.Fail("data", "is empty: give data.collect (scripted players), data.import (JSON Lines) or online.rounds");
}

void CheckRegenesis(Checker& check, const Job& job) {
  const RegenesisSection& o = job.regenesis;
  const std::string section = "regenesis.";
  CheckTrain(check, "regenesis", o);
  check.Between(section + "rounds", static_cast<double>(o.rounds), 1, 1000);
  check.AtLeast(section + "questions", static_cast<double>(o.questions), 0);
  const std::vector<std::string> known = {"adapt", "plan", "solve"};
  size_t place = 0;
  for (size_t i = 0; i < o.stages.size(); ++i) {
    const std::string key = StrCat(section, "stages.", i);
    check.OneOf(key, o.stages[i], known);
    const auto at = static_cast<size_t>(std::find(known.begin(), known.end(), o.stages[i]) - known.begin());
    if (at < place) check.Fail(key, "comes too late: the order is adapt, plan, solve");
    place = at + 1;
  }
  if (o.stages.empty() || o.stages.back() != "solve") check.Fail(section + "stages", "must end with solve");
  check.Between(section + "paths_per_question", static_cast<double>(o.paths_per_question), 1, 4096);
  check.Between(section + "max_kept", static_cast<double>(o.max_kept), 1, 4096);
  check.OneOf(section + "labels", o.labels, {"true", "majority"});
  check.Between(section + "min_majority_share", o.min_majority_share, 0, 1);
  check.AtLeast(section + "max_path_tokens", static_cast<double>(o.max_path_tokens), 0);
  check.OneOf(section + "train_on", o.train_on, {"round", "all"});
  check.AtLeast(section + "temperature", o.temperature, 0);
  check.Between(section + "top_p", o.top_p, 1e-6, 1);
  check.Between(section + "max_tokens", static_cast<double>(o.max_tokens), 0, 1 << 20);
  for (const auto& [name, stage] : {std::pair("adapt", &o.adapt), std::pair("plan", &o.plan),
                                    std::pair("solve", &o.solve), std::pair("check", &o.check)}) {
    check.Between(section + name + ".top_p", stage->top_p, -1, 1);
    check.Between(section + name + ".max_tokens", static_cast<double>(stage->max_tokens), 0, 1 << 20);
  }
  if (!o.solve.stop.empty())
    check.Fail(section + "solve.stop", "is not possible: a path ends as an answer of evaluation does");
}

void CheckSets(Checker& check, const Job& job) {
  std::vector<std::string> names;
  for (size_t i = 0; i < job.evaluate.sets.size(); ++i) {
    const EvaluationSet& set = job.evaluate.sets[i];
    const std::string key = StrCat("evaluate.sets.", i);
    if (set.name.empty() || set.name.find_first_of("@/: ") != std::string::npos)
      check.Fail(key, "needs a name without '@', '/', ':' and spaces, not '" + set.name + "'");
    if (std::find(names.begin(), names.end(), set.name) != names.end())
      check.Fail(key, "has the name of another set, '" + set.name + "'");
    names.push_back(set.name);
    check.Between(key + ".episodes", static_cast<double>(set.episodes), 0, 1e9);
  }
}

void CheckRequirements(Checker& check, const Job& job) {
  std::vector<std::string> names = job.compare;
  names.push_back(job.method);
  names.push_back(job.method + "_online");
  names.push_back("data");
  names.push_back("base");
  for (const std::string& player : job.evaluate.players) names.push_back("player:" + player);
  names.push_back("sft");
  std::vector<std::string> sets;
  for (const EvaluationSet& set : job.evaluate.sets) sets.push_back(set.name);
  for (const int64_t records : job.collapse.real_records)
    for (const MixtureSection& rule : job.collapse.rules) names.push_back(CollapseRow(rule, records));
  for (size_t i = 0; i < job.require.size(); ++i) {
    const std::string key = StrCat("require.", i);
    check.OneOf(key + ".better", job.require[i].better, names);
    check.OneOf(key + ".than", job.require[i].than, names);
    if (!job.require[i].set.empty()) check.OneOf(key + ".set", job.require[i].set, sets);
  }
}

}  // namespace

std::string FindProblem(const Job& job, std::string& key) {
  Checker check(key);
  const auto plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
  };
  if (job.name.empty() || job.name.size() > 64 || job.name[0] == '.' ||
      !std::all_of(job.name.begin(), job.name.end(), plain))
    check.Fail("name", "must be 1 to 64 letters, digits, '-', '_' or '.', not '" + job.name + "'");
  check.AtLeast("replay.max_bytes", static_cast<double>(job.replay.max_bytes), 0);
  check.AtLeast("replay.max_age_s", job.replay.max_age_s, 0);
  check.AtLeast("replay.prune_every_s", job.replay.prune_every_s, 0.1);
  check.OneOf("precision", job.precision, {"bf16", "fp32", "fp8", "fp8_delayed", "fp8_delayed_gaudi"});
  check.OneOf("smooth_swiglu", job.smooth_swiglu, {"channel", "row", "off"});
  check.OneOf("optimizer.moments", job.optimizer.moments, {"fp32", "fp8"});
  check.OneOf("optimizer.master_weights", job.optimizer.master_weights, {"fp32", "bf16"});
  check.AtLeast("optimizer.block", static_cast<double>(job.optimizer.block), 0);
  if (!IsDeviceWord(job.device)) check.Fail("device", "must be auto, cpu, cuda or cuda:N, not '" + job.device + "'");
  check.OneOf("chat_template", job.chat_template, {"auto", "none"});
  check.Between("threads", static_cast<double>(job.threads), 0, 1024);
  check.Between("actor_threads", static_cast<double>(job.actor_threads), 0, 1024);
  check.Between("actors", static_cast<double>(job.actors), job.network.transport == "tcp" ? 0 : 1, 256);
  CheckModel(check, job);
  if (job.environment.empty()) check.Fail("environment.name", "is missing");
  CheckData(check, job);
  check.OneOf("method", job.method, {"q_sft", "filtered_sft", "sft", "regenesis"});
  std::vector<std::string> others = {"sft", "filtered_sft", "q_sft"};
  if (job.method == "regenesis") others.insert(others.end(), {"star", "majority"});
  for (size_t i = 0; i < job.compare.size(); ++i) check.OneOf(StrCat("compare.", i), job.compare[i], others);
  CheckRegenesis(check, job);
  CheckSets(check, job);
  if (job.method == "regenesis" && job.online.rounds > 0)
    check.Fail("online.rounds", "is not for method regenesis; its own are regenesis.rounds");
  for (const auto& [section, train] : {std::pair<const char*, const TrainSection&>("sft", job.sft),
                                       {"filtered_sft", job.filtered_sft},
                                       {"qsft", job.qsft}}) {
    CheckTrain(check, section, train);
    if (train.selector == "fifo" && train.window == 0 && (job.replay.max_bytes > 0 || job.replay.max_age_s > 0))
      check.Fail(StrCat(section, ".selector"),
                 "fifo needs a window where replay prunes: records that go would shift the order");
  }
  check.Between("filtered_sft.top_fraction", job.filtered_sft.top_fraction, 1e-6, 1);
  check.AtLeast("qsft.beta", job.qsft.beta, 0);
  check.Between("qsft.gamma_turn", job.qsft.gamma_turn, 0, 1);
  check.Between("qsft.gamma_token", job.qsft.gamma_token, 0, 1);
  check.Between("qsft.polyak", job.qsft.polyak, 0, 1);
  check.OneOf("qsft.remainder", job.qsft.remainder, {"dummy", "uniform"});
  check.OneOf("qsft.rule", job.qsft.rule, {"ratio", "paper"});
  check.Between("qsft.lambda_start", job.qsft.lambda_start, 0, 1);
  check.Between("qsft.lambda_end", job.qsft.lambda_end, 0, 1);
  check.Between("qsft.lambda_anneal", job.qsft.lambda_anneal, 1e-3, 1);
  check.OneOf("qsft.reward_scale", job.qsft.reward_scale, {"linear", "exponential"});
  check.Between("qsft.reward_temperature", job.qsft.reward_temperature, 1e-9, 1e9);
  check.Between("qsft.support_epsilon", job.qsft.support_epsilon, 1e-9, 1);
  check.Between("qsft.support_top_p", job.qsft.support_top_p, 0, 1);
  check.OneOf("filtered_sft.start_from", job.filtered_sft.start_from, {"base", "sft"});
  check.OneOf("qsft.start_from", job.qsft.start_from, {"behaviour", "base"});
  for (const int64_t budget : job.compression.budgets)
    check.AtLeast("compression.budgets", static_cast<double>(budget), 2);
  check.AtLeast("compression.key_channels", static_cast<double>(job.compression.key_channels), 0);
  check.Between("compression.key_ratio", job.compression.key_ratio, 0, 1);
  if (job.compression.key_ratio > 0 && job.compression.key_channels > 0)
    check.Fail("compression.key_ratio", "goes without compression.key_channels: one of them says how many");
  check.AtLeast("compression.query_window", static_cast<double>(job.compression.query_window), 1);
  check.AtLeast("compression.recent", static_cast<double>(job.compression.recent), 0);
  check.AtLeast("sampling.temperature", job.sampling.temperature, 0);
  check.AtLeast("sampling.top_k", static_cast<double>(job.sampling.top_k), 0);
  check.Between("sampling.top_p", job.sampling.top_p, 1e-6, 1);
  check.Between("sampling.min_p", job.sampling.min_p, 0, 1);
  check.Between("sampling.repetition_penalty", job.sampling.repetition_penalty, 0.01, 100);
  check.Between("max_completion_length", static_cast<double>(job.max_completion_length), 0, 1 << 20);
  check.Between("online.rounds", static_cast<double>(job.online.rounds), 0, 10000);
  check.Between("online.episodes", static_cast<double>(job.online.episodes), 1, 1e9);
  CheckMixture(check, job, "mixture", job.mixture);
  CheckCollapse(check, job);
  check.AtLeast("online.max_staleness", static_cast<double>(job.online.max_staleness), 0);
  check.Between("evaluate.episodes", static_cast<double>(job.evaluate.episodes), 0, 1e9);
  CheckRequirements(check, job);
  check.Between("rollout.concurrent_episodes", static_cast<double>(job.rollout.concurrent_episodes), 1, 65536);
  check.Between("rollout.task_episodes", static_cast<double>(job.rollout.task_episodes), 1, 1 << 20);
  check.Between("rollout.lease_s", job.rollout.lease_s, 1, 1e6);
  check.Between("rollout.kv_cache_mib", static_cast<double>(job.rollout.kv_cache_mib), 0, 1 << 24);
  check.Between("rollout.max_failures", static_cast<double>(job.rollout.max_failures), 1, 1000);
  check.Between("rollout.max_quarantined", job.rollout.max_quarantined, 0, 1);
  check.OneOf("network.transport", job.network.transport, {"ipc", "tcp"});
  check.Between("network.coordinator_port", static_cast<double>(job.network.coordinator_port), 1, 65535);
  check.Between("network.replay_port", static_cast<double>(job.network.replay_port), 1, 65535);
  check.Between("network.weights_port", static_cast<double>(job.network.weights_port), 0, 65535);
  check.Between("network.http_port", static_cast<double>(job.network.http_port), 0, 65535);
  const std::string& host = job.network.http_host;
  if (!host.starts_with("127.") && host != "::1" && job.network.http_token_file.empty())
    check.Fail("network.http_host",
               "'" + host + "' can be reached from other machines: give network.http_token_file as well");
  check.Between("learner.ranks", static_cast<double>(job.learner.ranks), 1, 64);
  check.Between("learner.shards", static_cast<double>(job.learner.shards), 0, 4096);
  const auto power_of_two = [](int64_t n) { return (n & (n - 1)) == 0; };
  if (const int64_t ranks = job.learner.ranks, shards = job.learner.shards;
      shards > 0 && shards != ranks &&
      (ranks == 0 || shards % ranks != 0 || !power_of_two(ranks) || !power_of_two(shards)))
    check.Fail("learner.shards", StrCat(shards, " for ", ranks,
                                        " ranks: as many as ranks, or a multiple of them, both "
                                        "powers of two"));
  check.AtLeast("progress_timeout_s", job.progress_timeout_s, 1);
  check.AtLeast("checkpoint.every_steps", static_cast<double>(job.checkpoint.every_steps), 0);
  check.AtLeast("checkpoint.every_seconds", job.checkpoint.every_seconds, 0);
  check.Between("checkpoint.keep", static_cast<double>(job.checkpoint.keep), 1, 1000);
  check.AtLeast("max_restarts", static_cast<double>(job.max_restarts), 0);
  const auto limited = [](const TrainSection& o) { return o.samples_per_insert > 0 || o.min_records > 0; };
  if (check.problem().empty() && (limited(job.sft) || limited(job.filtered_sft) || limited(job.qsft)))
    return FindStarvation(MakePlan(job), key);
  return check.problem();
}

}  // namespace quern
