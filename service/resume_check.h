#pragma once

#include "base/deadline.h"
#include "base/status.h"
#include "replay/replay.h"
#include "service/journal.h"
#include "service/plan.h"

namespace quern {

// Whether the store holds what the journal says was stored: FailedPrecondition where it is not the run's, or a copy of
// it that is too old. What retention has taken counts as held.
Status CheckStoreHolds(const JournalState& journal, const Plan& plan, Replay& store, Deadline deadline);

}  // namespace quern
