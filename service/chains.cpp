#include "service/chains.h"

#include <algorithm>
#include <optional>

#include "actors/chain_program.h"
#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"
#include "methods/regenesis/templates.h"
#include "service/plan.h"
#include "service/result.h"

namespace quern {

namespace {

constexpr uint64_t kQuestionStream = 0x9E5710;

Result<ChainTemplates> TemplatesOf(const Job& job) {
  const std::string& file = job.regenesis.templates;
  if (file == "default") return DefaultTemplates();
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(file));
  return ParseTemplates(text, file);
}

Result<std::vector<std::string>> GuidelinesOf(const Job& job) {
  const std::string& file = job.regenesis.guidelines;
  if (file == "default") return DefaultGuidelines();
  if (file == "none") return std::vector<std::string>();
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(file));
  return ParseGuidelines(text, file);
}

v1::ChainStageSpec StageOf(const RegenesisSection& o, const std::string& name, const std::string& prompt) {
  const ChainStageSection& own = name == "adapt"   ? o.adapt
                                 : name == "plan"  ? o.plan
                                 : name == "check" ? o.check
                                                   : o.solve;
  v1::ChainStageSpec stage;
  stage.set_name(name);
  stage.set_prompt(prompt);
  stage.set_max_tokens(static_cast<uint32_t>(own.max_tokens > 0 ? own.max_tokens : o.max_tokens));
  stage.set_stop(own.stop);
  v1::SamplingParams& sampling = *stage.mutable_sampling();
  sampling.set_temperature(static_cast<float>(own.temperature >= 0 ? own.temperature : o.temperature));
  sampling.set_top_p(static_cast<float>(own.top_p > 0 ? own.top_p : o.top_p));
  sampling.set_repetition_penalty(1);
  return stage;
}

}  // namespace

std::vector<std::string> ArmsOf(const Job& job) {
  std::vector<std::string> arms;
  if (job.method != "regenesis") return arms;
  for (const char* arm : kArms) {
    const bool compared = std::find(job.compare.begin(), job.compare.end(), arm) != job.compare.end();
    if (job.method == arm || compared) arms.emplace_back(arm);
  }
  return arms;
}

Result<v1::ChainProgram> MakeChainProgram(const Job& job, const std::string& arm) {
  const RegenesisSection& o = job.regenesis;
  QUERN_ASSIGN_OR_RETURN(const ChainTemplates templates, TemplatesOf(job));
  v1::ChainProgram program;
  std::vector<std::string> stages = o.stages;
  if (arm == "regenesis") {
    QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> guidelines, GuidelinesOf(job));
    for (const std::string& guideline : guidelines) program.add_guidelines(guideline);
  } else {
    stages = {"solve"};
  }
  program.set_majority(arm == "majority" || (arm == "regenesis" && o.labels == "majority"));
  const bool planned = program.guidelines_size() > 0 || stages.front() != "solve";
  if (o.self_check && arm == "regenesis") stages.emplace_back("check");
  bool shows_hint = false;
  for (const std::string& name : stages) {
    const std::string& prompt = name == "adapt"   ? templates.adapt
                                : name == "plan"  ? templates.plan
                                : name == "check" ? templates.check
                                : planned         ? templates.solve
                                                  : templates.direct;
    shows_hint = shows_hint || HasPlaceholder(prompt, "hint");
    *program.add_stages() = StageOf(o, name, prompt);
  }
  const bool hint = o.hint && !program.majority();
  if (hint && !(shows_hint && HasPlaceholder(templates.hint, "answer")))
    return InvalidArgument(StrCat("regenesis.hint is on, but ", o.templates,
                                  " shows no {hint} in a stage, or no {answer} in [hint]; set regenesis.hint=false"));
  program.set_chains(static_cast<uint32_t>(o.paths_per_question));
  program.set_hinted_chains(hint ? program.chains() : 0);
  program.set_hint(templates.hint);
  program.set_opener(ExpandTemplate(templates.opener, {{"nl", "\n"}}));
  program.set_min_majority_share(o.min_majority_share);
  program.set_max_kept(static_cast<uint32_t>(o.max_kept));
  program.set_max_path_tokens(static_cast<uint32_t>(o.max_path_tokens));
  program.set_require_steps(o.require_steps);
  program.set_question_seed(MixSeed(job.seed, kQuestionStream));
  return program;
}

v1::EnvironmentSpec EnvironmentWith(const Job& job, const QuestionsSection& from) {
  v1::EnvironmentSpec spec;
  spec.set_name(from.name.empty() ? job.environment : from.name);
  if (from.name.empty())
    for (const auto& [key, value] : job.environment_options) (*spec.mutable_options())[key] = value;
  for (const auto& [key, value] : from.options) (*spec.mutable_options())[key] = value;
  return spec;
}

namespace {

// Of the paths that are learnt, from the first of them.
Result<double> MeanPathTokens(Replay& store, const std::string& tag, Deadline deadline) {
  v1::QueryRequest request;
  request.mutable_filter()->add_tags(tag);
  request.mutable_filter()->add_tags(kKeptTag);
  request.set_limit(1000);
  QUERN_ASSIGN_OR_RETURN(const v1::QueryReply reply, store.Query(request, deadline));
  double tokens = 0;
  for (const std::string& bytes : reply.trajectories()) {
    v1::Trajectory record;
    if (!record.ParseFromString(bytes)) return DataLoss("a record of " + tag + " does not parse");
    for (const v1::Turn& turn : record.turns()) tokens += turn.end() - turn.begin();
  }
  return tokens / std::max(1, reply.trajectories_size());
}

}  // namespace

Result<std::map<std::string, double>> MeasureChains(Replay& store, const std::string& tag, uint64_t questions,
                                                    uint32_t guidelines, Deadline deadline) {
  const auto measure = [&](const std::vector<std::string>& tags, const std::vector<std::string>& without,
                           std::optional<uint32_t> guideline, v1::Verdict verdict) {
    v1::StatsRequest request;
    v1::Filter& filter = *request.mutable_filter();
    filter.add_tags(tag);
    for (const std::string& with : tags) filter.add_tags(with);
    for (const std::string& other : without) filter.add_without_tags(other);
    if (guideline) filter.set_guideline(*guideline);
    filter.set_verdict(verdict);
    return store.Stats(request, deadline);
  };
  constexpr v1::Verdict kAny = v1::VERDICT_UNSPECIFIED;
  QUERN_ASSIGN_OR_RETURN(const v1::StatsReply own, measure({}, {kHintedTag}, std::nullopt, kAny));
  QUERN_ASSIGN_OR_RETURN(const v1::StatsReply hinted, measure({kHintedTag}, {}, std::nullopt, kAny));
  QUERN_ASSIGN_OR_RETURN(const v1::StatsReply unsolved, measure({kUnsolvedTag}, {}, std::nullopt, kAny));
  QUERN_ASSIGN_OR_RETURN(const v1::StatsReply kept, measure({kKeptTag}, {}, std::nullopt, kAny));
  QUERN_ASSIGN_OR_RETURN(const v1::StatsReply kept_hinted, measure({kKeptTag, kHintedTag}, {}, std::nullopt, kAny));
  const auto share = [](uint64_t part, uint64_t whole) {
    return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
  };
  std::map<std::string, double> metrics = {
      {"chains", static_cast<double>(own.records() + hinted.records())},
      {"pass_rate", own.success_rate()},
      {"unsolved_share", share(unsolved.records(), questions)},
      {"hinted_chains", static_cast<double>(hinted.records())},
      {"hinted_pass_rate", hinted.success_rate()},
      {"kept", static_cast<double>(kept.records())},
      {"kept_hinted_share", share(kept_hinted.records(), kept.records())},
  };
  QUERN_ASSIGN_OR_RETURN(metrics["path_tokens"], MeanPathTokens(store, tag, deadline));
  QUERN_ASSIGN_OR_RETURN(const std::optional<double> difference, LogProbDifference(store, tag, deadline));
  if (difference.has_value()) metrics["log_prob_difference"] = *difference;
  for (uint32_t k = 1; k <= guidelines; ++k) {
    QUERN_ASSIGN_OR_RETURN(const v1::StatsReply reply, measure({}, {kHintedTag}, k, kAny));
    metrics[StrCat("guideline_", k, "_pass_rate")] = reply.success_rate();
  }
  return metrics;
}

std::string ChainsSummary(const std::map<std::string, double>& metrics) {
  std::string out =
      StrFormat("%.1f %% pass, %.1f %% unsolved, %.0f kept (%.1f %% hinted)", 100 * metrics.at("pass_rate"),
                100 * metrics.at("unsolved_share"), metrics.at("kept"), 100 * metrics.at("kept_hinted_share"));
  if (const auto difference = metrics.find("log_prob_difference"); difference != metrics.end())
    out += StrFormat(", log-probabilities %.4f a token off by the compression", difference->second);
  return out;
}

Result<std::string> RejectionReasons(Replay& store, const std::string& tag, Deadline deadline) {
  v1::QueryRequest request;
  request.mutable_filter()->add_tags(tag);
  request.set_limit(500);
  QUERN_ASSIGN_OR_RETURN(const v1::QueryReply reply, store.Query(request, deadline));
  std::map<std::string, int> counts;
  for (const std::string& bytes : reply.trajectories()) {
    v1::Trajectory record;
    if (record.ParseFromString(bytes) && !record.chain().rejected().empty()) ++counts[record.chain().rejected()];
  }
  std::vector<std::pair<int, std::string>> sorted;
  for (const auto& [reason, count] : counts) sorted.emplace_back(count, reason);
  std::sort(sorted.rbegin(), sorted.rend());
  std::vector<std::string> parts;
  for (const auto& [count, reason] : sorted) parts.push_back(StrCat(count, " ", reason));
  return StrJoin(parts, ", ");
}

}  // namespace quern
