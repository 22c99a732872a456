#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/status.h"

namespace quern {

struct CheckpointOptions {
  std::string directory;      // RUN/checkpoints; empty: none are written
  int64_t every_steps = 0;    // 0: by time alone
  double every_seconds = 60;  // 0: by steps alone; stretched so that writing takes at most a fiftieth of the time
  int64_t keep = 2;
};

// One array of a checkpoint: a file of its name.
struct CheckpointArray {
  std::string name;
  std::span<uint8_t> bytes;
};

struct CheckpointMark {
  int64_t step = 0;   // steps taken
  std::string state;  // whatever else the stage needs, a JSON object
};

// The checkpoints of one train stage, DIRECTORY/STAGE/step-N/: written beside, synced, a manifest with sizes and XXH3
// hashes last, then renamed; the newest few are kept. One thread.
class StageCheckpoints {
 public:
  // `stage_key` tells what the numbers belong to: a checkpoint with another key is not used.
  StageCheckpoints(const CheckpointOptions& options, const std::string& stage, std::string stage_key);

  // Fills the arrays from the newest checkpoint that is whole. A damaged one is named in the log, removed, and the one
  // before it is tried; none: nothing, and the arrays are as they were.
  Result<std::optional<CheckpointMark>> Load(std::span<const CheckpointArray> arrays);
  bool enabled() const { return !directory_.empty(); }
  bool any() const { return enabled() && !Steps().empty(); }
  bool Due(int64_t step) const;
  // Fails for want of space before it writes. An error leaves the checkpoints that were there.
  Status Save(const CheckpointMark& mark, std::span<const CheckpointArray> arrays);
  // The stage is done.
  Status Remove();

  const std::string& directory() const { return directory_; }

 private:
  Status WriteTo(const std::string& directory, const CheckpointMark& mark, std::span<const CheckpointArray> arrays);
  Result<CheckpointMark> Read(const std::string& directory, std::span<const CheckpointArray> arrays) const;
  std::vector<int64_t> Steps() const;  // of the checkpoints there are, newest first
  std::string PathOf(int64_t step) const;

  CheckpointOptions options_;
  std::string directory_;
  std::string stage_key_;
  int64_t saved_step_ = 0;
  Clock::time_point saved_at_ = Clock::now();
  double save_seconds_ = 0;  // the last one took
};

// A stage's name as a folder's: letters, digits, '-', '_' and '.' stay, other bytes become %XX.
std::string FolderName(const std::string& stage);

}  // namespace quern
