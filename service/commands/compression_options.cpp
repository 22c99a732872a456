#include "service/commands/compression_options.h"

#include <CLI/CLI.hpp>

#include "model/hf/model_directory.h"
#include "service/compression.h"
#include "service/help.h"

namespace quern {

void AddCompressionOptions(CLI::App* command, CompressionOptions& options) {
  command->add_option("--budgets", options.budgets, "cache entries of each layer: a file that quern budget wrote");
  CLI::Option* channels =
      command
          ->add_option("--key-channels", options.key_channels,
                       "keep keys in so many channels of each KV head once the prompt is read (ThinK); 0: in all")
          ->check(AtLeastZero());
  command->add_option("--key-ratio", options.key_ratio, "the same as a share of the channels, as 0.6")
      ->check(CLI::Range(0.0, 1.0))
      ->excludes(channels);
  command->add_option("--query-window", options.query_window, "of the prompt's last queries, which choose the channels")
      ->check(AboveZero());
  command->add_option("--recent", options.recent, "newest keys that stay whole")->check(AtLeastZero());
}

Result<Compression> LoadCompression(const CompressionOptions& options, int64_t head_dim) {
  Compression compression;
  if (!options.budgets.empty()) {
    QUERN_ASSIGN_OR_RETURN(compression.budgets, LoadBudgets(options.budgets));
  }
  compression.key_channels = options.key_ratio > 0 ? KeyChannels(options.key_ratio, head_dim) : options.key_channels;
  compression.query_window = options.query_window;
  compression.recent = options.recent;
  return compression;
}

Status SetCompression(const CompressionOptions& options, v1::PolicySpec& spec) {
  if (options.off()) return {};
  QUERN_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(spec.weights(0).path()));
  QUERN_ASSIGN_OR_RETURN(const Compression compression, LoadCompression(options, config.head_dim));
  *spec.mutable_sampling()->mutable_compression() = ToProto(compression);
  return {};
}

}  // namespace quern
