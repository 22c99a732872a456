#include "learner/step_log.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/deadline.h"
#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "transport/metric_list.h"

namespace quern {

void StepLog::Count(const StepReport& report, double wait, double generated_share) {
  metrics_.Add(kLearnerSteps);
  metrics_.Add(kLearnerTokens, static_cast<double>(report.tokens));
  metrics_.Observe(kLearnerPhase, wait, {{"phase", "wait"}});
  metrics_.Observe(kLearnerPhase, report.seconds.forward, {{"phase", "forward"}});
  metrics_.Observe(kLearnerPhase, report.seconds.backward, {{"phase", "backward"}});
  metrics_.Observe(kLearnerPhase, report.seconds.optimizer, {{"phase", "optim"}});
  metrics_.Set(kLearnerLoss, report.loss, {{"term", "total"}});
  for (const auto& [name, value] : report.method) metrics_.Set(kLearnerLoss, value, {{"term", name}});
  metrics_.Set(kLearnerEntropy, report.entropy);
  metrics_.Set(kLearnerGradient, report.grad_norm);
  metrics_.Set(kLearnerRate, report.learning_rate);
  metrics_.Set(kLearnerShare, generated_share);
}

void StepLog::CountAges(const StepReport& report, const TrainingBatch& batch, uint64_t version, Numbers& numbers) {
  for (const uint64_t wrote : batch.versions)
    if (wrote > 0 && wrote < version) metrics_.Observe(kLearnerStaleness, static_cast<double>(version - wrote));
  double difference = 0, ratio = 0, sampled = 0;
  for (size_t i = 0; i < report.log_probs.size() && i < batch.behaviour_log_probs.size(); ++i) {
    const auto stored = static_cast<double>(batch.behaviour_log_probs[i]);
    if (!std::isfinite(stored)) continue;
    const double now = static_cast<double>(report.log_probs[i]);
    difference += stored - now;
    ratio += std::exp(std::min(now - stored, 30.0));
    sampled += 1;
  }
  if (sampled == 0) return;
  numbers["policy_kl"] = difference / sampled;
  numbers["importance_ratio"] = ratio / sampled;
  metrics_.Set(kLearnerKl, difference / sampled);
  metrics_.Set(kLearnerRatio, ratio / sampled);
}

void StepLog::Write(const std::string& stage, int64_t step, const StepReport& report, const Parameters& parameters,
                    const Numbers& numbers) {
  nlohmann::ordered_json line = {{"stage", stage},
                                 {"step", step},
                                 {"loss", report.loss},
                                 {"log_prob", report.mean_log_prob},
                                 {"entropy", report.entropy},
                                 {"grad_norm", report.grad_norm},
                                 {"learning_rate", report.learning_rate},
                                 {"tokens", report.tokens},
                                 {"loss_tokens", report.loss_tokens},
                                 {"time", UnixSeconds()}};
  for (const auto& [name, value] : report.method) line[name] = value;
  const Numbers fp8 = Fp8Numbers(report, parameters);
  for (const auto* more : {&fp8, &numbers})
    for (const auto& [name, value] : *more) line[name] = value;
  WriteEvent(stage, step, line);
  if (jsonl_path_.empty()) return;
  std::FILE* file = std::fopen(jsonl_path_.c_str(), "a");
  if (file == nullptr) return;
  std::fputs((line.dump() + "\n").c_str(), file);
  std::fclose(file);
}

StepLog::Numbers StepLog::Fp8Numbers(const StepReport& report, const Parameters& parameters) {
  Numbers numbers;
  for (size_t i = 0; i < report.fp8.size(); ++i) {
    const StepReport::Fp8Layer& layer = report.fp8[i];
    const GateLinearCorrelation gate = CorrelateGateAndLinear(parameters, static_cast<int64_t>(i));
    numbers[StrCat("fp8_saturated.", i)] = layer.saturated;
    numbers[StrCat("fp8_flushed.", i)] = layer.flushed;
    numbers[StrCat("fp8_gradient_saturated.", i)] = layer.gradient_saturated;
    numbers[StrCat("fp8_gradient_flushed.", i)] = layer.gradient_flushed;
    numbers[StrCat("linear_amax.", i)] = layer.linear_amax;
    numbers[StrCat("gate_linear_correlation.", i)] = gate.largest;
    const std::string number = std::to_string(i);
    metrics_.Set(kLearnerSaturated, layer.saturated, {{"layer", number}, {"of", "activations"}});
    metrics_.Set(kLearnerSaturated, layer.gradient_saturated, {{"layer", number}, {"of", "gradients"}});
    metrics_.Set(kLearnerFlushed, layer.flushed, {{"layer", number}, {"of", "activations"}});
    metrics_.Set(kLearnerFlushed, layer.gradient_flushed, {{"layer", number}, {"of", "gradients"}});
    metrics_.Set(kLearnerCorrelation, gate.largest, {{"layer", number}});
    metrics_.Set(kLearnerLinearAmax, layer.linear_amax, {{"layer", number}});
  }
  return numbers;
}

void StepLog::WriteEvent(const std::string& stage, int64_t step, const nlohmann::ordered_json& line) {
  if (tensorboard_directory_.empty()) return;
  if (events_ == nullptr) {
    Result<std::unique_ptr<EventFile>> made = EventFile::Create(JoinPath(tensorboard_directory_, stage));
    if (!made.ok()) return LogWarning(made.status().message());
    events_ = std::move(*made);
  }
  std::vector<std::pair<std::string, double>> values;
  for (const auto& [name, value] : line.items())
    if (value.is_number() && name != "step" && name != "time") values.emplace_back(name, value.get<double>());
  if (const Status status = events_->Write(step, values); !status.ok()) LogWarning(status.message());
}

}  // namespace quern
