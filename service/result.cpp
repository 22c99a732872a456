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

const ResultRow* JobResult::Find(const std::string& policy) const {
  for (const ResultRow& row : rows)
    if (row.policy == policy) return &row;
  return nullptr;
}

Result<ResultRow> MeasureTag(Replay& store, const PlannedRow& row, Deadline deadline) {
  v1::StatsRequest request;
  request.mutable_filter()->add_tags(row.tag);
  QUERN_ASSIGN_OR_RETURN(const v1::StatsReply stats, store.Stats(request, deadline));
  ResultRow out{.policy = row.policy, .label = row.label};
  out.episodes = stats.records();
  out.mean_return = stats.mean_return();
  out.success_rate = stats.success_rate();
  if (stats.records() > 1) {
    const double n = static_cast<double>(stats.records());
    out.std_error = std::sqrt(std::max(0.0, stats.return_variance()) / n);
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
    const ResultRow* better = result.Find(wanted.better);
    const ResultRow* than = result.Find(wanted.than);
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
                             {"success_rate", row.success_rate}});
  }
  for (const RequirementOutcome& outcome : result.requirements) {
    json["requirements"].push_back({{"better", outcome.wanted.better},
                                    {"than", outcome.wanted.than},
                                    {"by_standard_errors", outcome.wanted.by_standard_errors},
                                    {"difference", outcome.difference},
                                    {"std_error", outcome.std_error},
                                    {"met", outcome.met}});
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
                             .success_rate = row.at("success_rate")});
    }
    for (const Json& row : json.at("requirements")) {
      RequirementOutcome outcome;
      outcome.wanted = {row.at("better"), row.at("than"), row.at("by_standard_errors")};
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
  size_t width = 6;
  for (const ResultRow& row : result.rows) width = std::max(width, row.label.size());
  const int w = static_cast<int>(width);
  std::string out = StrFormat("%-*s  %8s  %20s  %8s\n", w, "policy", "episodes", "mean return +- s.e.", "success");
  for (const ResultRow& row : result.rows) {
    out += StrFormat("%-*s  %8llu  %10.3f +- %6.3f  %7.1f%%\n", w, row.label.c_str(),
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
