#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "replay/store.h"

// Private to the commands of `quern replay`.
namespace quern {

struct ReplayOptions {
  std::string store;
  std::string keys;  // folder, for tcp addresses
  std::string output;
  // Import and export.
  std::string input;
  std::string to;
  std::string from;
  std::string format = "auto";
  std::vector<std::string> tags;  // also of the filter
  bool skip_bad = false;
  // Filter.
  std::string run;
  std::string task;
  std::string prompt;
  std::string prompt_contains;
  std::string source;
  std::string version;
  std::string depth;
  std::string tokens;
  std::string verdict;
  uint32_t guideline = 0;
  CLI::Option* has_guideline = nullptr;
  std::vector<std::string> without_tags;
  double min_return = 0;
  double max_return = 0;
  CLI::Option* has_min_return = nullptr;
  CLI::Option* has_max_return = nullptr;
  uint64_t limit = 0;
  bool count = false;
  // Sample.
  uint64_t watermark = 0;
  uint64_t seed = 0;
  uint64_t step = 0;
  uint32_t batch = 8;
  std::string selector = "uniform";
  double priority_exponent = 0.7;
  double top_fraction = 1;
  uint64_t window = 0;
  // Prune.
  std::string max_bytes;
  std::string max_age;
  bool real_too = false;
  std::vector<std::string> keep_tags;
  bool dry_run = false;
};
using SharedReplayOptions = std::shared_ptr<ReplayOptions>;

// An address, a store's directory, or a run directory (whose store is meant).
std::string StorePath(const std::string& store);
enum class StoreUse { kRead, kWrite, kCreate };
Result<std::unique_ptr<Replay>> OpenStore(const ReplayOptions& options, StoreUse use);

// verify, backup, restore, compact, prune.
Result<int> VerifyStore(const ReplayOptions& options);
Result<int> BackupStore(const ReplayOptions& options);
Result<int> RestoreStore(const ReplayOptions& options);
Result<int> CompactStore(const ReplayOptions& options);
Result<int> PruneStore(const ReplayOptions& options);

}  // namespace quern
