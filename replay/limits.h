#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "proto/record.pb.h"

namespace quern {

// Sizes beyond which a record is refused, so that a hostile or broken client cannot exhaust memory.
struct RecordLimits {
  size_t record_bytes = size_t{8} << 20;
  size_t tokens = size_t{1} << 20;
  size_t turns = 65536;
  size_t messages = 65536;
  size_t policies = 1024;
  size_t tags = 64;
  size_t chain_stages = 1024;
  size_t name_bytes = 512;  // uid, run, one tag
  size_t records_per_insert = 4096;
  size_t writers = 65536;            // of one store
  size_t uids_per_question = 65536;  // of replay.Contains
};

// Parses and checks one serialised Trajectory: sizes, array lengths, turns inside the tokens and in order, finite
// rewards that add up to episode_return, known source. The error says "trajectory UID: reason".
Status ParseTrajectory(std::string_view bytes, const RecordLimits& limits, v1::Trajectory* trajectory);
Status CheckTrajectory(const v1::Trajectory& trajectory, const RecordLimits& limits);

// How often field `number` (length-delimited) occurs at the top level of a serialised message; counting stops after
// `limit`. Cheap: to be asked before parsing allocates.
size_t CountField(std::string_view message, int number, size_t limit);

// A name from a request as an error may show it: on one line, 100 bytes at most.
std::string ShownName(const std::string& name);

}  // namespace quern
