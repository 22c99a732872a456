#pragma once

#include <string>
#include <vector>

#include "tests/e2e/quern_process.h"

namespace quern {

// A whole job that takes about a second: wordle with nine words and a model of one layer.
inline std::string WriteTinyJob(const QuernProcess::Folder& folder) {
  const std::string words = "crane\nslate\nmoist\nbound\nlucky\nfresh\nvivid\ngraph\ntweak\n";
  EXPECT_TRUE(WriteFileAtomic(folder.File("words.txt"), words).ok());
  const std::string job =
      "name: tiny\n"
      "precision: fp32\n"
      "model: {config: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 4, max_position_embeddings: 128}}\n"
      "environment: {name: wordle, words: words.txt}\n"
      "data:\n"
      "  collect:\n"
      "    - {player: random, episodes: 60}\n"
      "    - {player: consistent, episodes: 60, noise: 0.5}\n"
      "compare: [sft, filtered_sft]\n"
      "sft: {max_steps: 6, batch_size: 8}\n"
      "filtered_sft: {max_steps: 4, batch_size: 8, top_fraction: 0.2}\n"
      "qsft: {max_steps: 6, batch_size: 8}\n"
      "online: {rounds: 1, episodes: 24, sft: {max_steps: 3}, qsft: {max_steps: 3}}\n"
      "evaluate: {episodes: 24}\n"
      "rollout: {task_episodes: 12}\n";
  EXPECT_TRUE(WriteFileAtomic(folder.File("tiny.yaml"), job).ok());
  return folder.File("tiny.yaml");
}

inline std::vector<std::string> RunArguments(const QuernProcess::Folder& folder,
                                             std::vector<std::string> overrides = {}) {
  overrides.insert(overrides.begin(), {"run", WriteTinyJob(folder), "output_dir=" + folder.File("run")});
  return overrides;
}

}  // namespace quern
