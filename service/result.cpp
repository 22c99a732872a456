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

Result<JobResult> MeasureJob(Replay& store, const Job& job, const Plan& plan, Deadline deadline) {
  JobResult result;
  for (const PlannedRow& planned : plan.rows) {
    QUERN_ASSIGN_OR_RETURN(ResultRow row, MeasureTag(store, planned, deadline));
    if (row.episodes > 0) result.rows.push_back(std::move(row));
  }
  for (const Requirement& wanted : job.require) {
    RequirementOutcome outcome{.wanted = wanted};
    const ResultRow* better = result.Find(wanted.better, wanted.set);
    const ResultRow* than = result.Find(wanted.than, wanted.set);
    if (better != nullptr && than != nullptr) {
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
    json["table"].push_back({{"policy", row.policy},
                             {"label", row.label},
                             {"episodes", row.episodes},
                             {"mean_return", row.mean_return},
                             {"std_error", row.std_error},
                             {"success_rate", row.success_rate},
                             {"success_std_error", row.success_std_error}});
    Json& json_row = json["table"].back();
    if (!row.set.empty()) json_row["set"] = row.set;
    if (!row.arm.empty()) {
      json_row["arm"] = row.arm;
      json_row["round"] = row.round;
    }
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
      result.rows.push_back({.policy = row.at("policy"),
                             .label = row.at("label"),
                             .episodes = row.at("episodes"),
                             .mean_return = row.at("mean_return"),
                             .std_error = row.at("std_error"),
                             .success_rate = row.at("success_rate"),
                             .success_std_error = row.at("success_std_error"),
                             .set = row.value("set", ""),
                             .arm = row.value("arm", ""),
                             .round = row.value("round", int64_t{0})});
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
  std::string out = StrFormat("%-*s  %8s  %20s  %8s\n", w, "policy", "episodes", "mean return +- s.e.", "success");
  for (const ResultRow& row : result.rows) {
    out += StrFormat("%-*s  %8llu  %10.3f +- %6.3f  %7.1f%%\n", w, name(row).c_str(),
                     static_cast<unsigned long long>(row.episodes), row.mean_return, row.std_error,
                     100 * row.success_rate);
  }
  for (const RequirementOutcome& outcome : result.requirements) {
    const double errors = outcome.std_error > 0 ? outcome.difference / outcome.std_error : 0;
    out += StrFormat("%s: %s beats %s by %.3f = %.1f standard errors (%.1f asked)\n", outcome.met ? "met" : "NOT MET",
                     outcome.wanted.better.c_str(), outcome.wanted.than.c_str(), outcome.difference, errors,
                     outcome.wanted.by_standard_errors);
  }
  return out;
}

}  // namespace quern
