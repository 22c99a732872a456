#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "model/compression.h"
#include "proto/coordinator.pb.h"

namespace CLI {
class App;
}

namespace quern {

// Of commands that generate, serve or score: what is left out of the cache (docs/cli.md).
struct CompressionOptions {
  std::string budgets;  // file
  int64_t key_channels = 0, query_window = 32, recent = 32;
  double key_ratio = 0;

  bool off() const { return budgets.empty() && key_channels == 0 && key_ratio == 0; }
};
void AddCompressionOptions(CLI::App* command, CompressionOptions& options);

// For models with heads of `head_dim`. Errors: of the budgets' file.
Result<Compression> LoadCompression(const CompressionOptions& options, int64_t head_dim);

// Writes them to the policy's sampling, in the place of what it has; options that are off leave it as it is.
Status SetCompression(const CompressionOptions& options, v1::PolicySpec& spec);

}  // namespace quern
