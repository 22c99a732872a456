#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/status.h"

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

void AddGenerateCommands(CommandSet& commands);  // generate
void AddScoreCommands(CommandSet& commands);     // score, budget

Status CheckIds(const std::vector<int32_t>& ids, int64_t vocabulary);

// A row's "token_ids".
Result<std::vector<int32_t>> TokenIdsOf(const nlohmann::json& row);

}  // namespace quern
