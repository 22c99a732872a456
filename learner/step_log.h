#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>

#include "learner/event_file.h"
#include "learner/trainer.h"
#include "methods/training_batch.h"
#include "transport/metrics.h"

namespace quern {

// What a learner says of its steps: Prometheus metrics, lines of metrics.jsonl and events for TensorBoard. Who looks at
// them can do without: a file that can't be written is a warning, and training goes on. One thread.
class StepLog {
 public:
  // Numbers of a step beside those of its report, by name.
  using Numbers = std::map<std::string, double>;

  // `metrics` must outlive it. An empty path: no such file.
  StepLog(Metrics& metrics, std::string jsonl_path, std::string tensorboard_directory)
      : metrics_(metrics),
        jsonl_path_(std::move(jsonl_path)),
        tensorboard_directory_(std::move(tensorboard_directory)) {}

  // For the metrics, every step. `wait`: seconds until the batch was there.
  void Count(const StepReport& report, double wait, double generated_share);
  // How far the policy, version `version`, has gone from those that wrote the batch: into the metrics and `numbers`.
  void CountAges(const StepReport& report, const TrainingBatch& batch, uint64_t version, Numbers& numbers);
  // One line of metrics.jsonl, and one event.
  void Write(const std::string& stage, int64_t step, const StepReport& report, const Parameters& parameters,
             const Numbers& numbers);
  // The next stage has an event file of its own.
  void EndStage() { events_.reset(); }

 private:
  // Of every layer, "NAME.LAYER"; into the metrics as well.
  Numbers Fp8Numbers(const StepReport& report, const Parameters& parameters);
  void WriteEvent(const std::string& stage, int64_t step, const nlohmann::ordered_json& line);

  Metrics& metrics_;
  std::string jsonl_path_;
  std::string tensorboard_directory_;
  std::unique_ptr<EventFile> events_;  // of the stage under way
};

}  // namespace quern
