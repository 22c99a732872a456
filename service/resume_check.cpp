#include "service/resume_check.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "base/strings.h"

namespace quern {

namespace {

// Of stages whose records carry the same tags, together.
struct Played {
  std::string stage;
  uint64_t episodes = 0;
};

Status Missing(const std::string& stage, uint64_t there, uint64_t expected) {
  return FailedPrecondition(StrCat("the replay store has ", there, " of ", expected, " records of stage ", stage,
                                   ": it is another run's, or a copy that was made before them; put back a newer one"));
}

}  // namespace

Status CheckStoreHolds(const JournalState& journal, const Plan& plan, Replay& store, Deadline deadline) {
  std::map<std::vector<std::string>, Played> played;
  uint64_t watermark = 0;
  std::string trained;
  for (const PlannedStage& planned : plan.stages) {
    const auto found = journal.stages.find(planned.name);
    if (found == journal.stages.end()) continue;
    const JournalState::Stage& stage = found->second;
    if (stage.watermark > watermark) {
      watermark = stage.watermark;
      trained = planned.name;
    }
    // A question is many records, none of which is certain.
    if (planned.kind != PlannedStage::Kind::kRollout || !planned.arm.empty()) continue;
    Played& sum = played[planned.tags];
    sum.stage = planned.name;
    uint64_t episodes = 0;
    for (const auto& [first, task] : stage.tasks) episodes += task.done ? task.episodes : 0;
    sum.episodes += episodes - std::min<uint64_t>(episodes, stage.quarantined.size());
  }
  if (watermark > 0) {
    QUERN_ASSIGN_OR_RETURN(const v1::StatsReply stats, store.Stats(v1::StatsRequest(), deadline));
    if (stats.watermark() < watermark) return Missing(trained, stats.watermark(), watermark);
  }
  for (const auto& [tags, expected] : played) {
    if (expected.episodes == 0) continue;
    v1::QueryRequest request;
    for (const std::string& tag : tags) request.mutable_filter()->add_tags(tag);
    request.set_count_only(true);
    request.set_pruned_too(true);
    QUERN_ASSIGN_OR_RETURN(const v1::QueryReply reply, store.Query(request, deadline));
    if (reply.count() < expected.episodes) return Missing(expected.stage, reply.count(), expected.episodes);
  }
  return {};
}

}  // namespace quern
