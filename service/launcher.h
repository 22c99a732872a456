#pragma once

#include <atomic>

#include "base/status.h"
#include "service/job_queue.h"

namespace quern {

// Runs the jobs of a queue, in the order of their submission, as many at once as the queue has slots; every job is a
// `quern run` (or, after a crash, `quern resume`) of its own that goes on when the launcher dies. One launcher works on
// a queue: another one returns at once. Ends when nothing has been left to do for a while, or with `stop`.
Status RunLauncher(const JobQueue& queue, const std::atomic<bool>& stop);

// Starts a launcher in the background (`quern launcher`, in a session of its own) unless one works already.
Status EnsureLauncher(const JobQueue& queue);

}  // namespace quern
