#include "service/result.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/strings.h"

namespace quern {

namespace {
using Json = nlohmann::ordered_json;
}  // namespace

bool JobResult::AllMet() const {
  return std::all_of(requirements.begin(), requirements.end(), [](const RequirementOutcome& r) { return r.met; });
}

const ResultRow* JobResult::Find(const std::string& policy, const std::string& set) const {
  const ResultRow* found = nullptr;
  std::string wanted = set;
  for (const ResultRow& row : rows) {
    if (row.policy != policy && row.arm != policy) continue;
    if (wanted.empty()) wanted = row.set;
    if (row.set == wanted && (found == nullptr || row.round > found->round)) found = &row;
  }
  return found;
}

Result<ResultRow> MeasureTag(Replay& store, const PlannedRow& row, Deadline deadline) {
  v1::StatsRequest request;
  request.mutable_filter()->add_tags(row.tag);
  QUERN_ASSIGN_OR_RETURN(const v1::StatsReply stats, store.Stats(request, deadline));
  ResultRow out;
  out.policy = row.policy;
  out.label = row.label;
  out.set = row.set;
  out.arm = row.arm;
  out.round = row.round;
  out.episodes = stats.records();
  out.mean_return = stats.mean_return();
  out.success_rate = stats.success_rate();
  if (stats.records() > 1) {
    const double n = static_cast<double>(stats.records());
    out.std_error = std::sqrt(std::max(0.0, stats.return_variance()) / n);
    out.success_std_error = std::sqrt(out.success_rate * (1 - out.success_rate) / (n - 1));
  }
  return out;
}

Result<std::optional<double>> LogProbDifference(Replay& store, const std::string& tag, Deadline deadline) {
  v1::QueryRequest request;
  request.mutable_filter()->add_tags(tag);
  request.set_limit(1000);
  QUERN_ASSIGN_OR_RETURN(const v1::QueryReply reply, store.Query(request, deadline));
  double sum = 0, tokens = 0;
  for (const std::string& bytes : reply.trajectories()) {
    v1::Trajectory record;
    if (!record.ParseFromString(bytes)) return DataLoss("a record of " + tag + " does not parse");
    if (!record.sampling().has_compression()) continue;
    double written = 0;
    for (const v1::ChainStage& stage : record.chain().stages())
      written += static_cast<double>(stage.token_ids().size() / sizeof(int32_t));
    if (!record.has_chain())
      for (const v1::Turn& turn : record.turns()) written += turn.end() - turn.begin();
    sum += static_cast<double>(record.log_prob_difference()) * written;
    tokens += written;
  }
  return tokens > 0 ? std::optional<double>(sum / tokens) : std::nullopt;
}

namespace {

void AddHeldout(const PlannedRow& planned, const StageMetrics& stages, ResultRow& row) {
  const auto metric = [&](const std::string& stage, const char* name) -> std::optional<double> {
    const auto found = stages.find(stage);
    if (found == stages.end()) return std::nullopt;
    const auto value = found->second.find(name);
    return value == found->second.end() ? std::nullopt : std::optional<double>(value->second);
  };
  row.heldout_loss = metric(planned.score, "heldout_loss");
  row.heldout_std_error = metric(planned.score, "heldout_std_error").value_or(0);
  row.rule = planned.rule;
  row.real_records = planned.real_records;
  row.omega = metric(planned.trained, "omega").value_or(0);
}

}  // namespace

Result<JobResult> MeasureJob(Replay& store, const Job& job, const Plan& plan, const StageMetrics& stages,
                             Deadline deadline) {
  JobResult result;
  for (const PlannedRow& planned : plan.rows) {
    ResultRow row;
    row.policy = planned.policy;
    row.label = planned.label;
    if (!planned.tag.empty()) {
      QUERN_ASSIGN_OR_RETURN(row, MeasureTag(store, planned, deadline));
      if (!job.compression.off()) {
        QUERN_ASSIGN_OR_RETURN(row.log_prob_difference, LogProbDifference(store, planned.tag, deadline));
      }
    }
    AddHeldout(planned, stages, row);
    if (row.episodes > 0 || row.heldout_loss) result.rows.push_back(std::move(row));
  }
  for (const Requirement& wanted : job.require) {
    RequirementOutcome outcome{.wanted = wanted};
    const ResultRow* better = result.Find(wanted.better, wanted.set);
    const ResultRow* than = result.Find(wanted.than, wanted.set);
    if (better != nullptr && than != nullptr && better->episodes == 0 && than->episodes == 0) {
      outcome.difference = than->heldout_loss.value_or(0) - better->heldout_loss.value_or(0);
      outcome.std_error = std::hypot(better->heldout_std_error, than->heldout_std_error);
      outcome.met = outcome.difference > wanted.by_standard_errors * outcome.std_error;
    } else if (better != nullptr && than != nullptr) {
      outcome.difference = better->mean_return - than->mean_return;
      outcome.std_error = std::hypot(better->std_error, than->std_error);
      outcome.met = outcome.difference > wanted.by_standard_errors * outcome.std_error;
    }
    result.requirements.push_back(outcome);
  }
  return result;
}

std::string ResultToJson(const JobResult& result) {
  Json json = {{"table", Json::array()}, {"requirements", Json::array()}};
  for (const ResultRow& row : result.rows) {
    Json entry = {{"policy", row.policy}, {"label", row.label}, {"episodes", row.episodes}};
    if (row.episodes > 0) {
      entry["mean_return"] = row.mean_return;
      entry["std_error"] = row.std_error;
      entry["success_rate"] = row.success_rate;
      entry["success_std_error"] = row.success_std_error;
    }
    if (row.heldout_loss) {
      entry["heldout_loss"] = *row.heldout_loss;
      entry["heldout_std_error"] = row.heldout_std_error;
    }
    if (row.log_prob_difference) entry["log_prob_difference"] = *row.log_prob_difference;
    if (!row.set.empty()) entry["set"] = row.set;
    if (!row.arm.empty()) {
      entry["arm"] = row.arm;
      entry["round"] = row.round;
    }
    if (!row.rule.empty()) {
      entry["rule"] = row.rule;
      entry["real_records"] = row.real_records;
      entry["omega"] = row.omega;
    }
    json["table"].push_back(std::move(entry));
  }
  for (const RequirementOutcome& outcome : result.requirements) {
    json["requirements"].push_back({{"better", outcome.wanted.better},
                                    {"than", outcome.wanted.than},
                                    {"by_standard_errors", outcome.wanted.by_standard_errors},
                                    {"difference", outcome.difference},
                                    {"std_error", outcome.std_error},
                                    {"met", outcome.met}});
    if (!outcome.wanted.set.empty()) json["requirements"].back()["set"] = outcome.wanted.set;
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

Result<JobResult> ResultFromJson(const std::string& text) {
  try {
    const Json json = Json::parse(text);
    JobResult result;
    for (const Json& row : json.at("table")) {
      ResultRow& out = result.rows.emplace_back();
      out.policy = row.at("policy");
      out.label = row.at("label");
      out.episodes = row.at("episodes");
      out.mean_return = row.value("mean_return", 0.0);
      out.std_error = row.value("std_error", 0.0);
      out.success_rate = row.value("success_rate", 0.0);
      out.success_std_error = row.value("success_std_error", 0.0);
      out.set = row.value("set", "");
      out.arm = row.value("arm", "");
      out.round = row.value("round", int64_t{0});
      if (row.contains("log_prob_difference")) out.log_prob_difference = row.at("log_prob_difference").get<double>();
      if (row.contains("heldout_loss")) out.heldout_loss = row.at("heldout_loss").get<double>();
      out.heldout_std_error = row.value("heldout_std_error", 0.0);
      out.rule = row.value("rule", std::string());
      out.real_records = row.value("real_records", int64_t{0});
      out.omega = row.value("omega", 0.0);
    }
    for (const Json& row : json.at("requirements")) {
      RequirementOutcome outcome;
      outcome.wanted = {row.at("better"), row.at("than"), row.at("by_standard_errors"), row.value("set", "")};
      outcome.difference = row.at("difference");
      outcome.std_error = row.at("std_error");
      outcome.met = row.at("met");
      result.requirements.push_back(outcome);
    }
    return result;
  } catch (const nlohmann::json::exception& error) {
    return DataLoss(std::string("result: ") + error.what());
  }
}

std::string FormatTable(const JobResult& result) {
  const auto name = [](const ResultRow& row) { return row.set.empty() ? row.label : row.label + " @ " + row.set; };
  size_t width = 6;
  for (const ResultRow& row : result.rows) width = std::max(width, name(row).size());
  const int w = static_cast<int>(width);
  const auto any = [&](auto has) { return std::any_of(result.rows.begin(), result.rows.end(), has); };
  const bool episodes = any([](const ResultRow& row) { return row.episodes > 0; });
  const bool losses = any([](const ResultRow& row) { return row.heldout_loss.has_value(); });
  const bool shares = any([](const ResultRow& row) { return !row.rule.empty(); });
  std::string out = StrFormat("%-*s", w, "policy");
  if (episodes) out += StrFormat("  %8s  %20s  %8s", "episodes", "mean return +- s.e.", "success");
  if (losses) out += StrFormat("  %18s", "held-out loss");
  if (shares) out += StrFormat("  %6s", "omega");
  out += "\n";
  for (const ResultRow& row : result.rows) {
    std::string line = StrFormat("%-*s", w, name(row).c_str());
    if (row.episodes > 0) {
      line += StrFormat("  %8llu  %10.3f +- %6.3f  %7.1f%%", static_cast<unsigned long long>(row.episodes),
                        row.mean_return, row.std_error, 100 * row.success_rate);
    } else if (episodes) {
      line += StrFormat("  %8s  %20s  %8s", "", "", "");
    }
    if (row.heldout_loss) {
      line += StrFormat("  %8.4f +- %6.4f", *row.heldout_loss, row.heldout_std_error);
    } else if (losses && !row.rule.empty()) {
      line += StrFormat("  %18s", "");
    }
    if (!row.rule.empty()) line += StrFormat("  %6.4f", row.omega);
    out += line + "\n";
  }
  for (const ResultRow& row : result.rows)
    if (row.log_prob_difference)
      out += StrFormat("%s: the compression changes log-probabilities by %.4f a token\n", name(row).c_str(),
                       *row.log_prob_difference);
  for (const RequirementOutcome& outcome : result.requirements) {
    const double errors = outcome.std_error > 0 ? outcome.difference / outcome.std_error : 0;
    out += StrFormat("%s: %s beats %s by %.3f = %.1f standard errors (%.1f asked)\n", outcome.met ? "met" : "NOT MET",
                     outcome.wanted.better.c_str(), outcome.wanted.than.c_str(), outcome.difference, errors,
                     outcome.wanted.by_standard_errors);
  }
  return out;
}

}  // namespace quern
