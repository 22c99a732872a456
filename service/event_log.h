#pragma once

#include <cstdint>
#include <string>

#include "service/run_directory.h"

namespace quern {

// A line of RUN/events.jsonl, {"time", "role", "text"}: what went wrong and was mended (a role that died, a task that
// was given out again). Rare; never fails the caller. Thread-safe.
void AppendEvent(const Run& run, const std::string& role, const std::string& text);

// A line of RUN/memory.jsonl when a role's process leaves in order: {"role", "index", "peak_resident_bytes"}, which is
// what `quern plan` foretells. Never fails the caller.
void AppendPeakMemory(const Run& run, const std::string& role, uint32_t index);

}  // namespace quern
