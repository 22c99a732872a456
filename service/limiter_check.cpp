#include "service/limiter_check.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/strings.h"
#include "learner/sample_limiter.h"
#include "learner/train_stage.h"

namespace quern {

namespace {

bool Has(const std::vector<std::string>& tags, const char* tag) {
  return std::find(tags.begin(), tags.end(), tag) != tags.end();
}

}  // namespace

uint64_t RecordsNeeded(const PlannedStage& train) {
  const nlohmann::json options = nlohmann::json::parse(train.options_json, nullptr, false);
  if (train.kind != PlannedStage::Kind::kTrain || !options.is_object()) return 0;
  const SampleLimiter limiter({.samples_per_insert = options.value("samples_per_insert", 0.0),
                               .min_records = options.value("min_records", int64_t{0})},
                              options.value("batch_size", int64_t{1}), nullptr);
  return limiter.NeededInAll(static_cast<int64_t>(train.steps));
}

std::vector<const PlannedStage*> StagesThatFeed(const Plan& plan, const PlannedStage& train) {
  std::set<std::string> behind = {train.name};  // those that wait for it; `stages` has them in order
  std::vector<const PlannedStage*> feeding;
  for (const PlannedStage& stage : plan.stages) {
    if (std::any_of(stage.after.begin(), stage.after.end(), [&](const auto& name) { return behind.contains(name); }))
      behind.insert(stage.name);
    const bool data = stage.kind == PlannedStage::Kind::kImport || stage.kind == PlannedStage::Kind::kRollout;
    if (data && !stage.evaluation && !Has(stage.tags, kHeldoutTag) && !behind.contains(stage.name))
      feeding.push_back(&stage);
  }
  return feeding;
}

std::string Starved(uint64_t needed, uint64_t most) {
  return StrCat("needs ", needed, " records, but no more than ", most,
                " can be stored before it is done: make fewer steps, play more, or raise samples_per_insert");
}

std::string FindStarvation(const Plan& plan, std::string& key) {
  std::set<std::pair<std::string, uint64_t>> seen;  // a later round with the same needs has more records
  for (const PlannedStage& train : plan.stages) {
    const uint64_t needed = RecordsNeeded(train);
    if (needed == 0 || !seen.emplace(train.method, needed).second) continue;
    uint64_t most = 0;
    bool known = true;
    for (const PlannedStage* stage : StagesThatFeed(plan, train)) {
      known = known && stage->kind == PlannedStage::Kind::kRollout && stage->arm.empty();
      most += stage->episodes;
    }
    if (!known || needed <= most) continue;
    const nlohmann::json options = nlohmann::json::parse(train.options_json);
    const bool ratio =
        options.value("samples_per_insert", 0.0) > 0 && options.value("min_records", int64_t{0}) <= int64_t(most);
    key = StrCat(train.method == "q_sft" ? "qsft" : train.method, ratio ? ".samples_per_insert" : ".min_records");
    return StrCat("starves a stage: ", train.name, " ", Starved(needed, most));
  }
  return "";
}

}  // namespace quern
