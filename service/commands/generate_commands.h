#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/compression.h"

namespace CLI {
class App;
}

namespace quern {

class CommandSet;

// What every command that runs a model is given.
struct ModelOptions {
  std::string model;
  std::string input;
  std::string precision;  // empty: as the weights are stored
  std::string device = "auto";
  int threads = 0;
};
void AddDeviceOption(CLI::App* command, std::string& device);
void AddModelOptions(CLI::App* command, ModelOptions& options);

// Of commands that generate or score: what is left out of the cache.
struct CompressionOptions {
  std::string budgets;  // file
  int64_t key_channels = 0, query_window = 32, recent = 32;
  double key_ratio = 0;
};
void AddCompressionOptions(CLI::App* command, CompressionOptions& options);
// For models with heads of `head_dim`.
Result<Compression> LoadCompression(const CompressionOptions& options, int64_t head_dim);

void AddGenerateCommands(CommandSet& commands);  // generate
void AddScoreCommands(CommandSet& commands);     // score, budget

Status CheckIds(const std::vector<int32_t>& ids, int64_t vocabulary);

// A row's "token_ids".
Result<std::vector<int32_t>> TokenIdsOf(const nlohmann::json& row);

}  // namespace quern
