#pragma once

#include <string>

#include "service/run_directory.h"

namespace quern {

// A line of RUN/events.jsonl, {"time", "role", "text"}: what went wrong and was mended (a role that died, a task that
// was given out again). Rare; never fails the caller. Thread-safe.
void AppendEvent(const Run& run, const std::string& role, const std::string& text);

}  // namespace quern
